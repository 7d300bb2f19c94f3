"""Scale and zero point of a group: the clip search that measurement and every encoder share.

This is its definition. The native kernels round every product and sum as it is rounded here, in the same
order and without fused operations, so that both give the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
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
TRIED_VALUES = 1 << 18
"""Values that are tried at a time, all scales and zero points of some rows: they stay near the cache."""

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
    first, last = SHRINK_STEPS[n_levels]
    n_tried = (last - first) * (2 if _has_two_zero_points(n_levels) else 1)
    n_rows = max(TILE_ROWS, TRIED_VALUES // (len(block) * n_tried))
    rows = zip(block.split(n_rows, 1), floor.split(n_rows), strict=True)
    return joined([_search_rows(part, n_levels, column_weights, its, scale_format) for part, its in rows])


def _search_rows(
    block: torch.Tensor,
    n_levels: int,
    column_weights: torch.Tensor,
    floor: torch.Tensor,
    scale_format: ScaleFormat,
) -> Grid:
    low, high = block.amin(0).clamp_(max=0), block.amax(0).clamp_(min=0)
    top = torch.tensor(float(n_levels - 1))
    span = high - low
    scales, stored = candidate_scales(span / top, floor, SHRINK_STEPS[n_levels], scale_format)
    zeros = _zero_point_candidates((0 - low) / span * top, span > 0, n_levels)
    scaled = block * scales.reciprocal()[:, None]
    shifted = scaled[:, None] + zeros[:, None]  # [n_steps, n_zeros, group_size, rows]
    difference = shifted.round().clamp_(min=0, max=n_levels - 1).sub_(shifted)
    errors = weighted_sum_(difference, column_weights).mul_((scales * scales)[:, None]).flatten(0, 1)
    best = errors.argmin(0, keepdim=True)  # the first of equal ones
    step, zero = best // len(zeros), best % len(zeros)
    chosen = (scales.gather(0, step), stored.gather(0, step), zeros.gather(0, zero), errors.gather(0, best))
    return Grid(*(field[0] for field in chosen))


def joined(parts: Sequence[Grid]) -> Grid:
    """Return the rows of several grids side by side."""
    if len(parts) == 1:
        return parts[0]
    names = ("scales", "stored", "zero_points", "error")
    fields = (torch.cat([getattr(part, name) for part in parts]) for name in names)
    return Grid(*fields)


def scale_floor(matrix: torch.Tensor) -> torch.Tensor:
    """Return the smallest log step worth using in each row of [columns, rows]; float32 [rows].

    Far below the largest weight of its row block a finer scale gains nothing, and a row block's scales must
    lie within the 32 octaves that one byte spans.
    """
    largest = torch.maximum(matrix.amax(0), -matrix.amin(0)).view(-1, TILE_ROWS).amax(1)
    steps = torch.where(largest > 0, steps_up(largest) - LOG_STEPS * DYNAMIC_OCTAVES, ZERO_LOG_SCALE)
    return steps.clamp_(MIN_LOG_SCALE, MAX_LOG_SCALE).repeat_interleave(TILE_ROWS)


def steps_up(values: torch.Tensor) -> torch.Tensor:
    """Return the smallest n with 2 ** (n / 8) >= value, as float32; below every floor for tiny ones and zero.

    Read from the bits of a float32: logarithms differ between libraries.
    """
    bits = values.view(torch.int32)
    above = (bits & MANTISSA)[:, None] > (FACTORS.view(torch.int32) & MANTISSA)
    return (((bits >> 23) - 127) * LOG_STEPS + above.sum(1)).float()


def weighted_sum_(difference: torch.Tensor, column_weights: torch.Tensor) -> torch.Tensor:
    """Return the sum over columns of weight x squared difference, in a fixed order; overwrites it.

    difference : [..., group_size, rows]        Returns [..., rows]
    """
    weighted = difference.square_().mul_(column_weights[:, None])
    sums, *rest = weighted.unflatten(-2, (-1, N_SUMS)).unbind(-3)
    for part in rest:
        sums.add_(part)
    while sums.shape[-2] > 1:
        half, other = sums.chunk(2, -2)
        sums = half.add_(other)
    result: torch.Tensor = sums.squeeze(-2)
    return result


def _has_two_zero_points(n_levels: int) -> bool:
    """Say whether both neighbours of the exact zero point are tried: with few levels it matters."""
    return 3 < n_levels <= NARROW_LEVELS


def _zero_point_candidates(exact: torch.Tensor, has_span: torch.Tensor, n_levels: int) -> torch.Tensor:
    """Legal zero points around the exact one; the nearest alone for wide codes and for up to three levels.

    Without a span it is a legal whole number: a group of zeros stays exactly zero. Returns [n_zeros, rows].
    """
    n_codes = 4 if n_levels == 3 else n_levels  # zero points are as wide as the codes; 3 levels take two bits
    narrow = n_levels <= NARROW_LEVELS
    step, lowest = (0.5, (n_codes / 2 - 1) / 2) if narrow else (1.0, 0.0)
    highest = lowest + step * (n_codes - 1)
    steps = torch.where(has_span, exact, n_codes // 4 if narrow else 0) / step
    if _has_two_zero_points(n_levels):
        below = steps.floor() * step
        return torch.stack([below, below + step]).clamp_(lowest, highest)
    return (steps.round() * step).clamp_(lowest, highest)[None]


def candidate_scales(
    exact: torch.Tensor, floor: torch.Tensor, shrink_steps: tuple[int, int], scale_format: ScaleFormat
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales as float32 and as stored, from the widest down; [n_steps, rows]."""
    steps = torch.arange(*shrink_steps, dtype=torch.float32)[:, None]
    if scale_format.is_log:
        widest = torch.minimum(torch.maximum(steps_up(exact), floor), floor + MAX_SPAN)
        stored = torch.minimum(torch.maximum(widest - steps, floor), floor + MAX_SPAN).to(torch.int16)
        return decode_log_scales(stored), stored
    stored = (exact * decode_log_scales(-steps)).clamp_(min=2.0**-24, max=65504.0).to(torch.float16)
    return stored.float(), stored


def decode_log_scales(steps: torch.Tensor) -> torch.Tensor:
    """Return 2 ** (step / 8) as `laq.core.qtensor.decode_scales` does, to the bit."""
    whole = steps.to(torch.int32)
    octave = torch.div(whole, LOG_STEPS, rounding_mode="floor")
    return torch.ldexp(FACTORS[(whole - octave * LOG_STEPS).long()], octave)


def _absent(block: torch.Tensor, column_weights: torch.Tensor, scale_format: ScaleFormat) -> Grid:
    """One level: everything becomes zero."""
    zeros = torch.zeros(block.shape[1])
    stored = zeros.to(torch.int16 if scale_format.is_log else torch.float16)
    return Grid(zeros + 1, stored, zeros, weighted_sum_(block.clone(), column_weights))
