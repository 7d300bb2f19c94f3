"""Fisher x measured encoder error: the loss of every tile at every candidate format.

The loss of a change dW is 1/2 sum_i G_i dW_i H dW_i'. The quantizer says what a squared rounding error in
each column costs under its own feedback; the clip search that it will use says how large that error is. A
short run of the quantizer itself, at two widths on a sample of rows, corrects what is left.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from laq.core.formats import CANDIDATES
from laq.core.groups import TILE_ROWS
from laq.core.importance import FLOOR_SUPPORT, Importance
from laq.core.permutation import IndexArray
from laq.core.scheme import ScaleFormat
from laq.quantizers import Feedback, Quantizer
from laq.quantizers.common.clip_search import dequantize_columns, scale_floor, search
from laq.quantizers.common.sorting import SortedWeight

CORRECTION_BITS = (2, 4)
"""Widths at which error feedback is run; in between the gain is interpolated."""

CORRECTION_ROW_BLOCKS = 6
CHUNK_ROWS = 4096
"""Rows measured at a time: a group of them stays in the second-level cache."""


def tile_losses(
    weight: SortedWeight,
    quantizer: Quantizer,
    feedback: Feedback,
    importance: Importance,
    *,
    columns: IndexArray | None,
    scale_format: ScaleFormat,
) -> npt.NDArray[np.float32]:
    """Return the curve of every tile; float32 [n_candidates, n_row_blocks, n_groups], nats per token.

    Formats under two bits are infinite where the statistics do not support them.
    """
    losses = _rounding_losses(weight, feedback, scale_format)
    losses *= _correction(weight, quantizer, feedback, scale_format)[:, None, None]
    unsupported = _unsupported(weight, importance, columns)
    for index, candidate in enumerate(CANDIDATES):
        if candidate.n_levels < 4:
            losses[index][unsupported] = np.inf
    return losses


def _rounding_losses(
    weight: SortedWeight, feedback: Feedback, scale_format: ScaleFormat
) -> npt.NDArray[np.float32]:
    """Losses of independent rounding errors under the quantizer's own column weights."""
    grid = weight.grid
    column_weights = feedback.column_weights
    losses = np.empty((len(CANDIDATES), grid.n_row_blocks, grid.n_groups), np.float32)
    for start in range(0, grid.padded_rows, CHUNK_ROWS):
        rows = weight.rows[start : start + CHUNK_ROWS]
        blocks = slice(start // TILE_ROWS, start // TILE_ROWS + len(rows) // TILE_ROWS)
        floor = scale_floor(weight.matrix[:, start : start + CHUNK_ROWS])
        for group in range(grid.n_groups):
            here = slice(group * grid.group_size, (group + 1) * grid.group_size)
            block = weight.matrix[here, start : start + CHUNK_ROWS].contiguous()
            for index, candidate in enumerate(CANDIDATES):
                n_levels = torch.full((len(rows),), float(candidate.n_levels))
                found = search(block, n_levels, column_weights[here], floor=floor, scale_format=scale_format)
                losses[index, blocks, group] = (0.5 * rows * found.error).view(-1, TILE_ROWS).sum(1).numpy()
    return losses


def _correction(
    weight: SortedWeight, quantizer: Quantizer, feedback: Feedback, scale_format: ScaleFormat
) -> npt.NDArray[np.float32]:
    """Measured over predicted loss, from two widths on a sample of row blocks; [n_candidates]."""
    n_blocks = weight.grid.n_row_blocks
    picked = np.unique(np.linspace(0, n_blocks - 1, min(CORRECTION_ROW_BLOCKS, n_blocks)).astype(np.int64))
    index = torch.from_numpy((picked[:, None] * TILE_ROWS + np.arange(TILE_ROWS)).ravel())
    sample = SortedWeight(weight.grid, weight.matrix[:, index], weight.hessian, weight.rows[index], None)
    ratios = _feedback_ratios(sample, quantizer, feedback, scale_format)
    widths = np.array([max(candidate.code_bits, 1) for candidate in CANDIDATES])
    return np.asarray(np.exp(np.interp(widths, CORRECTION_BITS, np.log(ratios))), np.float32)


def _feedback_ratios(
    sample: SortedWeight, quantizer: Quantizer, feedback: Feedback, scale_format: ScaleFormat
) -> npt.NDArray[np.float64]:
    """Loss under the full hessian over the sum of independent rounding errors, at each correction width."""
    grid, n = sample.grid, sample.matrix.shape[1]
    levels = torch.tensor([float(1 << bits) for bits in CORRECTION_BITS]).repeat_interleave(n)
    both = sample.matrix.repeat(1, len(CORRECTION_BITS))
    n_levels = levels.expand(grid.n_groups, -1).contiguous()
    codes = quantizer.quantize(both, feedback, n_levels, scale_format=scale_format)
    error = dequantize_columns(codes.codes, codes.scales, codes.zero_points, scale_format) - both
    measured = ((sample.hessian @ error) * error).sum(0)
    column_weights = feedback.column_weights.view(grid.n_groups, -1)
    expected = torch.zeros_like(measured)
    floor = scale_floor(both)
    for group, block in enumerate(both.view(grid.n_groups, grid.group_size, -1)):
        weights = column_weights[group]
        expected += search(block, n_levels[group], weights, floor=floor, scale_format=scale_format).error
    weighted = sample.rows.repeat(len(CORRECTION_BITS))
    totals = [
        (weighted * loss).view(len(CORRECTION_BITS), n).sum(1).double().numpy()
        for loss in (measured, expected)
    ]
    if not (totals[1] > 0).all() or not (totals[0] > 0).all():
        return np.ones(len(CORRECTION_BITS))
    return np.asarray(totals[0] / totals[1])


def _unsupported(
    weight: SortedWeight, importance: Importance, columns: IndexArray | None
) -> npt.NDArray[np.bool_]:
    """Say which tiles rest on too few samples, by the mean support of their rows or columns."""
    grid = weight.grid
    row_support = np.full(grid.padded_rows, np.nan)
    rows = slice(None) if weight.row_permutation is None else weight.row_permutation
    row_support[: grid.n_rows] = importance.row_support[rows]
    column_support = np.full(grid.padded_columns, np.nan)
    column_support[: grid.n_columns] = importance.column_support[slice(None) if columns is None else columns]
    by_row = np.nanmin(row_support.reshape(-1, TILE_ROWS), axis=1) < FLOOR_SUPPORT
    by_column = np.nanmean(column_support.reshape(grid.n_groups, -1), axis=1) < FLOOR_SUPPORT
    return np.asarray(by_row[:, None] | by_column[None, :])
