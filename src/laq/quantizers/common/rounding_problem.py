"""What learned rounding solves: whole numbers that make an error smallest under the hessian.

The loss of a layer's output, sum_i dW_i H dW_i', is a quadratic form in the codes once scales and zero
points are given, so that one product with H says what every change costs. Rows are independent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from laq.core.formats import CANDIDATES, Integer
from laq.core.groups import TILE_ROWS
from laq.core.scheme import ScaleFormat
from laq.quantizers import Codes
from laq.quantizers.common.clip_search import decode_log_scales
from laq.quantizers.common.dequantize import dequantize_columns

CHUNK_ROWS = 1024
"""Rows solved at a time: what one group of columns touches stays in the second-level cache."""

TOPS = torch.tensor([c.n_levels - 1 if isinstance(c, Integer) else 0 for c in CANDIDATES]).float()
"""Largest code by choice; zero for trellises, whose codes lean on each other and stay."""


@dataclass(frozen=True, slots=True)
class RoundingProblem:
    """Codes of some rows, and what they leave.

    Parameters
    ----------
    codes : float32 [columns, rows]
        Where to start from.
    error : float32 [columns, rows]
        What these codes stand for, less the weight.
    spacing : float32 [groups, rows]
        Distance of two levels; zero where codes stay: in absent tiles and in trellises.
    tops : float32 [groups, rows]
        Largest code; the smallest is zero.
    hessian : float32 [columns, columns]
        Cost of errors.
    """

    codes: torch.Tensor
    error: torch.Tensor
    spacing: torch.Tensor
    tops: torch.Tensor
    hessian: torch.Tensor

    @property
    def group_size(self) -> int:
        """Columns that share a scale."""
        return len(self.codes) // len(self.spacing)

    def losses(self) -> torch.Tensor:
        """Return dW_i H dW_i' of every row, float32 [rows]."""
        return ((self.hessian @ self.error) * self.error).sum(0)


def solve_rounding(
    start: Codes,
    weight: torch.Tensor,
    hessian: torch.Tensor,
    choices: torch.Tensor,
    *,
    scale_format: ScaleFormat,
    solver: Callable[[RoundingProblem], torch.Tensor],
) -> Codes:
    """Return the codes that `solver` finds, float32 [columns, rows] of each problem; scales stay.

    start : what a quantizer found        weight : [columns, rows], float32
    choices : [groups, row blocks], uint8, candidate format of every tile
    """
    log = scale_format is ScaleFormat.LOG8
    tops = TOPS[choices.long()].repeat_interleave(TILE_ROWS, 1)
    scales = decode_log_scales(start.scales) if log else start.scales.float()
    spacing = scales.masked_fill_(tops == 0, 0)
    error = dequantize_columns(start, choices, scale_format).sub_(weight)
    codes = start.codes.clone()
    for first in range(0, weight.shape[1], CHUNK_ROWS):
        rows = slice(first, first + CHUNK_ROWS)
        found = solver(
            RoundingProblem(
                codes=start.codes[:, rows].float(),
                error=error[:, rows].contiguous(),
                spacing=spacing[:, rows].contiguous(),
                tops=tops[:, rows].contiguous(),
                hessian=hessian,
            )
        )
        moved = (spacing[:, rows] > 0).repeat_interleave(len(codes) // len(choices), 0)
        codes[:, rows] = torch.where(moved, found.to(torch.uint8), start.codes[:, rows])
    return replace(start, codes=codes)
