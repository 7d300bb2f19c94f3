"""Asymmetric: from the least to the largest value, zero exact."""

from __future__ import annotations

from typing import ClassVar, Literal, final

import torch

from laq.core.scheme import ScaleFormat
from laq.ranges import Grid, Range
from laq.ranges.common.affine import affine_grid
from laq.ranges.common.grid import extremes, grid_of


@final
class ZeroPoint(Range):
    """s = (max - min) / (n_levels - 1), z = round(-min / s); the range contains zero, which is a level.

    References
    ----------
    Jacob et al., arXiv:1712.05877, section 2.1.
    """

    status: ClassVar[Literal["stable", "experimental"]] = "stable"
    summary: ClassVar[str] = "asymmetric, from the least to the largest value, zero exact"
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
        scales, zeros = affine_grid(*extremes(block), n_levels, floor, scale_format)
        return grid_of(block, n_levels, column_weights, scales=scales, zero_points=zeros)
