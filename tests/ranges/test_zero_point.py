"""Asymmetric ranges by number."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from laq.core.scheme import ScaleFormat
from laq.ranges.common.grid import scale_floor
from laq.ranges.zero_point import ZeroPoint

LEVELS = [3, 4, 8, 16, 32, 64, 256]


def search(block, n_levels, scale_format=ScaleFormat.FLOAT16):
    floor = scale_floor(block)
    return ZeroPoint().search(block, n_levels, torch.ones(len(block)), floor=floor, scale_format=scale_format)


@pytest.mark.parametrize("n_levels", [16, 32, 64, 256])
def test_scale_is_the_span_over_the_steps(n_levels):
    block = torch.zeros(32, 16)
    block[3], block[4] = -1.0, 3.0
    grid = search(block, n_levels)
    assert grid.scales[0] == pytest.approx(4 / (n_levels - 1), rel=2**-10)
    assert grid.zero_points[0] == round((n_levels - 1) / 4)


@given(
    seed=st.integers(0, 2**32 - 1),
    n_levels=st.sampled_from(LEVELS),
    scale_format=st.sampled_from(ScaleFormat),
    offset=st.sampled_from([0.0, 0.5, -4.0]),
)
def test_both_ends_are_covered_and_zero_is_a_level(seed, n_levels, scale_format, offset):
    block = torch.randn(32, 16, generator=torch.Generator().manual_seed(seed)) + offset
    grid = search(block, n_levels, scale_format)
    assert torch.equal(grid.zero_points, grid.zero_points.round())
    codes = (block / grid.scales + grid.zero_points).round()
    error = ((codes.clamp(0, n_levels - 1) - grid.zero_points) * grid.scales - block).abs()
    assert (error <= 0.501 * grid.scales).all(), "nothing is off by more than half a step"


def test_two_levels_hold_zero_where_the_range_lies_above_it_and_lie_around_it_elsewhere():
    block = torch.ones(32, 16)
    block[0, 1], block[:, 2] = -1.0, -1.0
    grid = search(block, 2)
    assert grid.zero_points[:3].tolist() == [0.0, 0.5, 0.5]
    assert grid.scales[:3].tolist() == [1.0, 2.0, 2.0]


def test_a_range_on_one_side_of_zero_uses_all_wide_codes():
    """Half the step of a symmetric one."""
    block = torch.rand(64, 256, generator=torch.Generator().manual_seed(0))
    grid = search(block, 16)
    assert not grid.zero_points.any()
    torch.testing.assert_close(grid.scales, block.amax(0) / 15, rtol=2**-9, atol=0)


def test_narrow_zero_points_near_the_middle_cost_a_larger_scale():
    """Eight levels with zero points from 2 to 5: a range above zero has five steps, not seven."""
    grid = search(torch.full((32, 16), 1.0), 8)
    assert grid.zero_points[0] == 2
    assert grid.scales[0] == pytest.approx(1 / 5, rel=2**-10)
