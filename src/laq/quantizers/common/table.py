"""Codes that stand for entries of a table: the scale by search, each weight to the nearest entry.

This is its definition, as `laq.ranges.common.clip_search` is that of integers: native kernels give the same
bits.
"""

from __future__ import annotations

import torch

from laq.core.formats import Palette, Table
from laq.core.formats.table import RESIDUALS
from laq.core.formats.trellis import MIDDLE
from laq.core.groups import TILE_ROWS
from laq.core.scheme import ScaleFormat
from laq.ranges import Grid
from laq.ranges.common.grid import candidate_scales, weighted_sum_

SHRINK_STEPS = {
    "nf4": (-1, 6),
    "fp4": (-1, 6),
    "trits": (2, 13),
    **{one.name: (0, 13) for one in RESIDUALS},
    "palette2": (0, 11),
    "palette3": (-2, 8),
    "palette4": (-3, 6),
}
"""Eighths of an octave by which a scale is tried smaller than where the table reaches the largest value."""


def entries_of(candidate: Table | Palette, palettes: torch.Tensor | None, n_rows: int) -> torch.Tensor:
    """Return what codes stand for in each row, in steps of the scale; float32 [n_levels, n_rows].

    palettes : uint8 [n_rows / 16 or 1, `laq.core.formats.table.PALETTE_BYTES`]
    """
    if isinstance(candidate, Table):
        return torch.tensor(candidate.levels, dtype=torch.float32)[:, None].expand(-1, n_rows)
    assert palettes is not None, "a palette format without palettes"
    entries = palettes[:, candidate.entries].float() - MIDDLE
    if len(entries) == 1:
        return entries.T.expand(-1, n_rows)
    return entries.repeat_interleave(TILE_ROWS, 0).T


def search_table(
    block: torch.Tensor,
    candidate: Table | Palette,
    entries: torch.Tensor,
    column_weights: torch.Tensor,
    *,
    floor: torch.Tensor,
    scale_format: ScaleFormat,
) -> Grid:
    """Find the scale of least weighted error for each row of a group.

    block : [group_size, rows], float32        column_weights : [group_size], float32
    entries : see `entries_of`        floor : [rows], float32, see `laq.ranges.common.grid`
    """
    largest = entries.abs().amax(0).clamp(min=1)
    exact = torch.maximum(block.amax(0), -block.amin(0)) / largest
    scales, stored = candidate_scales(exact, floor, SHRINK_STEPS[candidate.name], scale_format)
    errors = torch.empty_like(scales)
    for scale, error in zip(scales, errors, strict=True):
        scaled = block * scale.reciprocal()
        least = (scaled - entries[0]).abs_()
        for entry in entries[1:]:
            torch.minimum(least, (scaled - entry).abs_(), out=least)
        error.copy_(weighted_sum_(least, column_weights)).mul_(scale * scale)
    best = errors.argmin(0, keepdim=True)  # the first of equal ones
    middle = torch.full_like(exact, float(MIDDLE))
    chosen, its = scales.gather(0, best)[0], stored.gather(0, best)[0]
    return Grid(chosen, its, middle, errors.gather(0, best)[0])


def round_table(
    block: torch.Tensor, entries: torch.Tensor, grid: Grid, factor: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Take the first of the nearest entries, column by column; errors go to later columns.

    block : [group_size, rows], float32
    factor : [group_size, group_size], float32, how errors spread; None without feedback

    Returns codes uint8 and errors over the factor's diagonal, float32, both [group_size, rows]; errors are
    empty without a factor.
    """
    inverse_scales = grid.scales.reciprocal()
    if factor is None:
        distances = (block * inverse_scales - entries[:, None]).abs_()
        return distances.argmin(0).to(torch.uint8), torch.empty(0)
    remaining, codes = block.clone(), torch.empty(block.shape, dtype=torch.uint8)
    errors = torch.empty_like(block)
    for j, column in enumerate(remaining):
        code = (column * inverse_scales - entries).abs_().argmin(0, keepdim=True)
        codes[j] = code[0].to(torch.uint8)
        level = entries.gather(0, code)[0]
        errors[j] = (column - level * grid.scales) * factor[j, j].reciprocal()
        remaining[j + 1 :] -= factor[j, j + 1 :, None] * errors[j]
    return codes, errors
