"""The half-quadratic method against its neighbours, in its own norm."""

import pytest
import torch

from laq.core.scheme import ScaleFormat
from laq.ranges import RANGES
from laq.ranges.common.grid import scale_floor
from laq.ranges.hqq import P, norm

HEAVY = torch.distributions.StudentT(torch.tensor(4.0))


def search(name, block, n_levels, weights=None, scale_format=ScaleFormat.LOG8):
    weights = torch.ones(len(block)) if weights is None else weights
    options = {"floor": scale_floor(block), "scale_format": scale_format}
    return RANGES.get(name)().search(block, n_levels, weights, **options)


def heavy_tailed(rows=512, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return HEAVY.sample((64, rows))


def norm_of(name, block, n_levels):
    grid = search(name, block, n_levels)
    return norm(block, grid.scales, grid.zero_points, n_levels)


@pytest.mark.parametrize("n_levels", [4, 8, 16])
def test_norm_is_what_its_name_says(n_levels):
    block = heavy_tailed(16)
    grid = search("hqq", block, n_levels)
    codes = (block / grid.scales + grid.zero_points).round().clamp(0, n_levels - 1)
    error = block - (codes - grid.zero_points) * grid.scales
    expected = error.abs().pow(P).sum(0)
    torch.testing.assert_close(
        norm(block, grid.scales, grid.zero_points, n_levels), expected, rtol=1e-4, atol=0
    )


@pytest.mark.parametrize("n_levels", [3, 4, 8, 16, 32, 64, 256])
def test_no_row_has_a_larger_norm_than_with_the_full_range(n_levels):
    block = heavy_tailed()
    assert (norm_of("hqq", block, n_levels) <= norm_of("zero_point", block, n_levels) * (1 + 1e-6)).all()


@pytest.mark.parametrize(("n_levels", "share"), [(3, 0.75), (4, 0.7), (8, 0.8), (16, 0.92)])
def test_norm_is_clearly_lower_than_that_of_plain_ranges(n_levels, share):
    block = heavy_tailed()
    own = norm_of("hqq", block, n_levels).sum()
    for other in ("absmax", "zero_point"):
        assert own <= share * norm_of(other, block, n_levels).sum()


def test_rounds_of_alternation_lower_the_norm_below_that_of_their_starts(monkeypatch):
    block = heavy_tailed()
    found = norm_of("hqq", block, 8).sum()
    monkeypatch.setattr("laq.ranges.hqq.N_ROUNDS", 0)
    assert found < 0.99 * norm_of("hqq", block, 8).sum()


def test_importance_is_not_looked_at():
    block, weights = heavy_tailed(), torch.logspace(-3, 3, 64)
    plain, weighted = search("hqq", block, 8), search("hqq", block, 8, weights)
    assert torch.equal(plain.stored, weighted.stored)
    assert torch.equal(plain.zero_points, weighted.zero_points)
