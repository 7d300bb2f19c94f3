"""Sums of two binary codes: the best tile is near the free fit of two scales for every row."""

import numpy as np
import pytest
import torch

from laq.core.formats import CANDIDATES, formats_of
from laq.core.groups import TILE_ROWS
from laq.core.scheme import ScaleFormat
from laq.quantizers.common.engine import Columns
from laq.quantizers.common.engines import engine_of
from laq.ranges.common.grid import scale_floor
from laq.ranges.mse import Mse

GROUP, BLOCKS = 64, 4
FAMILY = [i for i, may in enumerate(formats_of("residual_binary")) if may and CANDIDATES[i].code_bits]


def values(kind, seed=0):
    generator = np.random.default_rng(seed)
    shape = (TILE_ROWS * BLOCKS, GROUP)
    return {
        "normal": generator.standard_normal,
        "tails": lambda size: generator.standard_t(5, size),
        "even": lambda size: generator.uniform(-1, 1, size),
    }[kind](shape)


def free_fit(row, weights):
    """Least weighted error of s1 b1 + s2 b2, by alternating least squares from several greedy starts."""
    best = np.inf
    for first in np.linspace(0.5, 1.6, 12) * np.average(np.abs(row), weights=weights):
        scales = np.array([first, np.average(np.abs(np.abs(row) - first), weights=weights)])
        for _ in range(20):
            inner, outer = abs(scales[0] - scales[1]), scales.sum()
            is_outer = np.abs(row) > (inner + outer) / 2
            first_code = np.sign(row)
            codes = np.stack([first_code, first_code * np.where(is_outer, 1, -1)])
            gram = (codes * weights) @ codes.T + 1e-12 * np.eye(2)
            scales = np.abs(np.linalg.solve(gram, (codes * weights) @ row))
        best = min(best, float((weights * np.square(row - scales @ codes)).sum()))
    return best


def errors_of(matrix, weights, allowed):
    """Least weighted error of every tile at every candidate; [n_candidates, n_tiles]."""
    columns_first = torch.from_numpy(matrix.T.copy()).float()
    costs, floor = torch.from_numpy(weights).float(), scale_floor(columns_first)
    columns = Columns(columns_first, costs, floor, ScaleFormat.LOG8)
    found = engine_of(Mse()).errors(columns, group_size=GROUP, allowed=allowed)
    return found[:, 0].view(len(CANDIDATES), -1, TILE_ROWS).sum(2).numpy()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("kind", "most"), [("normal", 1.06), ("tails", 1.15), ("even", 1.08)])
def test_the_best_tile_is_near_two_free_scales_for_every_row(kind, most, weighted):
    matrix = values(kind)
    weights = np.linspace(2, 0.2, GROUP) if weighted else np.ones(GROUP)
    found = errors_of(matrix, weights, formats_of("residual_binary"))[FAMILY].min(0)
    free = np.array([free_fit(row, weights) for row in matrix]).reshape(-1, TILE_ROWS).sum(1)
    assert (found >= 0.99 * free).all()
    assert found.sum() < most * free.sum()


@pytest.mark.parametrize("kind", ["normal", "tails", "even"])
def test_the_second_code_takes_most_of_what_one_leaves(kind):
    matrix = values(kind)
    one_code = np.square(np.abs(matrix) - np.abs(matrix).mean(1, keepdims=True)).sum()  # s = mean |w|
    errors = errors_of(matrix, np.ones(GROUP), formats_of("residual_binary"))
    assert errors[FAMILY].min(0).sum() < 0.45 * one_code


def test_heavy_tails_take_a_larger_second_scale_and_even_values_a_smaller_one():
    chosen = {
        kind: errors_of(values(kind), np.ones(GROUP), formats_of("residual_binary"))[FAMILY].argmin(0)
        for kind in ("even", "normal", "tails")
    }
    assert chosen["even"].mean() < chosen["normal"].mean() < chosen["tails"].mean()
    assert chosen["even"].max() <= 1
    assert chosen["tails"].min() >= 1
