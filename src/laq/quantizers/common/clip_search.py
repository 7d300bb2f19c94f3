"""Scale and zero point of a group: the clip search that measurement and every encoder share.

This is its definition. The native kernels round every product and sum as it is rounded here, in the same
order and without fused operations, so that both give the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from laq.core.groups import TILE_ROWS
from laq.core.qtensor import LOG_STEPS, NARROW_BITS
from laq.core.scheme import ScaleFormat

SHRINK_STEPS = {
    1: (0, 1),
    2: (0, 9),
    3: (1, 9),
    4: (0, 9),
    8: (0, 6),
    16: (0, 5),
    32: (0, 4),
    64: (0, 3),
    256: (0, 2),
}
"""Eighths of an octave by which the range is tried smaller, by number of levels: [first, last).

Few levels want a range far inside of the extremes (4 levels on a Gaussian: 0.62 of it); 256 want all of it.
"""

NARROW_LEVELS = 1 << NARROW_BITS
MIN_LOG_SCALE, MAX_LOG_SCALE = -320, 240
ZERO_LOG_SCALE = -64
MAX_SPAN = 240
"""Log steps between the floor and the largest scale of a row block: one byte stores 255."""

DYNAMIC_OCTAVES = 20
"""Octaves below a row block's largest weight at which a smaller scale gains nothing."""

FACTORS = torch.exp2(torch.arange(LOG_STEPS, dtype=torch.float64) / LOG_STEPS).float()
"""2 ** (step / 8) within an octave."""

MANTISSA = (1 << 23) - 1
N_SUMS = 8
"""Running sums of an error, one for every eighth column: vectors add faster side by side than in a row."""


@dataclass(frozen=True, slots=True)
class Grid:
    """Scale and zero point of each row of one group, and the weighted squared error they leave.

    Parameters
    ----------
    scales : float32 [rows]
        Decoded scales.
    stored : int16 (log steps) or float16 [rows]
        The same as stored.
    zero_points : float32 [rows]
        Whole numbers, or halves where codes are narrow; see `laq.core.qtensor`.
    error : float32 [rows]
        Sum over columns of weight x squared error.
    """

    scales: torch.Tensor
    stored: torch.Tensor
    zero_points: torch.Tensor
    error: torch.Tensor


def search(
    block: torch.Tensor,
    n_levels: int,
    column_weights: torch.Tensor,
    *,
    floor: torch.Tensor,
    scale_format: ScaleFormat,
) -> Grid:
    """Find the scale and zero point of least weighted error for each row of a group.

    block : [group_size, rows], float32        n_levels : a key of `SHRINK_STEPS`
    column_weights : [group_size], float32        floor : [rows], float32, see `scale_floor`

    The widest scale covers the range (a log scale is rounded up, never down: rounding down clips); smaller
    ones follow in steps of 1/8 octave. Zero points are the two legal ones around the exact one.
    """
    if n_levels == 1:
        return _absent(block, column_weights, scale_format)
    low, high = block.amin(0).clamp_(max=0), block.amax(0).clamp_(min=0)
    top = torch.tensor(float(n_levels - 1))
    span = high - low
    exact = span / top
    widest = torch.minimum(torch.maximum(_steps_up(exact), floor), floor + MAX_SPAN)
    zeros = _zero_point_candidates((0 - low) / span * top, span > 0, n_levels)
    best: Grid | None = None
    for step in range(*SHRINK_STEPS[n_levels]):
        scales, stored = _candidate_scale(torch.maximum(widest - step, floor), exact, step, scale_format)
        scaled = block * scales.reciprocal()
        squared_scales = scales * scales
        for zero in zeros:
            shifted = scaled + zero
            difference = shifted.round().clamp_(min=0, max=n_levels - 1).sub_(shifted)
            error = _weighted_sum_(difference, column_weights).mul_(squared_scales)
            best = _better(best, Grid(scales, stored, zero, error))
    assert best is not None
    return best


def scale_floor(matrix: torch.Tensor) -> torch.Tensor:
    """Return the smallest log step worth using in each row of [columns, rows]; float32 [rows].

    Far below the largest weight of its row block a finer scale gains nothing, and a row block's scales must
    lie within the 32 octaves that one byte spans.
    """
    largest = torch.maximum(matrix.amax(0), -matrix.amin(0)).view(-1, TILE_ROWS).amax(1)
    steps = torch.where(largest > 0, _steps_up(largest) - LOG_STEPS * DYNAMIC_OCTAVES, ZERO_LOG_SCALE)
    return steps.clamp_(MIN_LOG_SCALE, MAX_LOG_SCALE).repeat_interleave(TILE_ROWS)


def _steps_up(values: torch.Tensor) -> torch.Tensor:
    """Return the smallest n with 2 ** (n / 8) >= value, as float32; below every floor for tiny ones and zero.

    Read from the bits of a float32: logarithms differ between libraries.
    """
    bits = values.view(torch.int32)
    above = (bits & MANTISSA)[:, None] > (FACTORS.view(torch.int32) & MANTISSA)
    return (((bits >> 23) - 127) * LOG_STEPS + above.sum(1)).float()


def _weighted_sum_(difference: torch.Tensor, column_weights: torch.Tensor) -> torch.Tensor:
    """Return the sum over columns of weight x squared difference, in a fixed order; overwrites it.

    difference : [group_size, rows]        Returns [rows]
    """
    weighted = difference.square_().mul_(column_weights[:, None]).view(-1, N_SUMS, difference.shape[1])
    sums = weighted[0]
    for part in weighted[1:]:
        sums.add_(part)
    while len(sums) > 1:
        half = len(sums) // 2
        sums = sums[:half].add_(sums[half:])
    return sums[0]


def _zero_point_candidates(exact: torch.Tensor, has_span: torch.Tensor, n_levels: int) -> list[torch.Tensor]:
    """Legal zero points around the exact one; the nearest alone for wide codes and for up to three levels.

    Without a span it is a legal whole number: a group of zeros stays exactly zero.
    """
    n_codes = 4 if n_levels == 3 else n_levels  # zero points are as wide as the codes; 3 levels take two bits
    narrow = n_levels <= NARROW_LEVELS
    step, lowest = (0.5, (n_codes / 2 - 1) / 2) if narrow else (1.0, 0.0)
    highest = lowest + step * (n_codes - 1)
    steps = torch.where(has_span, exact, n_codes // 4 if narrow else 0) / step
    if n_levels > 3 and narrow:
        below = steps.floor() * step
        return [below.clamp(lowest, highest), (below + step).clamp_(lowest, highest)]
    return [(steps.round() * step).clamp_(lowest, highest)]


def _candidate_scale(
    log_steps: torch.Tensor, exact: torch.Tensor, step: int, scale_format: ScaleFormat
) -> tuple[torch.Tensor, torch.Tensor]:
    if scale_format is ScaleFormat.LOG8:
        return decode_log_scales(log_steps), log_steps.to(torch.int16)
    stored = (exact * 2.0 ** (-step / LOG_STEPS)).clamp_(min=2.0**-24, max=65504.0).to(torch.float16)
    return stored.float(), stored


def decode_log_scales(steps: torch.Tensor) -> torch.Tensor:
    """Return 2 ** (step / 8) as `laq.core.qtensor.decode_scales` does, to the bit."""
    whole = steps.to(torch.int32)
    octave = torch.div(whole, LOG_STEPS, rounding_mode="floor")
    return torch.ldexp(FACTORS[(whole - octave * LOG_STEPS).long()], octave)


def _better(best: Grid | None, candidate: Grid) -> Grid:
    if best is None:
        return candidate
    wins = candidate.error < best.error
    return Grid(
        scales=torch.where(wins, candidate.scales, best.scales),
        stored=torch.where(wins, candidate.stored, best.stored),
        zero_points=torch.where(wins, candidate.zero_points, best.zero_points),
        error=torch.where(wins, candidate.error, best.error),
    )


def _absent(block: torch.Tensor, column_weights: torch.Tensor, scale_format: ScaleFormat) -> Grid:
    """One level: everything becomes zero."""
    zeros = torch.zeros(block.shape[1])
    stored = zeros.to(torch.int16 if scale_format is ScaleFormat.LOG8 else torch.float16)
    return Grid(zeros + 1, stored, zeros, _weighted_sum_(block.clone(), column_weights))


def dequantize_columns(
    codes: torch.Tensor, scales: torch.Tensor, zero_points: torch.Tensor, scale_format: ScaleFormat
) -> torch.Tensor:
    """Return float32 [columns, rows] from what a quantizer returned."""
    group_size = len(codes) // len(scales)
    decoded = decode_log_scales(scales) if scale_format is ScaleFormat.LOG8 else scales.float()
    centred = codes.float().view(len(scales), group_size, -1) - zero_points.float()[:, None]
    return (centred * decoded[:, None]).view(codes.shape)
