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
from laq.quantizers import Codes, Feedback
from laq.quantizers.common.dequantize import dequantize_columns
from laq.quantizers.common.engine import Engine
from laq.quantizers.common.error_feedback import round_with_feedback
from laq.ranges.common.grid import decoded_scales

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

    def by_column(self, values: torch.Tensor) -> torch.Tensor:
        """Repeat values of groups, [groups, rows], for each of their columns, [columns, rows]."""
        return values.repeat_interleave(self.group_size, 0)

    def moved_to(self, codes: torch.Tensor) -> RoundingProblem:
        """Return the same problem, started from other codes."""
        error = (codes - self.codes).mul_(self.by_column(self.spacing)).add_(self.error)
        return replace(self, codes=codes, error=error)

    def losses(self) -> torch.Tensor:
        """Return dW_i H dW_i' of every row, float32 [rows]."""
        return ((self.hessian @ self.error) * self.error).sum(0)

    def lowest_points(self) -> torch.Tensor:
        """Return where the loss is least along each code with all others fixed, float32 [columns, rows].

        The loss is a parabola in each code, with slope 2 (H E)_j and curvature 2 H_jj. Where inputs are
        independent this is the weight itself on the scale of codes.
        """
        spacing = self.by_column(self.spacing)
        per_level = torch.where(spacing > 0, spacing.reciprocal(), 0)
        curvature = self.hessian.diagonal().clamp(min=1e-30)[:, None]
        return self.codes - (self.hessian @ self.error).mul_(per_level).div_(curvature)


Solver = Callable[[RoundingProblem], torch.Tensor]
"""Returns better codes, float32 [columns, rows], whole numbers from zero to `tops`."""


def learn_rounding(
    engine: Engine,
    weight: torch.Tensor,
    feedback: Feedback,
    choices: torch.Tensor,
    *,
    scale_format: ScaleFormat,
    solver: Solver,
) -> Codes:
    """Round with error feedback, then let `solver` find better codes; scales and zero points stay.

    A row keeps the codes it had unless its loss falls. For the arguments see `Quantizer.quantize`.
    """
    assert feedback.hessian is not None
    start = round_with_feedback(engine, weight, feedback, choices, scale_format=scale_format)
    tops = TOPS[choices.long()].repeat_interleave(TILE_ROWS, 1)
    scales = decoded_scales(start.scales, scale_format)
    spacing = scales.masked_fill(tops == 0, 0)
    error = dequantize_columns(start, choices, scale_format, feedback.palettes).sub_(weight)
    codes = start.codes.clone()
    for first in range(0, weight.shape[1], CHUNK_ROWS):
        rows = slice(first, first + CHUNK_ROWS)
        problem = RoundingProblem(
            codes=start.codes[:, rows].float(),
            error=error[:, rows].contiguous(),
            spacing=spacing[:, rows].contiguous(),
            tops=tops[:, rows].contiguous(),
            hessian=feedback.hessian,
        )
        found = problem.moved_to(solver(problem))
        better = (problem.by_column(problem.spacing) > 0) & (found.losses() < problem.losses())
        codes[:, rows] = torch.where(better, found.codes, problem.codes).to(torch.uint8)
    return replace(start, codes=codes)
