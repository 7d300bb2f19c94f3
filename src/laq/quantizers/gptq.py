"""GPTQ: round column by column, spread each column's error over those not yet done."""

from __future__ import annotations

from typing import ClassVar, Literal, final

import torch

from laq.core.errors import CalibrationError
from laq.core.scheme import ScaleFormat
from laq.quantizers import Codes, Feedback, Quantizer
from laq.quantizers.common.clip_search import Grid, scale_floor, search

DAMPING = 0.01
MAX_DAMPING = 1.0
CHUNK_ROWS = 4096
"""Rows quantized at a time: rows are independent, and a group of them stays in the second-level cache."""

SUB_BLOCK = 16
"""Columns between updates of the rest of a group: keeps the inner updates in cache."""


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
        self, weight: torch.Tensor, feedback: Feedback, n_levels: torch.Tensor, *, scale_format: ScaleFormat
    ) -> Codes:
        """Choose codes, scales and zero points; see `Quantizer.quantize`."""
        parts = [
            _quantize_rows(part.clone(memory_format=torch.contiguous_format), feedback, levels, scale_format)
            for part, levels in zip(weight.split(CHUNK_ROWS, 1), n_levels.split(CHUNK_ROWS, 1), strict=True)
        ]
        return Codes(
            codes=torch.cat([part.codes for part in parts], 1),
            scales=torch.cat([part.scales for part in parts], 1),
            zero_points=torch.cat([part.zero_points for part in parts], 1),
        )


def _quantize_rows(
    remaining: torch.Tensor, feedback: Feedback, n_levels: torch.Tensor, scale_format: ScaleFormat
) -> Codes:
    """Quantize [columns, rows] group by group, in place."""
    factor = feedback.factor
    assert factor is not None
    groups, rows = n_levels.shape
    group_size = len(remaining) // groups
    codes = torch.empty(remaining.shape, dtype=torch.uint8)
    scales, zeros = [], torch.empty((groups, rows))
    floor = scale_floor(remaining)
    for group in range(groups):
        here = slice(group * group_size, (group + 1) * group_size)
        block = remaining[here]
        weights = feedback.column_weights[here]
        grid = search(block, n_levels[group], weights, floor=floor, scale_format=scale_format)
        errors = _round_group(block, factor[here, here], grid, n_levels[group] - 1, codes[here])
        if here.stop < len(remaining):
            remaining[here.stop :].addmm_(factor[here, here.stop :].T, errors, alpha=-1)
        scales.append(grid.stored)
        zeros[group] = grid.zero_points
    return Codes(codes, torch.stack(scales), zeros)


def inverse_factor(hessian: torch.Tensor) -> torch.Tensor:
    """Return the upper Cholesky factor of the damped inverse; float32 [columns, columns].

    With the order reversed, H = R R' for an upper R, and the factor of the inverse is R^-1: one
    factorization and one triangular solve. Damping starts at 1 % of the mean diagonal and rises tenfold
    until the matrix is positive definite.

    Raises
    ------
    CalibrationError
        If not even a damping of 100 % suffices.
    """
    exact = hessian.double()
    mean = exact.diagonal().mean().clamp(min=1e-30)
    identity = torch.eye(len(exact), dtype=torch.float64)
    damping = DAMPING
    while damping <= MAX_DAMPING:
        lower, failed = torch.linalg.cholesky_ex((exact + identity * (damping * mean)).flip(0, 1))
        if not failed:
            factor: torch.Tensor = torch.linalg.solve_triangular(lower.flip(0, 1), identity, upper=True)
            return factor.float()
        damping *= 10
    raise CalibrationError("hessian is not positive definite even with 100 % damping", hint="raise --tokens")


def _round_group(
    block: torch.Tensor, factor: torch.Tensor, grid: Grid, top: torch.Tensor, codes: torch.Tensor
) -> torch.Tensor:
    """Round the columns of one group in place; return their scaled errors [group_size, rows]."""
    group_size = len(block)
    zero_points = grid.zero_points
    inverse_scales = grid.scales.reciprocal()
    inverse_diagonal = factor.diagonal().reciprocal().tolist()
    errors = torch.empty_like(block)
    centred = torch.empty_like(block)
    for start in range(0, group_size, SUB_BLOCK):
        stop = min(start + SUB_BLOCK, group_size)
        for j in range(start, stop):
            column = block[j]
            code = torch.addcmul(zero_points, column, inverse_scales, out=centred[j]).round_().clamp_(min=0)
            torch.minimum(code, top, out=code).sub_(zero_points)
            error = torch.addcmul(column, code, grid.scales, value=-1, out=errors[j])
            error.mul_(inverse_diagonal[j])
            if j + 1 < stop:
                block[j + 1 : stop].addr_(factor[j, j + 1 : stop], error, alpha=-1)
        if stop < group_size:
            block[stop:].addmm_(factor[start:stop, stop:].T, errors[start:stop], alpha=-1)
    codes.copy_(centred.add_(zero_points))
    return errors
