"""The clip search: scale and zero point of least weighted error, over ranges shrunk in steps.

This is its definition. The native kernels round every product and sum as it is rounded here, in the same
order and without fused operations, so that both give the same bits.
"""

from __future__ import annotations

import torch

from laq.core.groups import GROUP_SIZES
from laq.core.scheme import LOG_STEPS, ScaleFormat
from laq.ranges import Grid
from laq.ranges.common.grid import (
    NARROW_LEVELS,
    candidate_scales,
    extremes,
    in_parts,
    nearest_zero_points,
    rounding_error,
    weighted_sum_,
    whole_zero_point,
    zero_point_bounds,
)

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

FURTHER_STEPS = LOG_STEPS
"""Units longer than any group hold values of more kinds: their range is tried smaller by an octave more."""

TRIED_VALUES = 1 << 18
"""Values that are tried at a time, all scales and zero points of some rows: they stay near the cache."""


WHOLE_ROWS = 256
"""Rows of a matrix that are looked at together, where all of it shares a scale."""


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
    first, last = _shrink_steps(n_levels, len(block))
    n_tried = (last - first) * (2 if _has_two_zero_points(n_levels) else 1)
    return in_parts(
        block,
        floor,
        lambda part, its: _search_rows(part, n_levels, column_weights, its, scale_format),
        n_rows=TRIED_VALUES // (len(block) * n_tried),
    )


def search_whole(  # noqa: PLR0913 - what a search rests on, by keyword
    matrix: torch.Tensor,
    n_levels: int,
    column_weights: torch.Tensor,
    rows: torch.Tensor,
    *,
    ends: torch.Tensor,
    floor: torch.Tensor,
    scale_format: ScaleFormat,
) -> Grid:
    """Find the scale and zero point of least weighted error for all of a matrix; see `search`.

    matrix : [columns, rows], float32        rows : [rows], float32, what a squared error in each row costs
    ends : [n, 1], float32, the least and the largest value among them
    """
    low, high = extremes(ends)
    top, span = torch.tensor(float(n_levels - 1)), high - low
    scales, stored = candidate_scales(
        span / top, floor, _shrink_steps(n_levels, matrix.numel()), scale_format
    )
    zeros = _zero_point_candidates((0 - low) / span * top, span > 0, n_levels)
    tried = []
    for scale, its in zip(scales, stored, strict=True):
        for zero in zeros:
            left = torch.zeros((), dtype=torch.float64)
            for part, weights in zip(matrix.split(WHOLE_ROWS, 1), rows.split(WHOLE_ROWS), strict=True):
                error = rounding_error(part, scale, zero, n_levels)
                left += (weighted_sum_(error, column_weights) * weights).sum(dtype=torch.float64)
            tried.append(Grid(scale, its, zero, (left * (scale * scale)).float()))
    return min(tried, key=lambda grid: float(grid.error))


def _search_rows(
    block: torch.Tensor,
    n_levels: int,
    column_weights: torch.Tensor,
    floor: torch.Tensor,
    scale_format: ScaleFormat,
) -> Grid:
    low, high = extremes(block)
    top = torch.tensor(float(n_levels - 1))
    span = high - low
    scales, stored = candidate_scales(span / top, floor, _shrink_steps(n_levels, len(block)), scale_format)
    zeros = _zero_point_candidates((0 - low) / span * top, span > 0, n_levels)
    scaled = block * scales.reciprocal()[:, None]
    shifted = scaled[:, None] + zeros[:, None]  # [n_steps, n_zeros, group_size, rows]
    difference = shifted.round().clamp_(min=0, max=n_levels - 1).sub_(shifted)
    errors = weighted_sum_(difference, column_weights).mul_((scales * scales)[:, None]).flatten(0, 1)
    best = errors.argmin(0, keepdim=True)  # the first of equal ones
    step, zero = best // len(zeros), best % len(zeros)
    chosen = (scales.gather(0, step), stored.gather(0, step), zeros.gather(0, zero), errors.gather(0, best))
    return Grid(*(field[0] for field in chosen))


def _shrink_steps(n_levels: int, n_values: int) -> tuple[int, int]:
    first, last = SHRINK_STEPS[n_levels]
    return first, last + FURTHER_STEPS * (n_values > max(GROUP_SIZES))


def _has_two_zero_points(n_levels: int) -> bool:
    """Say whether both neighbours of the exact zero point are tried: with few levels it matters."""
    return 3 < n_levels <= NARROW_LEVELS


def _zero_point_candidates(exact: torch.Tensor, has_span: torch.Tensor, n_levels: int) -> torch.Tensor:
    """Legal zero points around the exact one; the nearest alone for wide codes and for up to three levels.

    Without a span it is a legal whole number: a group of zeros stays exactly zero. Returns [n_zeros, rows].
    """
    if not _has_two_zero_points(n_levels):
        return nearest_zero_points(exact, has_span, n_levels)[None]
    step, lowest, highest = zero_point_bounds(n_levels)
    below = (torch.where(has_span, exact, whole_zero_point(n_levels)) / step).floor() * step
    return torch.stack([below, below + step]).clamp_(lowest, highest)
