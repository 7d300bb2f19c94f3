"""Signed gradient descent: an offset of up to half a level is learned by the sign of its gradient."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal, final

import torch

from laq.core.scheme import ScaleFormat
from laq.quantizers import Codes, Feedback, Quantizer
from laq.quantizers.common.descent import descend
from laq.quantizers.common.error_feedback import inverse_feedback
from laq.quantizers.common.rounding_problem import RoundingProblem, learn_rounding

N_STEPS = 40
"""Each costs a product with the hessian; more of them gain thousandths (bench/NOTES.md)."""

N_SWEEPS = 4
LARGEST_OFFSET = 0.5


@final
class AutoRound(Quantizer):
    """Codes round(x + v) with |v| <= 1/2, v moved by the sign of its gradient, from the codes of `descent`.

    x is where the loss is least along each code with the others in place, which is the weight itself where
    inputs are independent. Gradients pass the rounding unchanged, steps shrink linearly, and the best codes
    of each row are kept. Trellises stay. Curves are measured with the method itself.

    References
    ----------
    Cheng et al., arXiv:2309.05516, algorithm 1, on the loss of one layer's output; scales stay.
    """

    status: ClassVar[Literal["stable", "experimental"]] = "experimental"
    summary: ClassVar[str] = "descent, then offsets learned by signed gradients; trellises stay"

    def prepare(self, hessian: torch.Tensor) -> Feedback:
        """Factor the inverse hessian, and keep the hessian, of which the gradients are made."""
        return replace(inverse_feedback(hessian), hessian=hessian)

    def quantize(
        self, weight: torch.Tensor, feedback: Feedback, choices: torch.Tensor, *, scale_format: ScaleFormat
    ) -> Codes:
        """Choose codes, scales and zero points; see `Quantizer.quantize`."""
        return learn_rounding(
            self.engine, weight, feedback, choices, scale_format=scale_format, solver=_solve
        )


def _solve(problem: RoundingProblem) -> torch.Tensor:
    return follow_signs(problem.moved_to(descend(problem, N_SWEEPS)), N_STEPS)


def follow_signs(problem: RoundingProblem, n_steps: int) -> torch.Tensor:
    """Return the best codes of each row that are met on the way; float32 [columns, rows].

    All offsets can cross their whole range once: the steps sum up to half a level.
    """
    spacing, tops = problem.by_column(problem.spacing), problem.by_column(problem.tops)
    centre = problem.lowest_points()
    centre = centre.maximum(problem.codes - LARGEST_OFFSET).minimum(problem.codes + LARGEST_OFFSET)
    offset, best, least = torch.zeros_like(centre), problem.codes, problem.losses()
    for step in range(n_steps):
        codes = (centre + offset).round_().clamp_(min=0).minimum(tops)
        codes = torch.where(spacing > 0, codes, problem.codes)
        here = problem.moved_to(codes)
        gradient = problem.hessian @ here.error
        loss = (gradient * here.error).sum(0)
        best, least = torch.where(loss < least, codes, best), torch.minimum(loss, least)
        size = (1 - step / n_steps) / n_steps
        offset.sub_(gradient.mul_(spacing).sign_(), alpha=size).clamp_(-LARGEST_OFFSET, LARGEST_OFFSET)
    return best
