"""Exact coordinate descent over codes."""

from __future__ import annotations

import torch

from laq.quantizers.common.rounding_problem import RoundingProblem

BLOCK_COLUMNS = 32
"""Columns whose gradient is kept up to date after every column; divides every group size."""


def descend(problem: RoundingProblem, n_sweeps: int) -> torch.Tensor:
    """Move every code in turn to where the loss is least with all others fixed; float32 [columns, rows].

    That is the whole number nearest to the lowest point of a parabola, see
    `RoundingProblem.lowest_points`: no step raises the loss.
    """
    codes, error = problem.codes.clone(), problem.error.clone()
    for _ in range(n_sweeps):
        for first in range(0, len(codes), BLOCK_COLUMNS):
            _descend_block(problem, codes, error, slice(first, first + BLOCK_COLUMNS))
    return codes


def _descend_block(problem: RoundingProblem, codes: torch.Tensor, error: torch.Tensor, block: slice) -> None:
    """Move the codes of a block of columns in place, and their error with them."""
    group = block.start // problem.group_size
    spacing, tops = problem.spacing[group], problem.tops[group]
    per_level = torch.where(spacing > 0, spacing.reciprocal(), 0)
    gradient, square = problem.hessian[block] @ error, problem.hessian[block, block]
    for j in range(len(square)):
        column = codes[block.start + j]
        lowest = torch.addcmul(column, gradient[j], per_level, value=-1 / max(float(square[j, j]), 1e-30))
        change = lowest.round_().clamp_(min=0).minimum(tops).sub_(column)
        column += change
        gradient.addr_(square[:, j], change.mul_(spacing))
        error[block.start + j] += change
