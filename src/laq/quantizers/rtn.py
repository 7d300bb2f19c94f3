"""Round to nearest, after the clip search."""

from __future__ import annotations

from typing import ClassVar, Literal, final

import torch

from laq.core.scheme import ScaleFormat
from laq.quantizers import Codes, Feedback, Quantizer
from laq.quantizers.common.clip_search import scale_floor, search


@final
class RoundToNearest(Quantizer):
    """Every weight takes the nearest code; no error feedback."""

    status: ClassVar[Literal["stable", "experimental"]] = "stable"
    summary: ClassVar[str] = "round to nearest, range by clip search on the weighted error"

    def prepare(self, hessian: torch.Tensor) -> Feedback:
        """Return the diagonal: errors of different columns are taken as independent."""
        return Feedback(hessian.diagonal().clone(), None)

    def quantize(
        self, weight: torch.Tensor, feedback: Feedback, n_levels: torch.Tensor, *, scale_format: ScaleFormat
    ) -> Codes:
        """Choose codes, scales and zero points; see `Quantizer.quantize`."""
        groups, rows = n_levels.shape
        blocks = weight.view(groups, -1, rows)
        weights = feedback.column_weights.view(groups, -1)
        codes = torch.empty(blocks.shape, dtype=torch.uint8)
        scales, zeros = [], torch.empty((groups, rows))
        floor = scale_floor(weight)
        for group, block in enumerate(blocks):
            grid = search(block, n_levels[group], weights[group], floor=floor, scale_format=scale_format)
            rounded = (block / grid.scales).add_(grid.zero_points).round_()
            codes[group] = torch.clamp(rounded, torch.zeros(()), n_levels[group] - 1).to(torch.uint8)
            scales.append(grid.stored)
            zeros[group] = grid.zero_points
        return Codes(codes.view(weight.shape), torch.stack(scales), zeros)
