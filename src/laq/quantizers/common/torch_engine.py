"""Searching and rounding in torch: the definition, and what runs without native kernels."""

from __future__ import annotations

from typing import final

import torch

from laq.core.formats import CANDIDATES
from laq.core.scheme import ScaleFormat
from laq.quantizers.common.clip_search import Grid, joined, search
from laq.quantizers.common.engine import Engine, RoundedGroup

CHUNK_ROWS = 4096
"""Rows searched at a time: a group of them stays in the second-level cache."""


@final
class TorchEngine(Engine):
    """Element by element in torch, in the order of operations that the native kernels follow."""

    def errors(
        self,
        matrix: torch.Tensor,
        column_weights: torch.Tensor,
        *,
        group_size: int,
        floor: torch.Tensor,
        scale_format: ScaleFormat,
    ) -> torch.Tensor:
        """See `Engine.errors`."""
        n_groups, n_rows = len(matrix) // group_size, matrix.shape[1]
        result = torch.empty(len(CANDIDATES), n_groups, n_rows)
        for start in range(0, n_rows, CHUNK_ROWS):
            rows = slice(start, start + CHUNK_ROWS)
            for group in range(n_groups):
                here = slice(group * group_size, (group + 1) * group_size)
                block, weights = matrix[here, rows].contiguous(), column_weights[here]
                for index, candidate in enumerate(CANDIDATES):
                    found = search(
                        block, candidate.n_levels, weights, floor=floor[rows], scale_format=scale_format
                    )
                    result[index, group, rows] = found.error
        return result

    def round(
        self,
        block: torch.Tensor,
        n_levels: torch.Tensor,
        column_weights: torch.Tensor,
        *,
        floor: torch.Tensor,
        factor: torch.Tensor | None,
        scale_format: ScaleFormat,
    ) -> RoundedGroup:
        """See `Engine.round`."""
        grid = _search_each(block, n_levels, column_weights, floor, scale_format)
        if factor is None:
            codes = _codes(block, grid, n_levels).to(torch.uint8)
            return RoundedGroup(codes, grid.stored, grid.zero_points, torch.empty(0))
        codes, errors = _round_with_feedback(block, grid, n_levels, factor)
        return RoundedGroup(codes, grid.stored, grid.zero_points, errors)


def _search_each(
    block: torch.Tensor,
    n_levels: torch.Tensor,
    column_weights: torch.Tensor,
    floor: torch.Tensor,
    scale_format: ScaleFormat,
) -> Grid:
    """Search every row at its own number of levels."""
    places, grids = [], []
    for level in torch.unique(n_levels).tolist():
        rows = (n_levels == level).nonzero()[:, 0]
        mine, its_floor = block[:, rows], floor[rows]
        places.append(rows)
        grids.append(search(mine, int(level), column_weights, floor=its_floor, scale_format=scale_format))
    return joined(grids, torch.cat(places).argsort())


def _codes(values: torch.Tensor, grid: Grid, n_levels: torch.Tensor) -> torch.Tensor:
    """Nearest codes of [columns, rows], as float32."""
    shifted = (values * grid.scales.reciprocal()).add_(grid.zero_points)
    return torch.minimum(shifted.round_().clamp_(min=0), n_levels - 1)


def _round_with_feedback(
    block: torch.Tensor, grid: Grid, n_levels: torch.Tensor, factor: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Round column by column; codes uint8 and scaled errors float32, both [group_size, rows]."""
    remaining, spread = block.clone(), torch.empty_like(block)
    codes, errors = torch.empty_like(block), torch.empty_like(block)
    inverse_scales, top = grid.scales.reciprocal(), n_levels - 1
    inverse_diagonal = factor.diagonal().reciprocal()
    for j, column in enumerate(remaining):
        shifted = (column * inverse_scales).add_(grid.zero_points)
        code = torch.minimum(shifted.round_().clamp_(min=0), top, out=codes[j])
        restored = (code - grid.zero_points).mul_(grid.scales)
        error = torch.sub(column, restored, out=errors[j]).mul_(inverse_diagonal[j])
        later = slice(j + 1, None)
        remaining[later].sub_(torch.mul(factor[j, later, None], error, out=spread[later]))
    return codes.to(torch.uint8), errors
