"""Round to nearest."""

from __future__ import annotations

from typing import ClassVar, Literal, final

import torch

from laq.core.scheme import ScaleFormat
from laq.quantizers import Codes, Feedback, Quantizer
from laq.quantizers.common.engine import Columns
from laq.ranges.common.grid import scale_floor


@final
class RoundToNearest(Quantizer):
    """Every weight takes the nearest code; no error feedback."""

    status: ClassVar[Literal["stable", "experimental"]] = "stable"
    summary: ClassVar[str] = "round to nearest, no error feedback"

    def prepare(self, hessian: torch.Tensor) -> Feedback:
        """Return the diagonal: errors of different columns are taken as independent."""
        return Feedback(hessian.diagonal().clone(), None)

    def quantize(
        self, weight: torch.Tensor, feedback: Feedback, choices: torch.Tensor, *, scale_format: ScaleFormat
    ) -> Codes:
        """Choose codes, scales and zero points; see `Quantizer.quantize`."""
        groups, rows = len(choices), weight.shape[1]
        blocks = weight.view(groups, -1, rows)
        weights = feedback.column_weights.view(groups, -1)
        codes = torch.empty(blocks.shape, dtype=torch.uint8)
        scales, zeros = [], torch.empty((groups, rows))
        engine = self.engine
        fixed = feedback.with_fixed(engine, weight, choices, scale_format).fixed
        floor, palettes = scale_floor(weight), feedback.palettes
        for group, block in enumerate(blocks):
            columns = Columns(block, weights[group], floor, scale_format, palettes, fixed)
            rounded = engine.round(columns, choices[group], factor=None)
            codes[group], zeros[group] = rounded.codes, rounded.zero_points
            scales.append(rounded.scales)
        return Codes(codes.view(weight.shape), torch.stack(scales), zeros)
