"""Rounding with error feedback: the factor of the inverse hessian, and the loop over groups of columns."""

from __future__ import annotations

import torch

from laq.core.errors import CalibrationError
from laq.core.groups import TILE_ROWS
from laq.core.scheme import ScaleFormat
from laq.quantizers import Codes, Feedback
from laq.quantizers.common.engine import Columns, Engine
from laq.ranges.common.grid import scale_floor

DAMPING = 0.01
MAX_DAMPING = 1.0
SOLVED_COLUMNS = 128
CHUNK_ROWS = 4096
"""Rows quantized at a time: rows are independent, and a group of them stays in the second-level cache."""


def inverse_feedback(hessian: torch.Tensor) -> Feedback:
    """Factor the inverse hessian, float32 [columns, columns]; see `laq.quantizers.gptq` for column weights.

    Raises
    ------
    CalibrationError
        If not even a damping of 100 % makes it positive definite.
    """
    factor = inverse_factor(hessian)
    return Feedback((factor.diagonal().pow(-2) * hessian.diagonal()).sqrt(), factor)


def round_with_feedback(
    engine: Engine,
    weight: torch.Tensor,
    feedback: Feedback,
    choices: torch.Tensor,
    *,
    scale_format: ScaleFormat,
) -> Codes:
    """Round group by group and spread what is left over later groups; see `Quantizer.quantize`."""
    n_blocks = CHUNK_ROWS // TILE_ROWS
    feedback = feedback.with_fixed(engine, weight, choices, scale_format)
    parts = [
        _round_rows(
            engine,
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


def _round_rows(
    engine: Engine,
    remaining: torch.Tensor,
    feedback: Feedback,
    choices: torch.Tensor,
    scale_format: ScaleFormat,
) -> Codes:
    """Quantize [columns, rows] group by group; overwrites it."""
    factor = feedback.factor
    assert factor is not None
    groups, rows = len(choices), remaining.shape[1]
    group_size = len(remaining) // groups
    codes = torch.empty(remaining.shape, dtype=torch.uint8)
    scales, zeros = [], torch.empty((groups, rows))
    columns = Columns(
        remaining,
        feedback.column_weights,
        scale_floor(remaining),
        scale_format,
        palettes=feedback.palettes,
        fixed=feedback.fixed,
    )
    for group in range(groups):
        here = slice(group * group_size, (group + 1) * group_size)
        rounded = engine.round(columns.part(here), choices[group], factor=factor[here, here])
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
