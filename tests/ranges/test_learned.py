"""Gradients of the ends of a range, and what following them gains."""

import pytest
import torch

from laq.core.scheme import ScaleFormat
from laq.ranges import RANGES
from laq.ranges.common.grid import scale_floor
from laq.ranges.learned import error_and_gradients

LEVELS = [2, 3, 4, 8, 16, 32, 64, 256]


def search(name, block, n_levels, weights, scale_format=ScaleFormat.LOG8):
    options = {"floor": scale_floor(block), "scale_format": scale_format}
    return RANGES.get(name)().search(block, n_levels, weights, **options)


def problem(rows=512):
    generator = torch.Generator().manual_seed(0)
    block = torch.randn(64, rows, generator=generator)
    block[3] *= 4
    return block, torch.rand(64, generator=generator) + 0.1


@pytest.mark.parametrize("scale_format", ScaleFormat)
@pytest.mark.parametrize("n_levels", LEVELS)
def test_no_row_loses_more_than_with_mse(n_levels, scale_format):
    block, weights = problem()
    learned, start = (search(name, block, n_levels, weights, scale_format) for name in ("learned", "mse"))
    assert (learned.error <= start.error * (1 + 1e-5)).all()


@pytest.mark.parametrize(("n_levels", "gain"), [(2, 0.4), (3, 0.05), (16, 0.003), (32, 0.003)])
def test_error_is_lower_in_sum(n_levels, gain):
    """Two levels want less than half of the range, the smallest that mse tries."""
    block, weights = problem()
    learned, start = (search(name, block, n_levels, weights).error.sum() for name in ("learned", "mse"))
    assert learned < (1 - gain) * start


def test_free_scales_gain_more_than_those_on_the_grid():
    block, weights = problem()
    gains = [
        1
        - search("learned", block, 16, weights, each).error.sum()
        / search("mse", block, 16, weights, each).error.sum()
        for each in (ScaleFormat.LOG8, ScaleFormat.FLOAT16)
    ]
    assert gains[1] > gains[0] > 0


def test_gradients_are_those_of_a_straight_through_round():
    block, weights = problem(16)
    n_levels, low, high = 8, torch.full((16,), -1.1), torch.full((16,), 1.4)
    low.requires_grad_()
    high.requires_grad_()
    scales = (high - low) / (n_levels - 1)
    exact = (block - low) / scales
    through = exact + (exact.round() - exact).detach()
    restored = through.clamp(0, n_levels - 1) * scales + low
    ((restored - block).square() * weights[:, None]).sum().backward()
    error, to_low, to_high = error_and_gradients(
        block, scales.detach(), (-low / scales).detach(), n_levels, weights
    )
    torch.testing.assert_close(error.sum(), ((restored - block).square() * weights[:, None]).sum().detach())
    torch.testing.assert_close(2 * to_low, low.grad, rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(2 * to_high, high.grad, rtol=1e-2, atol=1e-3)
