"""Symmetric ranges by number."""

import pytest
import torch

from laq.core.scheme import ScaleFormat
from laq.ranges.absmax import AbsMax, symmetric
from laq.ranges.common.grid import scale_floor


def search(block, n_levels, scale_format=ScaleFormat.FLOAT16):
    floor = scale_floor(block)
    return AbsMax().search(block, n_levels, torch.ones(len(block)), floor=floor, scale_format=scale_format)


def rounded(block, grid, n_levels):
    codes = (block / grid.scales + grid.zero_points).round().clamp(0, n_levels - 1)
    return (codes - grid.zero_points) * grid.scales


@pytest.mark.parametrize(("n_levels", "reach"), [(16, 7), (32, 15), (64, 31), (256, 127)])
def test_scale_is_the_largest_value_over_qp_and_zero_is_a_level(n_levels, reach):
    block = torch.zeros(32, 16)
    block[3], block[4] = -7.0, 3.5
    grid = search(block, n_levels)
    assert grid.scales[0] == pytest.approx(7 / reach, rel=2**-10)
    assert grid.zero_points[0] == n_levels / 2
    restored = rounded(block, grid, n_levels)
    assert not restored[5:].any()
    torch.testing.assert_close(restored[3], block[3], rtol=1e-3, atol=0)


@pytest.mark.parametrize(
    ("n_levels", "levels"),
    [(2, [-1.0, 1.0]), (3, [-1.0, 0.0, 1.0]), (4, [-1.0, -1 / 3, 1 / 3, 1.0])],
)
def test_narrow_codes_lie_symmetric_and_all_are_used(n_levels, levels):
    block = torch.linspace(-1, 1, 32)[:, None].repeat(1, 16)
    found = rounded(block, search(block, n_levels), n_levels)[:, 0].unique()
    torch.testing.assert_close(found, torch.tensor(levels), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("scale_format", ScaleFormat)
@pytest.mark.parametrize("n_levels", [2, 3, 4, 8, 16, 32, 64, 256])
def test_nothing_is_clipped(n_levels, scale_format):
    block = torch.randn(64, 512, generator=torch.Generator().manual_seed(0))
    grid = search(block, n_levels, scale_format)
    assert (symmetric(n_levels)[1] * grid.scales >= block.abs().amax(0) * (1 - 1e-6)).all()


def test_a_range_on_one_side_of_zero_wastes_half_of_the_levels():
    block = torch.rand(64, 256, generator=torch.Generator().manual_seed(0))
    both = torch.cat([block, -block])
    assert float(search(block, 16).scales.mean()) == pytest.approx(float(search(both, 16).scales.mean()))
