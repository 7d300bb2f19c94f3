"""Grids that can be stored: scales, zero points, and the error that they leave."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from laq.core.groups import TILE_ROWS
from laq.core.qtensor import NARROW_BITS
from laq.core.scheme import LOG_STEPS, ScaleFormat
from laq.ranges import Grid

NARROW_LEVELS = 1 << NARROW_BITS
MIN_LOG_SCALE, MAX_LOG_SCALE = -320, 240
ZERO_LOG_SCALE = -64
MAX_SPAN = 240
"""Log steps between the floor and the largest scale of a row block: one byte stores 255."""

DYNAMIC_OCTAVES = 20
"""Octaves below a row block's largest weight at which a smaller scale gains nothing."""

FACTORS = torch.exp2(torch.arange(LOG_STEPS, dtype=torch.float64) / LOG_STEPS).float()
"""2 ** (step / 8) within an octave."""

FIELDS = ("scales", "stored", "zero_points", "error")
MANTISSA = (1 << 23) - 1
SMALLEST_FLOAT16, LARGEST_FLOAT16 = 2.0**-24, 65504.0
PART_VALUES = 1 << 15
"""Weights that a method with many passes looks at together: they stay in the second-level cache."""

N_SUMS = 8
"""Running sums of an error, one for every eighth column: vectors add faster side by side than in a row."""


def in_parts(
    block: torch.Tensor,
    floor: torch.Tensor,
    search_rows: Callable[[torch.Tensor, torch.Tensor], Grid],
    *,
    n_rows: int = 0,
) -> Grid:
    """Search a block [group_size, rows] and its floor some rows at a time, side by side in one grid.

    n_rows : of a part; if not given those that make `PART_VALUES`
    """
    n_rows = max(TILE_ROWS, n_rows or PART_VALUES // len(block))
    rows = zip(block.split(n_rows, 1), floor.split(n_rows), strict=True)
    return joined([search_rows(part, its) for part, its in rows])


def joined(parts: Sequence[Grid]) -> Grid:
    """Return the rows of several grids side by side."""
    if len(parts) == 1:
        return parts[0]
    return Grid(*(torch.cat([getattr(part, name) for part in parts]) for name in FIELDS))


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


def candidate_scales(
    exact: torch.Tensor, floor: torch.Tensor, shrink_steps: tuple[int, int], scale_format: ScaleFormat
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales as float32 and as stored, from the widest down; [n_steps, rows].

    Scales that lie apart are tried from the one above the first step to the one below the last.
    """
    first, last = shrink_steps
    pitch = scale_format.pitch
    steps = torch.arange(first, last + 2 * (pitch - 1), pitch, dtype=torch.float32)[:, None]
    if scale_format.is_log:
        widest = torch.minimum(torch.maximum(steps_up(exact), floor), floor + MAX_SPAN)
        tried = torch.minimum(torch.maximum(widest - steps, floor), floor + MAX_SPAN)
        stored = (tried / pitch).ceil_().mul_(pitch).to(torch.int16)
        return decode_log_scales(stored), stored
    stored = (
        (exact * decode_log_scales(-steps))
        .clamp_(min=SMALLEST_FLOAT16, max=LARGEST_FLOAT16)
        .to(torch.float16)
    )
    return stored.float(), stored


def decode_log_scales(steps: torch.Tensor) -> torch.Tensor:
    """Return 2 ** (step / 8) as `laq.core.qtensor.decode_scales` does, to the bit."""
    whole = steps.to(torch.int32)
    octave = torch.div(whole, LOG_STEPS, rounding_mode="floor")
    return torch.ldexp(FACTORS[(whole - octave * LOG_STEPS).long()], octave)


def decoded_scales(stored: torch.Tensor, scale_format: ScaleFormat) -> torch.Tensor:
    """Return scales as float32 from how quantizers return them: log steps int16, or float16."""
    return decode_log_scales(stored) if scale_format.is_log else stored.float()


def stored_scales(
    exact: torch.Tensor, floor: torch.Tensor, scale_format: ScaleFormat, *, covering: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales as float32 and as stored: the next larger ones if `covering`, else the nearest; both [rows]."""
    if scale_format.is_log:
        half_a_step = scale_format.pitch / (2 * LOG_STEPS)
        wanted = exact if covering else exact * 2.0**-half_a_step
        scales, stored = candidate_scales(wanted, floor, (0, 1), scale_format)
        return scales[0], stored[0]
    inside = exact.clamp(min=SMALLEST_FLOAT16, max=LARGEST_FLOAT16)
    stored = inside.to(torch.float16)
    if covering:
        too_small = (stored.float() < inside).to(torch.int16)
        stored = (stored.view(torch.int16) + too_small).view(torch.float16)
    return stored.float(), stored


def zero_point_bounds(n_levels: int) -> tuple[float, float, float]:
    """Return (step, lowest, highest) of the legal zero points; see `laq.core.qtensor.zero_point_code`."""
    n_codes = 4 if n_levels == 3 else n_levels  # zero points are as wide as the codes; 3 levels take two bits
    step, lowest = (0.5, (n_codes / 2 - 1) / 2) if n_levels <= NARROW_LEVELS else (1.0, 0.0)
    return step, lowest, lowest + step * (n_codes - 1)


def whole_zero_point(n_levels: int) -> int:
    """Return a legal zero point that is a whole number: on it a group of zeros stays exactly zero."""
    n_codes = 4 if n_levels == 3 else n_levels
    return n_codes // 4 if n_levels <= NARROW_LEVELS else 0


def nearest_zero_points(exact: torch.Tensor, has_span: torch.Tensor, n_levels: int) -> torch.Tensor:
    """Return the legal zero points next to exact ones, a whole one for rows without a span; [rows]."""
    step, lowest, highest = zero_point_bounds(n_levels)
    steps = torch.where(has_span, exact, whole_zero_point(n_levels)) / step
    return (steps.round() * step).clamp_(lowest, highest)


def extremes(block: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the least and the largest value of each row, widened to contain zero; both [rows]."""
    return block.amin(0).clamp_(max=0), block.amax(0).clamp_(min=0)


def rounding_error(
    block: torch.Tensor, scales: torch.Tensor, zero_points: torch.Tensor, n_levels: int
) -> torch.Tensor:
    """Return what rounding leaves, code minus exact code, in steps of the scale; [group_size, rows]."""
    shifted = (block * scales.reciprocal()).add_(zero_points)
    return shifted.round().clamp_(min=0, max=n_levels - 1).sub_(shifted)


def grid_of(
    block: torch.Tensor,
    n_levels: int,
    column_weights: torch.Tensor,
    *,
    scales: tuple[torch.Tensor, torch.Tensor],
    zero_points: torch.Tensor,
) -> Grid:
    """Return a grid with the weighted squared error that it leaves.

    scales : as float32 and as stored, see `stored_scales`
    """
    decoded, stored = scales
    error = weighted_sum_(rounding_error(block, decoded, zero_points, n_levels), column_weights)
    return Grid(decoded, stored, zero_points, error.mul_(decoded * decoded))


def merged(is_first: torch.Tensor, first: Grid, second: Grid) -> Grid:
    """Return the rows of `first` where `is_first`, those of `second` elsewhere."""
    both = ((getattr(first, name), getattr(second, name)) for name in FIELDS)
    return Grid(*(torch.where(is_first, one, other) for one, other in both))
