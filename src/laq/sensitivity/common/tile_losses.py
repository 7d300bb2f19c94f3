"""The loss of every tile at every candidate format, from weights, moments and the quantizer's own search.

The loss of a change dW is 1/2 sum_i G_i dW_i H dW_i'. The quantizer says what a squared rounding error in
each column costs under its own feedback; the range that it will use says how large that error is. A
short run of the quantizer itself, at two widths of every family of formats on a sample of rows, corrects
what is left.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from laq.core.formats import CANDIDATES, TRELLISES, Format
from laq.core.formats.integer import INT2, INT4
from laq.core.groups import TILE_ROWS
from laq.core.importance import FLOOR_SUPPORT, Importance
from laq.core.permutation import IndexArray
from laq.core.scheme import ScaleFormat
from laq.quantizers import Feedback, Quantizer
from laq.quantizers.common.sorting import SortedWeight
from laq.quantizers.common.trial import tried_losses
from laq.ranges.common.grid import scale_floor

CORRECTION_FORMATS: tuple[tuple[Format, Format], ...] = ((INT2, INT4), (TRELLISES[2], TRELLISES[4]))
"""Two of each family, with which error feedback is run; in between the gain is interpolated."""

CORRECTION_CHOICES = [CANDIDATES.index(each) for family in CORRECTION_FORMATS for each in family]

CORRECTION_ROW_BLOCKS = 6


TileLosses = npt.NDArray[np.float32]
"""Curves of the tiles of one weight; [n_candidates, n_row_blocks, n_groups]."""


@dataclass(frozen=True, slots=True)
class Tiled:
    """A weight in the order of its tiles, and everything its curves may rest on.

    Parameters
    ----------
    weight : SortedWeight
        Values and what their errors cost.
    quantizer : Quantizer
        Method that will pick codes.
    feedback : Feedback
        What it prepared from the shared hessian.
    importance : Importance
        Estimates and their support, in the source's order.
    columns : uint16 or uint32 [n_columns], or None
        The shared order of columns.
    scale_format : ScaleFormat
        How scales are stored.
    """

    weight: SortedWeight
    quantizer: Quantizer
    feedback: Feedback
    importance: Importance
    columns: IndexArray | None
    scale_format: ScaleFormat


def tile_losses(tiled: Tiled) -> TileLosses:
    """Return the curve of every tile; nats per token if the rows' importance is.

    Formats under two bits are infinite where the statistics do not support them.
    """
    weight, feedback, scale_format = tiled.weight, tiled.feedback, tiled.scale_format
    losses = rounding_losses(tiled, weight, feedback.column_weights)
    losses *= _correction(weight, tiled.quantizer, feedback, losses, scale_format)[:, None, None]
    unsupported = _unsupported(weight, tiled.importance, tiled.columns)
    for index, candidate in enumerate(CANDIDATES):
        if candidate.n_levels < 4:
            losses[index][unsupported] = np.inf
    return losses


def rounding_losses(tiled: Tiled, weight: SortedWeight, column_weights: torch.Tensor) -> TileLosses:
    """Return 1/2 sum_ij rows_i columns_j e_ij^2 over the rounding errors of every tile.

    Parameters
    ----------
    tiled : Tiled
        Its quantizer's engine searches scales.
    weight : SortedWeight
        Its `rows` weigh the rows.
    column_weights : float32 [padded_columns]
        What a squared error in each column costs; the search of scales uses the same.
    """
    grid = weight.grid
    errors = tiled.quantizer.engine.errors(
        weight.matrix,
        column_weights,
        group_size=grid.group_size,
        floor=scale_floor(weight.matrix),
        scale_format=tiled.scale_format,
    )
    by_tile = errors.mul_(0.5 * weight.rows).view(-1, grid.n_groups, grid.n_row_blocks, TILE_ROWS).sum(3)
    return np.ascontiguousarray(by_tile.transpose(1, 2).numpy())


def _correction(
    weight: SortedWeight,
    quantizer: Quantizer,
    feedback: Feedback,
    losses: TileLosses,
    scale_format: ScaleFormat,
) -> npt.NDArray[np.float32]:
    """Measured over predicted loss, from two widths a family on a sample of row blocks; [n_candidates]."""
    n_blocks = weight.grid.n_row_blocks
    picked = np.unique(np.linspace(0, n_blocks - 1, min(CORRECTION_ROW_BLOCKS, n_blocks)).astype(np.int64))
    index = torch.from_numpy((picked[:, None] * TILE_ROWS + np.arange(TILE_ROWS)).ravel())
    sample = SortedWeight(weight.grid, weight.matrix[:, index], weight.hessian, weight.rows[index], None)
    measured = tried_losses(sample, quantizer, feedback, CORRECTION_CHOICES, scale_format=scale_format)
    predicted = losses[CORRECTION_CHOICES][:, picked].sum((1, 2), dtype=np.float64)
    if not (predicted > 0).all() or not (measured > 0).all():
        return np.ones(len(CANDIDATES), np.float32)
    by_family = np.split(np.log(measured / predicted), len(CORRECTION_FORMATS))
    ratios = np.zeros(len(CANDIDATES))
    for family, logarithms in zip(CORRECTION_FORMATS, by_family, strict=True):
        members = [i for i, candidate in enumerate(CANDIDATES) if isinstance(candidate, type(family[0]))]
        widths = [max(CANDIDATES[i].code_bits, 1) for i in members]
        ratios[members] = np.interp(widths, [each.code_bits for each in family], logarithms)
    return np.asarray(np.exp(ratios), np.float32)


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
