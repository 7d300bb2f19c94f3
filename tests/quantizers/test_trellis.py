"""Viterbi's path is the cheapest there is, and the error of a scale is what the terms say."""

import itertools

import numpy as np
import pytest
import torch

from laq.core.formats import TRELLISES
from laq.core.formats.trellis import MIDDLE
from laq.core.groups import GROUP_SIZES
from laq.core.scheme import ScaleFormat
from laq.quantizers.common.trellis import _cheapest_path, round_trellis, search_trellis
from laq.ranges.common.grid import scale_floor

TABLES = {bits: torch.from_numpy(each.table.copy()).float() - MIDDLE for bits, each in TRELLISES.items()}
BEST_UNIFORM = {1: 0.3634, 2: 0.1188, 3: 0.0374, 4: 0.01154, 5: 0.00349, 6: 0.00104}
"""Least squared error of evenly spaced levels on a normal variable (Max, 1960)."""


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def windows_of(codes, bits, state):
    """The last eight bits of codes after each code, by definition."""
    window, found = state, []
    for code in codes:
        window = (window << bits | code) % 256
        found.append(window)
    return found


@pytest.mark.parametrize("state", [0, 77])
def test_no_other_path_of_one_bit_is_cheaper(state):
    values = 50 * normal(1, 16)
    windows, after = _cheapest_path(values, 1, torch.tensor([state]), TABLES[1])
    every = np.array(list(itertools.product((0, 1), repeat=16)))
    reached = np.empty(every.shape, np.int64)
    window = np.full(len(every), state)
    for t in range(16):
        window = (window << 1 | every[:, t]) % 256
        reached[:, t] = window
    costs = np.square(values.numpy() - TABLES[1].numpy()[reached]).sum(1)
    found = float((values - TABLES[1][windows]).square().sum())
    assert found == pytest.approx(float(costs.min()), rel=1e-5)
    assert int(after) == int(windows[0, -1]) % 128


@pytest.mark.parametrize("bits", TRELLISES)
def test_windows_follow_from_codes_and_chains_go_on(bits):
    block = normal(32, 32, seed=bits)
    floor = scale_floor(block)
    options = {"floor": floor, "scale_format": ScaleFormat.FLOAT16}
    grid = search_trellis(block, TRELLISES[bits], torch.ones(32), **options)
    codes, errors = round_trellis(block, TRELLISES[bits], grid, torch.eye(32))
    for tile, chain in itertools.product(range(2), range(4)):
        rows = slice(16 * tile, 16 * tile + 16)
        windows = windows_of(codes[chain::4, rows].flatten().tolist(), bits, 0)
        values = TABLES[bits][torch.tensor(windows)].view(-1, 16) * grid.scales[rows]
        torch.testing.assert_close(block[chain::4, rows] - values, errors[chain::4, rows], rtol=0, atol=1e-6)


@pytest.mark.parametrize("group_size", GROUP_SIZES)
@pytest.mark.parametrize("bits", TRELLISES)
def test_error_on_normal_values_is_the_one_predicted_and_below_that_of_even_levels(bits, group_size):
    block, trellis = normal(group_size, 16 * 24, seed=bits), TRELLISES[bits]
    options = {"floor": scale_floor(block), "scale_format": ScaleFormat.LOG8}
    grid = search_trellis(block, trellis, torch.ones(group_size), **options)
    _, errors = round_trellis(block, trellis, grid, torch.eye(group_size))
    measured = float(errors.square().mean())
    assert float(grid.error.sum()) / block.numel() == pytest.approx(measured, rel=0.25 if bits < 6 else 0.4)
    assert measured < (0.87 if bits < 6 else 0.95) * BEST_UNIFORM[bits]


@pytest.mark.parametrize("scale_format", ScaleFormat)
@pytest.mark.parametrize("largest", [0.0, 1e-30, 1e-6, 1.0, 1e20, 1e38])
def test_scales_of_extreme_groups_are_finite(largest, scale_format):
    block = torch.zeros(64, 16)
    block[3] = largest
    options = {"floor": scale_floor(block), "scale_format": scale_format}
    grid = search_trellis(block, TRELLISES[4], torch.ones(64), **options)
    assert torch.isfinite(grid.scales).all()
    assert (grid.scales > 0).all()
    assert not grid.error.isnan().any()


def test_column_weights_weigh_the_error_of_a_column():
    block = normal(64, 16)
    block[0] = 8
    light, heavy = torch.ones(64), torch.ones(64)
    heavy[0] = 1000
    options = {"floor": scale_floor(block), "scale_format": ScaleFormat.LOG8}
    scales = [search_trellis(block, TRELLISES[3], weights, **options).scales for weights in (light, heavy)]
    assert (scales[1] > scales[0]).all(), "the range covers what matters"
