"""Searching and rounding where a scale serves more than a group: a tile, a row of the weight, all of it.

A unit is searched as if it were one long group, so that ranges need not know. Its scale at a format does not
depend on which tiles take that format: what was measured is what will be stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch

from laq.core.formats import CANDIDATES, Integer
from laq.core.groups import TILE_ROWS
from laq.core.scale_units import ScalePer
from laq.core.scheme import ScaleFormat
from laq.quantizers.common.engine import EVERY_FORMAT, Engine, FixedScales, RoundedGroup
from laq.quantizers.common.torch_engine import TorchEngine, round_by_format
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

    def errors(  # noqa: PLR0913 - what a search rests on, by keyword
        self,
        matrix: torch.Tensor,
        column_weights: torch.Tensor,
        *,
        group_size: int,
        floor: torch.Tensor,
        scale_format: ScaleFormat,
        allowed: Sequence[bool] = EVERY_FORMAT,
        palettes: torch.Tensor | None = None,
        fixed: FixedScales | None = None,
    ) -> torch.Tensor:
        """See `Engine.errors`; infinite for all but integers."""
        n_groups, n_rows = len(matrix) // group_size, matrix.shape[1]
        asked = [may and isinstance(c, Integer) for c, may in zip(CANDIDATES, allowed, strict=True)]
        only_absent = [may and c.n_levels == 1 for c, may in zip(CANDIDATES, asked, strict=True)]
        result = TorchEngine().errors(
            matrix,
            column_weights,
            group_size=group_size,
            floor=floor,
            scale_format=scale_format,
            allowed=only_absent,
        )
        choices = [i for i, may in enumerate(asked) if may and CANDIDATES[i].n_levels > 1]
        if fixed is None:
            fixed = self.fixed(matrix, column_weights, torch.tensor(choices), scale_format=scale_format)
        for choice in choices:
            for group in range(n_groups):
                here = slice(group * group_size, (group + 1) * group_size)
                block, weights = matrix[here], column_weights[here]
                if fixed is None:
                    grid = self._of_tiles(block, choice, weights, floor=floor, scale_format=scale_format)
                else:
                    grid = _fixed_grid(fixed, choice, slice(0, n_rows), scale_format)
                scales, zeros = (grid.scales, grid.stored), grid.zero_points
                n_levels = CANDIDATES[choice].n_levels
                found = grid_of(block, n_levels, weights, scales=scales, zero_points=zeros)
                result[choice, group] = found.error.expand(n_rows)
        return result

    def round(  # noqa: PLR0913 - what rounding rests on, by keyword
        self,
        block: torch.Tensor,
        choices: torch.Tensor,
        column_weights: torch.Tensor,
        *,
        floor: torch.Tensor,
        factor: torch.Tensor | None,
        scale_format: ScaleFormat,
        palettes: torch.Tensor | None = None,
        fixed: FixedScales | None = None,
    ) -> RoundedGroup:
        """See `Engine.round`; beyond groups scales are those that `fixed` chose before."""
        assert (fixed is not None) == self._per.beyond_groups

        def grid_for(choice: int, rows: torch.Tensor) -> Grid:
            if CANDIDATES[choice].n_levels == 1:
                return _absent(len(rows), scale_format)
            if fixed is not None:
                return _fixed_grid(fixed, choice, rows, scale_format)
            mine = block[:, rows]
            return self._of_tiles(mine, choice, column_weights, floor=floor[rows], scale_format=scale_format)

        return round_by_format(block, choices, grid_for, factor=factor, scale_format=scale_format)

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
        stored = torch.zeros(
            (len(CANDIDATES), n), dtype=torch.int16 if scale_format.is_log else torch.float16
        )
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

    def _of_tiles(
        self,
        block: torch.Tensor,
        choice: int,
        column_weights: torch.Tensor,
        *,
        floor: torch.Tensor,
        scale_format: ScaleFormat,
    ) -> Grid:
        """Search one scale for the 16 rows of each tile; returned for every row."""
        # [16 rows x group_size, tiles]: one long group for each tile
        n_tiles = block.shape[1] // TILE_ROWS
        units = block.reshape(len(block), n_tiles, TILE_ROWS).permute(2, 0, 1).reshape(-1, n_tiles)
        weights, n_levels = column_weights.repeat(TILE_ROWS), CANDIDATES[choice].n_levels
        floors = floor[::TILE_ROWS]
        found = self._range.search(units, n_levels, weights, floor=floors, scale_format=scale_format)
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


def _absent(n_rows: int, scale_format: ScaleFormat) -> Grid:
    """All becomes zero."""
    zeros = torch.zeros(n_rows)
    return Grid(zeros + 1, zeros.to(_dtype(scale_format)), zeros, zeros)


def _dtype(scale_format: ScaleFormat) -> torch.dtype:
    return torch.int16 if scale_format.is_log else torch.float16
