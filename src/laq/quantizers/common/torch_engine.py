"""Searching and rounding in torch: the definition, and what runs without native kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import final

import torch

from laq.core.formats import CANDIDATES, Format, Palette, Table, Trellis
from laq.core.groups import TILE_ROWS
from laq.core.qtensor import LOG4_SPAN
from laq.core.scheme import ScaleFormat
from laq.quantizers.common.engine import EVERY_FORMAT, Columns, Engine, RoundedGroup, asked_for, stored_zeros
from laq.quantizers.common.table import entries_of, round_table, search_table
from laq.quantizers.common.trellis import round_trellis, search_trellis
from laq.ranges import Grid, Range
from laq.ranges.common.grid import FIELDS, weighted_sum_
from laq.ranges.mse import Mse

CHUNK_ROWS = 4096
"""Rows searched at a time: a group of them stays in the second-level cache."""


@final
class TorchEngine(Engine):
    """Element by element in torch, in the order of operations that the native kernels follow.

    Parameters
    ----------
    range : Range, optional
        How scales and zero points of integers are chosen; `mse`, as in the native kernels, if not given.
    """

    def __init__(self, range: Range | None = None) -> None:
        self._range = Mse() if range is None else range

    def errors(
        self, columns: Columns, *, group_size: int, allowed: Sequence[bool] = EVERY_FORMAT
    ) -> torch.Tensor:
        """See `Engine.errors`."""
        assert columns.fixed is None
        matrix, floor, palettes = columns.matrix, columns.floor, columns.palettes
        n_groups, n_rows = len(matrix) // group_size, matrix.shape[1]
        result = torch.full((len(CANDIDATES), n_groups, n_rows), torch.inf)
        tables = {i: _entries(CANDIDATES[i], palettes, n_rows) for i in asked_for(allowed, palettes)}
        for start in range(0, n_rows, CHUNK_ROWS):
            rows = slice(start, start + CHUNK_ROWS)
            for group in range(n_groups):
                here = slice(group * group_size, (group + 1) * group_size)
                block, weights = matrix[here, rows].contiguous(), columns.weights[here]
                for index, entries in tables.items():
                    mine = None if entries is None else entries[:, rows]
                    found = self._search(
                        block,
                        CANDIDATES[index],
                        mine,
                        weights,
                        floor=floor[rows],
                        scale_format=columns.scale_format,
                    )
                    result[index, group, rows] = found.error
        return result

    def round(self, columns: Columns, choices: torch.Tensor, *, factor: torch.Tensor | None) -> RoundedGroup:
        """See `Engine.round`."""
        assert columns.fixed is None
        block = columns.matrix

        def grid_for(choice: int, rows: torch.Tensor) -> Grid:
            candidate = CANDIDATES[choice]
            entries = _entries(candidate, columns.palettes, block.shape[1])
            return self._search(
                block[:, rows],
                candidate,
                None if entries is None else entries[:, rows],
                columns.weights,
                floor=columns.floor[rows],
                scale_format=columns.scale_format,
            )

        return round_by_format(columns, choices, grid_for, factor=factor)

    def _search(
        self,
        block: torch.Tensor,
        candidate: Format,
        entries: torch.Tensor | None,
        column_weights: torch.Tensor,
        *,
        floor: torch.Tensor,
        scale_format: ScaleFormat,
    ) -> Grid:
        """Search whole tiles; scales too far below the largest of their tile for LOG4 are searched again."""
        grid = self._search_rows(
            block, candidate, entries, column_weights, floor=floor, scale_format=scale_format
        )
        if scale_format is not ScaleFormat.LOG4:
            return grid
        lowest = grid.stored.view(-1, TILE_ROWS).amax(1).repeat_interleave(TILE_ROWS) - LOG4_SPAN
        rows = (grid.stored < lowest).nonzero()[:, 0]
        if len(rows):
            again = self._search_rows(
                block[:, rows].contiguous(),
                candidate,
                None if entries is None else entries[:, rows],
                column_weights,
                floor=torch.maximum(floor, lowest)[rows],
                scale_format=scale_format,
            )
            for name in FIELDS:
                getattr(grid, name)[rows] = getattr(again, name)
        return grid

    def _search_rows(
        self,
        block: torch.Tensor,
        candidate: Format,
        entries: torch.Tensor | None,
        column_weights: torch.Tensor,
        *,
        floor: torch.Tensor,
        scale_format: ScaleFormat,
    ) -> Grid:
        if isinstance(candidate, Trellis):
            return search_trellis(block, candidate, column_weights, floor=floor, scale_format=scale_format)
        if isinstance(candidate, Table | Palette):
            assert entries is not None
            return search_table(
                block, candidate, entries, column_weights, floor=floor, scale_format=scale_format
            )
        if candidate.n_levels == 1:
            return absent(block.shape[1], scale_format, weighted_sum_(block.clone(), column_weights))
        return self._range.search(
            block, candidate.n_levels, column_weights, floor=floor, scale_format=scale_format
        )


def round_by_format(
    columns: Columns,
    choices: torch.Tensor,
    grid_for: Callable[[int, torch.Tensor], Grid],
    *,
    factor: torch.Tensor | None,
) -> RoundedGroup:
    """Round one group of columns, rows of one format together: rows are independent.

    grid_for : from a candidate and its rows to their grid; for the others see `Engine.round`
    """
    block, palettes = columns.matrix, columns.palettes
    result = RoundedGroup(
        codes=torch.empty(block.shape, dtype=torch.uint8),
        scales=stored_zeros(block.shape[1], columns.scale_format),
        zero_points=torch.empty(block.shape[1]),
        errors=torch.empty(block.shape if factor is not None else 0),
    )
    of_rows = choices.repeat_interleave(TILE_ROWS)
    for choice in torch.unique(choices).tolist():
        rows, candidate = (of_rows == choice).nonzero()[:, 0], CANDIDATES[choice]
        entries, grid = _entries(candidate, palettes, block.shape[1]), grid_for(choice, rows)
        mine = None if entries is None else entries[:, rows]
        codes, errors = _round(block[:, rows], candidate, mine, grid, factor)
        result.codes[:, rows], result.scales[rows] = codes, grid.stored
        result.zero_points[rows] = grid.zero_points
        if factor is not None:
            result.errors[:, rows] = errors
    return result


def _entries(candidate: Format, palettes: torch.Tensor | None, n_rows: int) -> torch.Tensor | None:
    """What codes stand for in each row, for formats with a table."""
    return entries_of(candidate, palettes, n_rows) if isinstance(candidate, Table | Palette) else None


def absent(n_rows: int, scale_format: ScaleFormat, error: torch.Tensor) -> Grid:
    """One level: everything becomes zero, and leaves an error [n_rows]."""
    zeros = torch.zeros(n_rows)
    return Grid(zeros + 1, stored_zeros(n_rows, scale_format), zeros, error)


def _round(
    block: torch.Tensor,
    candidate: Format,
    entries: torch.Tensor | None,
    grid: Grid,
    factor: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes uint8 and scaled errors float32, both [group_size, rows]; errors are empty without a factor."""
    if isinstance(candidate, Trellis):
        return round_trellis(block, candidate, grid, factor)
    if entries is not None:
        return round_table(block, entries, grid, factor)
    top = candidate.n_levels - 1
    if factor is None:
        shifted = (block * grid.scales.reciprocal()).add_(grid.zero_points)
        return shifted.round_().clamp_(min=0, max=top).to(torch.uint8), torch.empty(0)
    return _round_with_feedback(block, grid, top, factor)


def _round_with_feedback(
    block: torch.Tensor, grid: Grid, top: int, factor: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    remaining, spread = block.clone(), torch.empty_like(block)
    codes, errors = torch.empty_like(block), torch.empty_like(block)
    inverse_scales = grid.scales.reciprocal()
    inverse_diagonal = factor.diagonal().reciprocal()
    for j, column in enumerate(remaining):
        shifted = (column * inverse_scales).add_(grid.zero_points)
        code = torch.clamp(shifted.round_(), min=0, max=top, out=codes[j])
        restored = (code - grid.zero_points).mul_(grid.scales)
        error = torch.sub(column, restored, out=errors[j]).mul_(inverse_diagonal[j])
        later = slice(j + 1, None)
        remaining[later].sub_(torch.mul(factor[j, later, None], error, out=spread[later]))
    return codes.to(torch.uint8), errors
