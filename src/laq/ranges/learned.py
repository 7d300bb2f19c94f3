"""The ends of the range by gradient descent through rounding."""

from __future__ import annotations

from typing import ClassVar, Literal, final

import torch

from laq.core.scheme import ScaleFormat
from laq.ranges import Grid, Range
from laq.ranges.common.clip_search import search
from laq.ranges.common.grid import (
    extremes,
    in_parts,
    merged,
    nearest_zero_points,
    rounding_error,
    stored_scales,
)

N_ROUNDS = 10
FIRST_RATE = 0.08
"""Share of the range by which an end moves at first; it falls to zero."""


@final
class Learned(Range):
    """Gradient of the weighted squared error with respect to both ends of the range; starts at `mse`.

    The forward pass uses the grid that would be stored. With u = w / s + z before and q after rounding and
    clipping, rounding and storing taken as the identity in the backward pass,

        dw^/ds = q - u inside,  dw^/dlow = 1 below,  dw^/dhigh = 1 above,  s = (high - low) / (n_levels - 1)

    Ends move by the sign of their gradient. Of all grids on the way the best is kept, so that it never loses
    more than `mse`.

    References
    ----------
    Esser et al., arXiv:1902.08153 (gradient of the step); Cheng et al., arXiv:2309.05516 (by its sign).
    """

    status: ClassVar[Literal["stable", "experimental"]] = "experimental"
    summary: ClassVar[str] = "ends of the range by gradient through rounding, from mse on"

    def search(
        self,
        block: torch.Tensor,
        n_levels: int,
        column_weights: torch.Tensor,
        *,
        floor: torch.Tensor,
        scale_format: ScaleFormat,
    ) -> Grid:
        """Choose scales and zero points; see `Range.search`."""
        return in_parts(
            block,
            floor,
            lambda part, its: _search_rows(part, n_levels, column_weights, its, scale_format),
        )


def _search_rows(
    block: torch.Tensor,
    n_levels: int,
    column_weights: torch.Tensor,
    floor: torch.Tensor,
    scale_format: ScaleFormat,
) -> Grid:
    best = search(block, n_levels, column_weights, floor=floor, scale_format=scale_format)
    least, largest = extremes(block)
    top = n_levels - 1
    low, high = -best.zero_points * best.scales, (top - best.zero_points) * best.scales
    _, to_low, to_high = error_and_gradients(block, best.scales, best.zero_points, n_levels, column_weights)
    for step in range(N_ROUNDS):
        rate = FIRST_RATE * (1 - step / N_ROUNDS) * (high - low)
        low, high = low - rate * to_low.sign(), high - rate * to_high.sign()
        scales, stored = stored_scales((high - low) / top, floor, scale_format, covering=False)
        zeros = nearest_zero_points(-low / (high - low) * top, largest > least, n_levels)
        error, to_low, to_high = error_and_gradients(block, scales, zeros, n_levels, column_weights)
        best = merged(error < best.error, Grid(scales, stored, zeros, error), best)
    return best


def error_and_gradients(
    block: torch.Tensor,
    scales: torch.Tensor,
    zero_points: torch.Tensor,
    n_levels: int,
    column_weights: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the weighted squared error, and half its gradient with respect to low and high; all [rows]."""
    error = rounding_error(
        block, scales, zero_points, n_levels
    )  # (w^ - w) / s, beyond half a step if clipped
    weighted = error * column_weights[:, None]
    clipped = weighted * (error.abs() > 0.5)
    below, above = clipped.clamp(min=0).sum(0), clipped.clamp(max=0).sum(0)
    inside = (weighted - clipped).mul_(error).sum(0) / (n_levels - 1)
    total = weighted.mul_(error).sum(0)
    return total * scales.square(), (below - inside) * scales, (above + inside) * scales
