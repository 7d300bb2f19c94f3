"""Trellis codes of a group: the scale by prediction, the codes by Viterbi's algorithm.

This is its definition, as `laq.ranges.common.clip_search` is that of integers: the native kernels give the
same bits.
"""

from __future__ import annotations

import torch

from laq.core.formats import Trellis
from laq.core.formats.trellis import CHAINS, MIDDLE, WINDOW_BITS
from laq.core.groups import TILE_ROWS
from laq.core.scheme import ScaleFormat
from laq.ranges import Grid
from laq.ranges.common.grid import candidate_scales, weighted_sum_

FIRST_STEP, LAST_STEP = -8, 16
"""Eighths of an octave by which a scale is tried smaller than where the table reaches the largest value."""

LARGEST = 127.0
UNREACHED = 1e30
"""Cost of a path that does not start at the state given."""


def error_terms(trellis: Trellis) -> tuple[float, float, float]:
    """Return (a, c, d): a value v in steps of the scale has a squared error of about a + c v^4 + d v^6."""
    a, c, d = trellis.error_terms
    return a * trellis.unit**2, c / trellis.unit**2, d / trellis.unit**4


def search_trellis(
    block: torch.Tensor,
    trellis: Trellis,
    column_weights: torch.Tensor,
    *,
    floor: torch.Tensor,
    scale_format: ScaleFormat,
) -> Grid:
    """Predict the scale of least weighted error for each row of a group, and that error.

    Encoding with every scale would not tell them apart better: rows share a path, so that one with too small
    a scale costs its neighbours.

    block : [group_size, rows], float32        column_weights : [group_size], float32
    floor : [rows], float32, see `laq.ranges.common.grid.scale_floor`
    """
    exact = torch.maximum(block.amax(0), -block.amin(0)) / LARGEST
    if not scale_format.is_log:
        exact = exact.clamp(min=2.0**-24)
    scales, stored = candidate_scales(exact, floor, (FIRST_STEP, LAST_STEP), scale_format)
    reference = scales[-FIRST_STEP // scale_format.pitch] if scale_format.is_log else exact
    a, c, d = (torch.tensor(term, dtype=torch.float32) for term in error_terms(trellis))
    values = block * reference.reciprocal()
    squares = values * values
    constant = a * weighted_sum_(torch.ones_like(values), column_weights)
    fourth = c * weighted_sum_(squares.clone(), column_weights)
    sixth = d * weighted_sum_(squares * values, column_weights)
    ratio = scales / reference
    ratio = ratio * ratio
    inverse = ratio.reciprocal()
    errors = (sixth * inverse + fourth) * inverse + constant * ratio
    best = errors.argmin(0, keepdim=True)
    middle = torch.full_like(reference, float(MIDDLE))
    error = errors.gather(0, best)[0] * (reference * reference)
    return Grid(scales.gather(0, best)[0], stored.gather(0, best)[0], middle, error)


def round_trellis(
    block: torch.Tensor, trellis: Trellis, grid: Grid, factor: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Encode column by column, each with the next of its chain in view; errors go to later columns.

    block : [group_size, rows], float32
    factor : [group_size, group_size], float32, how errors spread; None without feedback

    Returns codes uint8 and errors over the factor's diagonal, float32, both [group_size, rows]; errors are
    empty without a factor.
    """
    remaining, codes = block.clone(), torch.empty(block.shape, dtype=torch.uint8)
    errors = torch.empty(block.shape if factor is not None else 0)
    inverse_scales = grid.scales.reciprocal()
    table = torch.from_numpy(trellis.table.copy()).float() - MIDDLE
    states = [torch.zeros(block.shape[1] // TILE_ROWS, dtype=torch.int64) for _ in range(CHAINS)]
    for j, column in enumerate(remaining):
        scaled = (remaining[j : j + CHAINS + 1 : CHAINS] * inverse_scales).view(-1, TILE_ROWS)
        path = scaled.view(-1, len(states[0]), TILE_ROWS).transpose(0, 1).reshape(len(states[0]), -1)
        windows, states[j % CHAINS] = _cheapest_path(path, trellis.code_bits, states[j % CHAINS], table)
        codes[j] = (windows & (trellis.n_levels - 1)).ravel().to(torch.uint8)
        if factor is not None:
            error = (column - table[windows].view(-1) * grid.scales) * factor[j, j].reciprocal()
            errors[j] = error
            remaining[j + 1 :] -= factor[j, j + 1 :, None] * error
    return codes, errors


def _cheapest_path(
    values: torch.Tensor, bits: int, state: torch.Tensor, table: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return windows [n, 16] of the first 16 values, and the states after them.

    values : [n, 16 or 32], in steps of the scale        state : int64 [n], codes before, newest lowest
    """
    n, length = values.shape
    n_states = 1 << (WINDOW_BITS - bits)
    costs = torch.full((n, n_states), UNREACHED)
    costs.scatter_(1, state[:, None], 0.0)
    oldest = []
    for t in range(length):
        distance = values[:, t, None] - table
        tried = distance * distance + costs.repeat_interleave(1 << bits, 1)
        by_oldest = tried.view(n, 1 << bits, n_states)
        oldest.append(by_oldest.argmin(1))
        costs = by_oldest.amin(1)
    last = costs.argmin(1)
    windows = torch.empty((n, TILE_ROWS), dtype=torch.int64)
    after = last
    for t in reversed(range(length)):
        if t == TILE_ROWS - 1:
            after = last
        window = last | oldest[t].gather(1, last[:, None])[:, 0] << (WINDOW_BITS - bits)
        if t < TILE_ROWS:
            windows[:, t] = window
        last = window >> bits
    return windows, after
