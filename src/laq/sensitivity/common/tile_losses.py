"""The loss of every tile at every candidate format, from weights, moments and the quantizer's own search.

The loss of a change dW is 1/2 sum_i G_i dW_i H dW_i'. The quantizer says what a squared rounding error in
each column costs under its own feedback; the range that it will use says how large that error is. A
short run of the quantizer itself, at two widths of every family of formats on a sample of rows, corrects
what is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from laq.core.formats import CANDIDATES, TRELLISES, Format, Palette
from laq.core.formats.integer import INT2, INT4
from laq.core.formats.table import NF4, PALETTE2, PALETTE4, TRITS
from laq.core.groups import TILE_ROWS
from laq.core.importance import FLOOR_SUPPORT, Importance
from laq.core.permutation import IndexArray
from laq.core.scale_units import ScalePer
from laq.core.scheme import ScaleFormat
from laq.quantizers import Feedback, Quantizer
from laq.quantizers.common.engine import EVERY_FORMAT, Columns, FixedScales
from laq.quantizers.common.palettes import with_palettes
from laq.quantizers.common.sorting import SortedWeight
from laq.quantizers.common.trial import tried_losses
from laq.ranges.common.grid import scale_floor

CORRECTION_FORMATS: tuple[tuple[Format, Format], ...] = (
    (INT2, INT4),
    (TRELLISES[2], TRELLISES[4]),
    (PALETTE2, PALETTE4),
    (TRITS, NF4),
)
"""Two of each family, with which error feedback is run; in between the gain is interpolated."""

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
    allowed : sequence of bool, [n_candidates]
        Formats that are measured.
    name : str
        Of the weight.
    scale_per : ScalePer
        What a scale serves.
    """

    weight: SortedWeight
    quantizer: Quantizer
    feedback: Feedback
    importance: Importance
    columns: IndexArray | None
    scale_format: ScaleFormat
    allowed: Sequence[bool] = EVERY_FORMAT
    name: str = ""
    scale_per: ScalePer = ScalePer.GROUP

    def prepared(self) -> Feedback:
        """Return what the quantizer prepared, with learned entries where formats ask for some."""
        if any(may and isinstance(c, Palette) for c, may in zip(CANDIDATES, self.allowed, strict=True)):
            return with_palettes(self.feedback, [self.weight], self.scale_format)
        if self.scale_per is ScalePer.TENSOR:  # rows of a sample know their own scale, not the weight's
            return replace(self.feedback, fixed=self.fixed(self.weight, self.feedback.column_weights))
        return self.feedback

    def fixed(self, weight: SortedWeight, column_weights: torch.Tensor) -> FixedScales | None:
        """Return the scales of a weight that are chosen before rounding."""
        asked = torch.tensor([i for i, may in enumerate(self.allowed) if may], dtype=torch.uint8)
        return self.quantizer.engine.fixed(
            weight.matrix, column_weights, asked, scale_format=self.scale_format, rows=weight.rows
        )


def tile_losses(tiled: Tiled) -> TileLosses:
    """Return the curve of every tile; nats per token if the rows' importance is.

    Formats that are not allowed are infinite, those under two bits also where the statistics do not support
    them.
    """
    tiled = replace(tiled, feedback=tiled.prepared())
    weight, feedback, scale_format = tiled.weight, tiled.feedback, tiled.scale_format
    losses = rounding_losses(tiled, weight, feedback.column_weights)
    factors = _correction(
        weight, tiled.quantizer, feedback, losses, scale_format=scale_format, allowed=tiled.allowed
    )
    losses *= factors[:, None, None]
    forbid_unsupported_(losses, tiled)
    return losses


def forbid_unsupported_(losses: TileLosses, tiled: Tiled) -> None:
    """Make formats under two bits infinite where the statistics do not support them."""
    unsupported = _unsupported(tiled.weight, tiled.importance, tiled.columns)
    for index, candidate in enumerate(CANDIDATES):
        if candidate.n_levels < 4:
            losses[index][unsupported] = np.inf


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
    columns = Columns(
        weight.matrix,
        column_weights,
        scale_floor(weight.matrix),
        tiled.scale_format,
        palettes=tiled.feedback.palettes,
        fixed=tiled.fixed(weight, column_weights),
    )
    engine = tiled.quantizer.engine
    errors = engine.errors(columns, group_size=grid.group_size, allowed=tiled.allowed)
    losses = torch.full((len(errors), grid.n_groups, grid.n_row_blocks), torch.inf)
    asked = torch.tensor(tiled.allowed)
    of_rows = (errors[asked] * (0.5 * weight.rows)).view(-1, grid.n_groups, grid.n_row_blocks, TILE_ROWS)
    losses[asked] = of_rows.sum(3)
    return np.ascontiguousarray(losses.transpose(1, 2).numpy())


def _correction(
    weight: SortedWeight,
    quantizer: Quantizer,
    feedback: Feedback,
    losses: TileLosses,
    *,
    scale_format: ScaleFormat,
    allowed: Sequence[bool],
) -> npt.NDArray[np.float32]:
    """Measured over predicted loss, from two widths a family on a sample of row blocks; [n_candidates]."""
    families = _families(allowed)
    tried = [choice for family in families for choice in family.tried]
    n_blocks = weight.grid.n_row_blocks
    picked = np.unique(np.linspace(0, n_blocks - 1, min(CORRECTION_ROW_BLOCKS, n_blocks)).astype(np.int64))
    index = torch.from_numpy((picked[:, None] * TILE_ROWS + np.arange(TILE_ROWS)).ravel())
    sample = SortedWeight(weight.grid, weight.matrix[:, index], weight.hessian, weight.rows[index], None)
    measured = tried_losses(sample, quantizer, feedback, tried, scale_format=scale_format)
    predicted = losses[tried][:, picked].sum((1, 2), dtype=np.float64)
    if not (predicted > 0).all() or not (measured > 0).all():
        return np.ones(len(CANDIDATES), np.float32)
    ratio_of = dict(zip(tried, np.log(measured / predicted), strict=True))
    ratios = np.zeros(len(CANDIDATES))
    for family in families:
        widths = [max(CANDIDATES[i].code_bits, 1) for i in family.members]
        known = [CANDIDATES[i].code_bits for i in family.tried]
        ratios[list(family.members)] = np.interp(widths, known, [ratio_of[i] for i in family.tried])
    return np.asarray(np.exp(ratios), np.float32)


@dataclass(frozen=True, slots=True)
class _Family:
    """Candidates of one kind that are asked for, and those that stand for them."""

    members: tuple[int, ...]
    tried: tuple[int, ...]


def _families(allowed: Sequence[bool]) -> list[_Family]:
    """Families with more than absent tiles; one without either of its two is tried at its widest format."""
    families = []
    for pair in CORRECTION_FORMATS:
        members = [i for i, c in enumerate(CANDIDATES) if allowed[i] and isinstance(c, type(pair[0]))]
        stored = [i for i in members if CANDIDATES[i].code_bits]
        if stored:
            tried = tuple(i for i in stored if CANDIDATES[i] in pair) or (stored[-1],)
            families.append(_Family(tuple(members), tried))
    return families


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
