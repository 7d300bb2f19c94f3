"""Percentiles by number."""

import numpy as np
import pytest
import torch

from laq.core.scheme import ScaleFormat
from laq.ranges.common.grid import scale_floor
from laq.ranges.percentile import Percentile, percentiles


def search(block, n_levels):
    options = {"floor": scale_floor(block), "scale_format": ScaleFormat.FLOAT16}
    return Percentile().search(block, n_levels, torch.ones(len(block)), **options)


@pytest.mark.parametrize("tail", [0.2, 0.01, 0.001])
def test_ends_are_those_of_numpy(tail):
    block = torch.randn(128, 40, generator=torch.Generator().manual_seed(0))
    found = percentiles(block, tail)
    expected = np.quantile(block.numpy(), [tail, 1 - tail], axis=0)
    for mine, its in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine.numpy(), its, rtol=1e-4)


def test_one_outlier_hardly_widens_the_range():
    """16 levels: 0.6 % lie outside on either side, a bit less than one of 128."""
    block = torch.linspace(-1, 1, 128)[:, None].repeat(1, 16)
    plain = float(search(block, 16).scales[0])
    block[64] = 50.0
    place = 127 * 0.994
    reached = 1 + (place - 126) * 49
    assert plain == pytest.approx(2 / 15, rel=0.02)
    assert float(search(block, 16).scales[0]) == pytest.approx((1 + reached) / 15, rel=0.02)


def test_four_levels_keep_the_middle_of_a_gaussian():
    """Its best range holds 0.865 of the values. 0.119 of the variance is lost; 0.16 at whole zero points."""
    block = torch.randn(128, 512, generator=torch.Generator().manual_seed(0))
    assert float(search(block, 4).error.mean()) / 128 < 0.2


def test_a_row_that_is_mostly_zero_keeps_its_outlier():
    block = torch.zeros(64, 16)
    block[9] = 3.0
    grid = search(block, 4)
    assert grid.scales[0] == pytest.approx(3 / 2, rel=2**-10)
    assert float(grid.error[0]) < 1e-4
