"""The search returns a grid that can be stored, with the error that it truly leaves."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from laq.core.qtensor import decode_scales
from laq.core.scheme import ScaleFormat
from laq.quantizers.common.clip_search import decode_log_scales, scale_floor
from laq.quantizers.common.clip_search import search as search_with_floor

LEVELS = [2.0, 3.0, 4.0, 8.0, 16.0, 32.0, 64.0, 256.0]


def search(block, n_levels, column_weights, *, scale_format):
    return search_with_floor(
        block, n_levels, column_weights, floor=scale_floor(block), scale_format=scale_format
    )


def rounded(block, grid, n_levels):
    codes = torch.minimum((block / grid.scales + grid.zero_points).round().clamp(min=0), n_levels - 1)
    return (codes - grid.zero_points) * grid.scales


@given(
    seed=st.integers(0, 2**32),
    n_levels=st.sampled_from(LEVELS),
    scale_format=st.sampled_from(ScaleFormat),
    exponent=st.integers(-12, 12),
    offset=st.sampled_from([0.0, 1.0, -3.0]),
)
def test_error_is_that_of_rounding_on_the_grid(seed, n_levels, scale_format, exponent, offset):
    generator = torch.Generator().manual_seed(seed)
    block = (torch.randn(32, 16, generator=generator) + offset) * 2.0 ** (exponent / 2)
    weights, levels = torch.rand(32, generator=generator), torch.full((16,), n_levels)
    grid = search(block, levels, weights, scale_format=scale_format)
    expected = weights @ (rounded(block, grid, levels) - block).square()
    torch.testing.assert_close(grid.error, expected, rtol=1e-3, atol=1e-6 * float(block.square().amax()))


@pytest.mark.parametrize("n_levels", LEVELS)
@pytest.mark.parametrize("scale_format", ScaleFormat)
def test_scales_are_what_is_stored(scale_format, n_levels):
    block = torch.randn(32, 16, generator=torch.Generator().manual_seed(0))
    grid = search(block, torch.full((16,), n_levels), torch.ones(32), scale_format=scale_format)
    assert torch.equal(torch.from_numpy(decode_scales(grid.stored.numpy(), scale_format)), grid.scales)


@pytest.mark.parametrize("n_levels", LEVELS)
def test_range_search_beats_the_full_range(n_levels):
    block = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    levels = torch.full((256,), n_levels)
    grid = search(block, levels, torch.ones(64), scale_format=ScaleFormat.LOG8)
    low, high = block.amin(0), block.amax(0)
    scale = (high - low) / (n_levels - 1)
    plain = ((block - low) / scale).round().mul(scale).add(low)
    assert grid.error.sum() <= 1.25 * (plain - block).square().sum()


def test_four_levels_on_a_gaussian_come_near_the_best_possible():
    """Best uniform 4-level quantizer of a Gaussian: 0.1188 of the variance (Max, 1960)."""
    block = torch.randn(128, 512, generator=torch.Generator().manual_seed(0))
    grid = search(block, torch.full((512,), 4.0), torch.ones(128), scale_format=ScaleFormat.LOG8)
    assert 0.10 < float(grid.error.mean()) / 128 < 0.13


def test_mixed_levels_are_searched_side_by_side():
    block = torch.randn(32, 32, generator=torch.Generator().manual_seed(0))
    levels = torch.tensor([1.0] * 8 + [4.0] * 8 + [16.0] * 16)
    grid = search(block, levels, torch.ones(32), scale_format=ScaleFormat.LOG8)
    torch.testing.assert_close(grid.error[:8], block.square().sum(0)[:8])
    alone = search(block[:, 16:].contiguous(), levels[16:], torch.ones(32), scale_format=ScaleFormat.LOG8)
    assert (grid.error[16:] <= alone.error * 1.0001).all()


@given(st.integers(-320, 240))
def test_log_scales_decode_as_in_the_reference(step):
    steps = torch.tensor([step], dtype=torch.int16)
    assert decode_log_scales(steps).numpy() == decode_scales(steps.numpy(), ScaleFormat.LOG8)
