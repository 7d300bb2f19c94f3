"""Asymmetric, without the outermost values."""

from __future__ import annotations

from typing import ClassVar, Literal, final

import torch

from laq.core.scheme import ScaleFormat
from laq.ranges import Grid, Range
from laq.ranges.common.affine import affine_grid
from laq.ranges.common.grid import grid_of

CENTRAL = {2: 0.575, 3: 0.779, 4: 0.865, 8: 0.96, 16: 0.988}
"""Share of the values between the ends of the range, by number of levels: that of a Gaussian between the ends
of its best evenly spaced levels (Max, 1960)."""

MOST = 0.9965
"""The same of 32 levels, for all that have as many or more."""


@final
class Percentile(Range):
    """The range from one percentile to its mirror image, as `zero_point` from the least to the largest value.

    Between two values of a group the percentile is interpolated.

    References
    ----------
    Wu et al., arXiv:2004.09602, section 3.2.
    """

    status: ClassVar[Literal["stable", "experimental"]] = "stable"
    summary: ClassVar[str] = "asymmetric, between two percentiles of the group, zero exact"

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
        low, high = percentiles(block, (1 - CENTRAL.get(n_levels, MOST)) / 2)
        scales, zeros = affine_grid(low, high, n_levels, floor, scale_format)
        return grid_of(block, n_levels, column_weights, scales=scales, zero_points=zeros)


def percentiles(block: torch.Tensor, tail: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the quantiles `tail` and 1 - tail of each row of [group_size, rows], widened to contain zero.

    Linear between neighbours, as numpy does it by default. A row that is mostly zeros keeps its extremes:
    a range of no width would lose all the rest.
    """
    ordered = block.sort(0).values
    place = tail * (len(block) - 1)
    index, share = int(place), place - int(place)
    low = ordered[index] + share * (ordered[index + 1] - ordered[index])
    high = ordered[-1 - index] + share * (ordered[-2 - index] - ordered[-1 - index])
    low, high = low.clamp(max=0), high.clamp(min=0)
    is_empty = high == low
    return (
        torch.where(is_empty, ordered[0].clamp(max=0), low),
        torch.where(is_empty, ordered[-1].clamp(min=0), high),
    )
