"""Symmetric: the largest absolute value is the end of the range."""

from __future__ import annotations

from typing import ClassVar, Literal, final

import torch

from laq.core.scheme import ScaleFormat
from laq.ranges import Grid, Range
from laq.ranges.common.grid import (
    NARROW_LEVELS,
    grid_of,
    nearest_zero_points,
    stored_scales,
)


@final
class AbsMax(Range):
    """s = max|w| / Qp, with levels that lie symmetric about zero: -Qp s to Qp s.

    Where zero points are whole, Qp = 2^(b-1) - 1 and zero is a level. Where they go in half steps all codes
    are used, Qp = (n_levels - 1) / 2, and an even number of levels lies around zero.
    """

    status: ClassVar[Literal["stable", "experimental"]] = "stable"
    summary: ClassVar[str] = "symmetric about zero, out to the largest absolute value"
    serves_units: ClassVar[bool] = True

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
        middle, reach = symmetric(n_levels)
        largest = torch.maximum(block.amax(0), -block.amin(0))
        scales = stored_scales(largest / reach, floor, scale_format, covering=True)
        zeros = nearest_zero_points(torch.full_like(largest, middle), largest > 0, n_levels)
        return grid_of(block, n_levels, column_weights, scales=scales, zero_points=zeros)


def symmetric(n_levels: int) -> tuple[float, float]:
    """Return the zero point in the middle, and Qp: how many steps there are on either side of it.

    Examples
    --------
    >>> symmetric(16), symmetric(4), symmetric(3)
    ((8.0, 7.0), (1.5, 1.5), (1.0, 1.0))
    """
    if n_levels <= NARROW_LEVELS:
        return (n_levels - 1) / 2, (n_levels - 1) / 2
    return n_levels / 2, n_levels / 2 - 1
