"""Searching and rounding where a scale serves more than a group: a tile, a row of the weight, all of it.

A unit is searched as if it were one long group, so that ranges need not know. Its scale at a format does not
depend on which tiles take that format: what was measured is what will be stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import final

import torch

from laq.core.formats import CANDIDATES, Integer
from laq.core.groups import TILE_ROWS
from laq.core.scale_units import ScalePer
from laq.core.scheme import ScaleFormat
from laq.quantizers.common.engine import (
    EVERY_FORMAT,
    Columns,
    Engine,
    FixedScales,
    RoundedGroup,
    stored_zeros,
)
from laq.quantizers.common.torch_engine import TorchEngine, absent, round_by_format
from laq.ranges import Grid, Range
from laq.ranges.common.clip_search import search_whole
from laq.ranges.common.grid import FIELDS, decoded_scales, grid_of, scale_floor
from laq.ranges.mse import Mse

ENDS = 8
"""Values that stand for a whole weight where a range looks at its ends alone: errors have that many sums."""


@final
class CoarseEngine(Engine):
    """In torch, of integers alone.

    Parameters
    ----------
    range : Range
        How scales and zero points are chosen; one that `serves_units`.
    per : ScalePer
        What a scale serves, more than a group.
    """

    def __init__(self, range: Range, per: ScalePer) -> None:
        self._range, self._per = range, per

    def errors(
        self, columns: Columns, *, group_size: int, allowed: Sequence[bool] = EVERY_FORMAT
    ) -> torch.Tensor:
        """See `Engine.errors`; infinite for all but integers."""
        matrix, scale_format, fixed = columns.matrix, columns.scale_format, columns.fixed
        n_groups, n_rows = len(matrix) // group_size, matrix.shape[1]
        asked = [may and isinstance(c, Integer) for c, may in zip(CANDIDATES, allowed, strict=True)]
        only_absent = [may and c.n_levels == 1 for c, may in zip(CANDIDATES, asked, strict=True)]
        result = TorchEngine().errors(
            replace(columns, palettes=None, fixed=None), group_size=group_size, allowed=only_absent
        )
        choices = [i for i, may in enumerate(asked) if may and CANDIDATES[i].n_levels > 1]
        if fixed is None:
            fixed = self.fixed(matrix, columns.weights, torch.tensor(choices), scale_format=scale_format)
        for choice in choices:
            for group in range(n_groups):
                mine = columns.part(slice(group * group_size, (group + 1) * group_size))
                if fixed is None:
                    grid = self._of_tiles(mine, choice)
                else:
                    grid = _fixed_grid(fixed, choice, slice(0, n_rows), scale_format)
                scales, zeros = (grid.scales, grid.stored), grid.zero_points
                n_levels = CANDIDATES[choice].n_levels
                found = grid_of(mine.matrix, n_levels, mine.weights, scales=scales, zero_points=zeros)
                result[choice, group] = found.error.expand(n_rows)
        return result

    def round(self, columns: Columns, choices: torch.Tensor, *, factor: torch.Tensor | None) -> RoundedGroup:
        """See `Engine.round`; beyond groups scales are those that `fixed` chose before."""
        fixed, scale_format = columns.fixed, columns.scale_format
        assert (fixed is not None) == self._per.beyond_groups

        def grid_for(choice: int, rows: torch.Tensor) -> Grid:
            if CANDIDATES[choice].n_levels == 1:
                return absent(len(rows), scale_format, torch.zeros(len(rows)))
            if fixed is not None:
                return _fixed_grid(fixed, choice, rows, scale_format)
            mine = replace(columns, matrix=columns.matrix[:, rows], floor=columns.floor[rows])
            return self._of_tiles(mine, choice)

        return round_by_format(columns, choices, grid_for, factor=factor)

    def fixed(
        self,
        matrix: torch.Tensor,
        column_weights: torch.Tensor,
        choices: torch.Tensor,
        *,
        scale_format: ScaleFormat,
        rows: torch.Tensor | None = None,
    ) -> FixedScales | None:
        """See `Engine.fixed`."""
        if not self._per.beyond_groups:
            return None
        per_row = self._per is ScalePer.CHANNEL
        n = matrix.shape[1] if per_row else 1
        stored = stored_zeros((len(CANDIDATES), n), scale_format)
        zero_points = torch.zeros((len(CANDIDATES), n))
        for choice in torch.unique(choices).tolist():
            n_levels = CANDIDATES[choice].n_levels
            if n_levels == 1:
                continue
            if per_row:
                floor = scale_floor(matrix)
                grid = self._range.search(
                    matrix, n_levels, column_weights, floor=floor, scale_format=scale_format
                )
            else:
                weights = torch.ones(matrix.shape[1]) if rows is None else rows
                grid = self._whole(matrix, n_levels, column_weights, weights, scale_format)
            stored[choice], zero_points[choice] = grid.stored, grid.zero_points
        return FixedScales(stored, zero_points)

    def _whole(
        self,
        matrix: torch.Tensor,
        n_levels: int,
        column_weights: torch.Tensor,
        rows: torch.Tensor,
        scale_format: ScaleFormat,
    ) -> Grid:
        """Search one scale for a matrix; ranges but `mse` look at its ends alone."""
        ends = torch.zeros(ENDS, 1)
        ends[0], ends[1] = matrix.amin(), matrix.amax()
        floor = scale_floor(ends.expand(-1, TILE_ROWS))[:1]
        if isinstance(self._range, Mse):
            return search_whole(
                matrix, n_levels, column_weights, rows, ends=ends, floor=floor, scale_format=scale_format
            )
        return self._range.search(ends, n_levels, torch.ones(ENDS), floor=floor, scale_format=scale_format)

    def _of_tiles(self, columns: Columns, choice: int) -> Grid:
        """Search one scale for the 16 rows of each tile; returned for every row."""
        # [16 rows x group_size, tiles]: one long group for each tile
        block, n_tiles = columns.matrix, columns.matrix.shape[1] // TILE_ROWS
        units = block.reshape(len(block), n_tiles, TILE_ROWS).permute(2, 0, 1).reshape(-1, n_tiles)
        found = self._range.search(
            units,
            CANDIDATES[choice].n_levels,
            columns.weights.repeat(TILE_ROWS),
            floor=columns.floor[::TILE_ROWS],
            scale_format=columns.scale_format,
        )
        return Grid(*(getattr(found, name).repeat_interleave(TILE_ROWS) for name in FIELDS))


def _fixed_grid(
    fixed: FixedScales, choice: int, rows: torch.Tensor | slice, scale_format: ScaleFormat
) -> Grid:
    """What was chosen before for some rows; its error is not known."""
    n_rows = len(rows) if isinstance(rows, torch.Tensor) else rows.stop
    if fixed.stored.shape[1] == 1:
        stored, zeros = fixed.stored[choice].expand(n_rows), fixed.zero_points[choice].expand(n_rows)
    else:
        stored, zeros = fixed.stored[choice, rows], fixed.zero_points[choice, rows]
    return Grid(decoded_scales(stored, scale_format), stored, zeros, torch.full((n_rows,), torch.nan))
