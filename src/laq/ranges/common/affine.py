"""Grids that reach from one value to another with zero on them, as affine quantization has it."""

from __future__ import annotations

import torch

from laq.core.scheme import ScaleFormat
from laq.ranges.common.grid import (
    NARROW_LEVELS,
    nearest_zero_points,
    stored_scales,
    whole_zero_point,
    zero_point_bounds,
)


def affine_grid(
    low: torch.Tensor, high: torch.Tensor, n_levels: int, floor: torch.Tensor, scale_format: ScaleFormat
) -> tuple[tuple[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Return scales (decoded and stored) and zero points of grids from low <= 0 to high >= 0; all [rows].

    Wide codes: s = (high - low) / (n_levels - 1), z = round(-low / s). Zero points of narrow codes lie around
    the middle, so that a range on one side of zero takes a larger scale: of the whole zero points the one
    that reaches both ends with the smallest. Two levels cannot hold zero between two others: they may lie
    around it.
    """
    span = high - low
    if n_levels > NARROW_LEVELS:
        scales = stored_scales(span / (n_levels - 1), floor, scale_format, covering=True)
        return scales, nearest_zero_points(-low / scales[0], span > 0, n_levels)
    step, lowest, highest = zero_point_bounds(n_levels)
    legal = torch.arange(lowest, highest + step, step)
    whole = legal[(legal == legal.round()) & (legal < n_levels)] if n_levels > 2 else legal
    below, above = whole[:, None], n_levels - 1 - whole[:, None]  # steps on either side of zero, [n, 1]
    needed = torch.maximum(_reaching(-low, below), _reaching(high, above))
    exact, best = needed.min(0)
    scales = stored_scales(exact, floor, scale_format, covering=True)
    return scales, torch.where(span > 0, whole[best], whole_zero_point(n_levels))


def _reaching(distance: torch.Tensor, n_steps: torch.Tensor) -> torch.Tensor:
    """Scale whose steps reach a distance: infinite where there are none and something to reach."""
    return torch.where(distance > 0, distance / n_steps, 0.0)
