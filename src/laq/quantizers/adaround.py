"""AdaRound: every code chooses between two neighbours by a sigmoid that is slowly pressed to zero or one."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal, final

import torch

from laq.core.scheme import ScaleFormat
from laq.quantizers import Codes, Feedback, Quantizer
from laq.quantizers.common.descent import descend
from laq.quantizers.common.error_feedback import inverse_feedback
from laq.quantizers.common.rounding_problem import RoundingProblem, learn_rounding

STRETCH_LOW, STRETCH_HIGH = -0.1, 1.1
"""The sigmoid is stretched to this range and cut at zero and one, as in the paper."""

FIRST_POWER, LAST_POWER = 20.0, 2.0
"""Power beta of the regulariser, from flat to steep, as in the paper."""

REACH = 0.99
"""Farthest that x may lie from its code, so that the code itself is one of the two."""

N_STEPS = 60
WARM_UP = 0.2
"""Share of the steps without the regulariser."""

STEP_SIZE = 0.4
PRESSURE = 3.0
"""Weight of the regulariser, in units of the cost of a whole level in each code."""

MOMENTUM, SQUARE_MOMENTUM, EPSILON = 0.9, 0.999, 1e-8
N_SWEEPS = 4


@final
class AdaRound(Quantizer):
    """Codes floor(x) + h(V), h a rectified sigmoid; V learned by Adam on the loss and a regulariser.

    The loss is sum dW_i H dW_i' + p sum_j c_j (1 - |2 h_j - 1|^beta), c_j = H_jj s_j^2 the cost of a level.
    x is where the loss is least along each code around the codes of gptq; where inputs are independent that
    is the weight itself, as in the paper. Coordinate descent follows; rows that lose keep what gptq gave
    them. Trellises stay. Curves are measured with the method itself.

    References
    ----------
    Nagel et al., arXiv:2004.10568, equations 21 to 25.
    """

    status: ClassVar[Literal["stable", "experimental"]] = "experimental"
    summary: ClassVar[str] = "soft choice between two codes, pressed to a hard one; trellises stay"

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
    return descend(problem.moved_to(choose_neighbours(problem, N_STEPS)), N_SWEEPS)


def choose_neighbours(problem: RoundingProblem, n_steps: int) -> torch.Tensor:
    """Return the code or its neighbour on the side of x, for every code; float32 [columns, rows]."""
    spacing, tops = problem.by_column(problem.spacing), problem.by_column(problem.tops)
    point = problem.lowest_points().maximum(problem.codes - REACH).minimum(problem.codes + REACH)
    lower = point.floor().minimum(tops - 1).clamp_(min=0)
    logits = _logits((point - lower).clamp_(1 - REACH, REACH))
    mean, square = torch.zeros_like(logits), torch.zeros_like(logits)
    for step in range(n_steps):
        share, slope = _rectified(logits)
        soft = problem.moved_to(lower + share)
        # in units of the cost of a level, which Adam does not see
        gradient = (
            soft.codes.sub(soft.lowest_points()).mul_(2).add_(_pressure(share, step / n_steps)).mul_(slope)
        )
        mean.lerp_(gradient, 1 - MOMENTUM)
        square.lerp_(gradient.square_(), 1 - SQUARE_MOMENTUM)
        root = (square / (1 - SQUARE_MOMENTUM ** (step + 1))).sqrt_().add_(EPSILON)
        logits.addcdiv_(mean, root, value=-STEP_SIZE / (1 - MOMENTUM ** (step + 1)))
    return torch.where(spacing > 0, lower + (_rectified(logits)[0] >= 0.5), problem.codes)


def _rectified(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return h(V) and its slope."""
    sigmoid, width = logits.sigmoid(), STRETCH_HIGH - STRETCH_LOW
    share = sigmoid * width + STRETCH_LOW
    inside = (share > 0) & (share < 1)
    return share.clamp_(0, 1), (sigmoid * (1 - sigmoid)).mul_(width).mul_(inside)


def _logits(share: torch.Tensor) -> torch.Tensor:
    """Undo h."""
    return ((share - STRETCH_LOW) / (STRETCH_HIGH - STRETCH_LOW)).logit_()


def _pressure(share: torch.Tensor, progress: float) -> torch.Tensor:
    """Return the slope of p (1 - |2 h - 1|^beta); zero while warming up."""
    if progress < WARM_UP:
        return torch.zeros_like(share)
    power = LAST_POWER + (FIRST_POWER - LAST_POWER) * (1 - progress) / (1 - WARM_UP)
    side = 2 * share - 1
    return side.abs().pow_(power - 1).mul_(side.sign()).mul_(-2 * power * PRESSURE)
