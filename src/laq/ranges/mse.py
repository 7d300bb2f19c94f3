"""The range of least weighted squared error."""

from __future__ import annotations

from typing import ClassVar, Literal, final

import torch

from laq.core.scheme import ScaleFormat
from laq.ranges import Grid, Range
from laq.ranges.common.clip_search import search


@final
class Mse(Range):
    """The range at its full width and smaller by eighths of an octave; least weighted squared error wins.

    Native kernels implement this one.

    References
    ----------
    Choukroun et al., arXiv:1902.06822 (OMSE).
    """

    status: ClassVar[Literal["stable", "experimental"]] = "stable"
    summary: ClassVar[str] = "clip search: the shrunk range of least weighted squared error"
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
        return search(block, n_levels, column_weights, floor=floor, scale_format=scale_format)
