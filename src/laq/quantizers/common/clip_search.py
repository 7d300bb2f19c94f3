"""Scale and zero point of a group: the clip search that measurement and every encoder share."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from laq.core.groups import TILE_ROWS
from laq.core.qtensor import LOG_STEPS, NARROW_BITS
from laq.core.scheme import ScaleFormat

SHRINK_STEPS = {2: (0, 9), 3: (1, 9), 4: (2, 9), 8: (0, 6), 16: (0, 5), 32: (0, 4), 64: (0, 3), 256: (0, 2)}
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
    n_levels: torch.Tensor,
    column_weights: torch.Tensor,
    *,
    floor: torch.Tensor,
    scale_format: ScaleFormat,
) -> Grid:
    """Find the scale and zero point of least weighted error for each row of a group.

    block : [group_size, rows], float32        n_levels : [rows], float32
    column_weights : [group_size], float32        floor : [rows], float32, see `scale_floor`

    The widest scale covers the range (a log scale is rounded up, never down: rounding down clips); smaller
    ones follow in steps of 1/8 octave. Zero points are the two legal ones around the exact one.
    """
    low, high = block.amin(0).clamp_(max=0), block.amax(0).clamp_(min=0)
    top = (n_levels - 1).clamp(min=1)
    span = high - low
    widest = torch.ceil(LOG_STEPS * torch.log2(span / top))
    widest = torch.minimum(torch.maximum(widest, floor), floor + MAX_SPAN)
    first, last = _steps(n_levels)
    zeros = _zero_point_candidates(torch.where(span > 0, -low / span * top, _whole_zero(n_levels)), n_levels)
    best: Grid | None = None
    for step in range(first, last):
        scales, stored = _candidate_scale(torch.maximum(widest - step, floor), span / top, step, scale_format)
        scaled = block / scales
        squared_scales = scales * scales
        for zero in zeros:
            shifted = scaled + zero
            difference = shifted.round().clamp_(min=0)
            difference = torch.minimum(difference, top).sub_(shifted)
            error = (column_weights @ difference.square_()).mul_(squared_scales)
            best = _better(best, Grid(scales, stored, zero, error))
    assert best is not None
    return _without_absent(best, block, n_levels, column_weights)


def scale_floor(matrix: torch.Tensor) -> torch.Tensor:
    """Return the smallest log step worth using in each row of [columns, rows]; float32 [rows].

    Far below the largest weight of its row block a finer scale gains nothing, and a row block's scales must
    lie within the 32 octaves that one byte spans.
    """
    largest = matrix.abs().amax(0).view(-1, TILE_ROWS).amax(1)
    steps = torch.where(largest > 0, LOG_STEPS * (torch.log2(largest) - DYNAMIC_OCTAVES), ZERO_LOG_SCALE)
    return steps.floor().clamp_(MIN_LOG_SCALE, MAX_LOG_SCALE).repeat_interleave(TILE_ROWS)


def _zero_point_candidates(exact: torch.Tensor, n_levels: torch.Tensor) -> list[torch.Tensor]:
    """Legal zero points around the exact one; the nearest alone for wide codes and for up to three levels."""
    top = n_levels - 1
    narrow = n_levels <= NARROW_LEVELS
    step = torch.where(narrow, 0.5, 1.0)
    lowest = torch.where(narrow, _lowest_half(n_levels), 0.0)
    highest = torch.where(narrow, lowest + 0.5 * (_n_codes(n_levels) - 1), top)
    nearest = (exact / step).round() * step
    if not bool(((n_levels > 3) & narrow).any()):
        return [torch.minimum(torch.maximum(nearest, lowest), highest)]
    below = (exact / step).floor() * step
    return [torch.minimum(torch.maximum(zero, lowest), highest) for zero in (below, below + step)]


def _whole_zero(n_levels: torch.Tensor) -> torch.Tensor:
    """A legal whole zero point: a group of zeros stays exactly zero."""
    return torch.where(n_levels <= NARROW_LEVELS, (_n_codes(n_levels) / 4).floor(), 0.0)


def _n_codes(n_levels: torch.Tensor) -> torch.Tensor:
    """Zero points are as wide as the codes: 2 ** code_bits; three levels take two bits."""
    return torch.where(n_levels == 3, 4.0, n_levels)


def _lowest_half(n_levels: torch.Tensor) -> torch.Tensor:
    return (_n_codes(n_levels) / 2 - 1) / 2


def _steps(n_levels: torch.Tensor) -> tuple[int, int]:
    bounds = [SHRINK_STEPS[int(n)] for n in torch.unique(n_levels).tolist() if n > 1]
    return (min(b[0] for b in bounds), max(b[1] for b in bounds)) if bounds else (0, 1)


def _candidate_scale(
    log_steps: torch.Tensor, exact: torch.Tensor, step: int, scale_format: ScaleFormat
) -> tuple[torch.Tensor, torch.Tensor]:
    if scale_format is ScaleFormat.LOG8:
        return decode_log_scales(log_steps), log_steps.to(torch.int16)
    stored = (exact * 2.0 ** (-step / LOG_STEPS)).clamp_(min=2.0**-24, max=65504.0).to(torch.float16)
    return stored.float(), stored


def decode_log_scales(steps: torch.Tensor) -> torch.Tensor:
    """Return 2 ** (step / 8) as `laq.core.qtensor.decode_scales` does, to the bit."""
    factors = torch.exp2(torch.arange(LOG_STEPS, dtype=torch.float64) / LOG_STEPS).float()
    whole = steps.to(torch.int32)
    octave = torch.div(whole, LOG_STEPS, rounding_mode="floor")
    return torch.ldexp(factors[(whole - octave * LOG_STEPS).long()], octave)


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


def _without_absent(
    grid: Grid, block: torch.Tensor, n_levels: torch.Tensor, column_weights: torch.Tensor
) -> Grid:
    """Rows with one level are absent: everything becomes zero."""
    absent = n_levels <= 1
    if not bool(absent.any()):
        return grid
    energy = column_weights @ block.square()
    zero = torch.zeros((), dtype=torch.float32)
    return Grid(
        scales=torch.where(absent, torch.ones(()), grid.scales),
        stored=torch.where(absent, torch.zeros((), dtype=grid.stored.dtype), grid.stored),
        zero_points=torch.where(absent, zero, grid.zero_points),
        error=torch.where(absent, energy, grid.error),
    )


def dequantize_columns(
    codes: torch.Tensor, scales: torch.Tensor, zero_points: torch.Tensor, scale_format: ScaleFormat
) -> torch.Tensor:
    """Return float32 [columns, rows] from what a quantizer returned."""
    group_size = len(codes) // len(scales)
    decoded = decode_log_scales(scales) if scale_format is ScaleFormat.LOG8 else scales.float()
    centred = codes.float().view(len(scales), group_size, -1) - zero_points.float()[:, None]
    return (centred * decoded[:, None]).view(codes.shape)
