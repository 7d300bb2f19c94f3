"""GPTQ: round column by column, spread each column's error over those not yet done."""

from __future__ import annotations

from typing import ClassVar, Literal, final

import torch

from laq.core.scheme import ScaleFormat
from laq.quantizers import Codes, Feedback, Quantizer
from laq.quantizers.common.error_feedback import inverse_feedback, round_with_feedback


@final
class Gptq(Quantizer):
    """Error feedback through the inverse Hessian, in the order of the columns given.

    With U the upper Cholesky factor of the inverse hessian, the loss is sum_j e_j^2 / U_jj^2 over rounding
    errors e_j: an error costs the variance of input j given all later columns. That trusts the estimated
    hessian fully; its diagonal trusts it not at all. Column weights are the geometric mean of both, which did
    better than either at 2.4, 3.2 and 4.2 bits (bench/RESULTS.md).

    References
    ----------
    Frantar et al., arXiv:2210.17323, algorithm 1.
    """

    status: ClassVar[Literal["stable", "experimental"]] = "stable"
    summary: ClassVar[str] = (
        "column-wise error feedback through the inverse Hessian, widths may differ by tile"
    )

    def prepare(self, hessian: torch.Tensor) -> Feedback:
        """Factor the inverse hessian; see the class for the column weights."""
        return inverse_feedback(hessian)

    def quantize(
        self, weight: torch.Tensor, feedback: Feedback, choices: torch.Tensor, *, scale_format: ScaleFormat
    ) -> Codes:
        """Choose codes, scales and zero points; see `Quantizer.quantize`."""
        return round_with_feedback(self.engine, weight, feedback, choices, scale_format=scale_format)
