"""Coordinate descent: after gptq, every code once more moves to its best with all others in place."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import ClassVar, Literal, final

import torch

from laq.core.scheme import ScaleFormat
from laq.quantizers import Codes, Feedback, Quantizer
from laq.quantizers.common.descent import descend
from laq.quantizers.common.error_feedback import inverse_feedback
from laq.quantizers.common.rounding_problem import learn_rounding

N_SWEEPS = 4
"""After eight nothing moves any more; four have 0.85 to 0.95 of what there is to gain (bench/NOTES.md)."""


@final
class Descent(Quantizer):
    """Error feedback, then exact coordinate descent over the codes of integers.

    Error feedback rounds a column before it knows how the later ones will round. Codes of trellises lean on
    the codes before them and stay; integers beside them move. A sweep costs one product with the hessian, so
    that curves are measured with the method itself.
    """

    status: ClassVar[Literal["stable", "experimental"]] = "experimental"
    summary: ClassVar[str] = "gptq, then coordinate descent over the codes of integers; trellises stay"

    def prepare(self, hessian: torch.Tensor) -> Feedback:
        """Factor the inverse hessian, and keep the hessian, whose form the descent lowers."""
        return replace(inverse_feedback(hessian), hessian=hessian)

    def quantize(
        self, weight: torch.Tensor, feedback: Feedback, choices: torch.Tensor, *, scale_format: ScaleFormat
    ) -> Codes:
        """Choose codes, scales and zero points; see `Quantizer.quantize`."""
        solver = partial(descend, n_sweeps=N_SWEEPS)
        return learn_rounding(
            self.engine, weight, feedback, choices, scale_format=scale_format, solver=solver
        )
