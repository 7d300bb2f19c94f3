"""Coordinate descent: after gptq, every code once more moves to its best with all others in place."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import ClassVar, Literal, final

import torch

from laq.core.scheme import ScaleFormat
from laq.quantizers import Codes, Feedback, Quantizer
from laq.quantizers.common.descent import descend
from laq.quantizers.common.error_feedback import inverse_feedback, round_with_feedback
from laq.quantizers.common.rounding_problem import solve_rounding

N_SWEEPS = 2


@final
class Descent(Quantizer):
    """Error feedback, then exact coordinate descent over the codes."""

    status: ClassVar[Literal["stable", "experimental"]] = "experimental"
    summary: ClassVar[str] = "gptq, then coordinate descent over the codes of integers"

    def prepare(self, hessian: torch.Tensor) -> Feedback:
        """Factor the inverse hessian and keep the hessian, whose form the descent lowers."""
        return replace(inverse_feedback(hessian), hessian=hessian)

    def quantize(
        self, weight: torch.Tensor, feedback: Feedback, choices: torch.Tensor, *, scale_format: ScaleFormat
    ) -> Codes:
        """Choose codes, scales and zero points; see `Quantizer.quantize`."""
        assert feedback.hessian is not None
        return solve_rounding(
            round_with_feedback(weight, feedback, choices, scale_format=scale_format),
            weight,
            feedback.hessian,
            choices,
            scale_format=scale_format,
            solver=partial(descend, n_sweeps=N_SWEEPS),
        )
