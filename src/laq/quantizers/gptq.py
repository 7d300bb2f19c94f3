"""GPTQ: round column by column, spread each column's error over those not yet done."""

from __future__ import annotations

from typing import ClassVar, Literal, final

import torch

from laq.core.errors import CalibrationError
from laq.core.groups import TILE_ROWS
from laq.core.scheme import ScaleFormat
from laq.quantizers import Codes, Feedback, Quantizer
from laq.quantizers.common.clip_search import scale_floor
from laq.quantizers.common.engines import engine

DAMPING = 0.01
MAX_DAMPING = 1.0
SOLVED_COLUMNS = 128
CHUNK_ROWS = 4096
"""Rows quantized at a time: rows are independent, and a group of them stays in the second-level cache."""


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
        factor = inverse_factor(hessian)
        return Feedback((factor.diagonal().pow(-2) * hessian.diagonal()).sqrt(), factor)

    def quantize(
        self, weight: torch.Tensor, feedback: Feedback, choices: torch.Tensor, *, scale_format: ScaleFormat
    ) -> Codes:
        """Choose codes, scales and zero points; see `Quantizer.quantize`."""
        n_blocks = CHUNK_ROWS // TILE_ROWS
        parts = [
            _quantize_rows(
                part.clone(memory_format=torch.contiguous_format),
                feedback.of_blocks(slice(i * n_blocks, (i + 1) * n_blocks)),
                chosen,
                scale_format,
            )
            for i, (part, chosen) in enumerate(
                zip(weight.split(CHUNK_ROWS, 1), choices.split(n_blocks, 1), strict=True)
            )
        ]
        return Codes(
            codes=torch.cat([part.codes for part in parts], 1),
            scales=torch.cat([part.scales for part in parts], 1),
            zero_points=torch.cat([part.zero_points for part in parts], 1),
        )


def _quantize_rows(
    remaining: torch.Tensor, feedback: Feedback, choices: torch.Tensor, scale_format: ScaleFormat
) -> Codes:
    """Quantize [columns, rows] group by group, in place."""
    factor = feedback.factor
    assert factor is not None
    groups, rows = len(choices), remaining.shape[1]
    group_size = len(remaining) // groups
    codes = torch.empty(remaining.shape, dtype=torch.uint8)
    scales, zeros = [], torch.empty((groups, rows))
    rounding, floor = engine(), scale_floor(remaining)
    for group in range(groups):
        here = slice(group * group_size, (group + 1) * group_size)
        rounded = rounding.round(
            remaining[here],
            choices[group],
            feedback.column_weights[here],
            floor=floor,
            factor=factor[here, here],
            scale_format=scale_format,
            palettes=feedback.palettes,
        )
        if here.stop < len(remaining):
            remaining[here.stop :].addmm_(factor[here, here.stop :].T, rounded.errors, alpha=-1)
        codes[here], zeros[group] = rounded.codes, rounded.zero_points
        scales.append(rounded.scales)
    return Codes(codes, torch.stack(scales), zeros)


def inverse_factor(hessian: torch.Tensor) -> torch.Tensor:
    """Return the upper Cholesky factor of the damped inverse; float32 [columns, columns].

    With the order of columns reversed, H = L L' for a lower L, and the factor of the inverse is L^-1 in the
    first order: one factorization and one triangular solve. Damping starts at 1 % of the mean diagonal and
    rises tenfold until the matrix is positive definite.

    Raises
    ------
    CalibrationError
        If not even a damping of 100 % suffices.
    """
    reverse = hessian.double().flip(0, 1)
    mean = reverse.diagonal().mean().clamp(min=1e-30)
    damping = DAMPING
    while damping <= MAX_DAMPING:
        damped = reverse.clone()
        damped.diagonal().add_(damping * mean)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            return _inverse_of_lower(lower).float().flip(0, 1)
        damping *= 10
    raise CalibrationError("hessian is not positive definite even with 100 % damping", hint="raise --tokens")


def _inverse_of_lower(lower: torch.Tensor) -> torch.Tensor:
    """Invert a lower triangular matrix, some columns at a time: above each block of them all is zero."""
    n = len(lower)
    inverse = torch.zeros_like(lower)
    for start in range(0, n, SOLVED_COLUMNS):
        size = min(SOLVED_COLUMNS, n - start)
        unit = torch.eye(n - start, size, dtype=lower.dtype)
        below = torch.linalg.solve_triangular(lower[start:, start:], unit, upper=False)
        inverse[start:, start : start + size] = below
    return inverse
