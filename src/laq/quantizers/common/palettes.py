"""Entries of palettes, learned for each weight: Lloyd's algorithm on a sample of its groups.

Entries and scales are found in turn. With scale s_g of each group and the nearest entry of each weight, the
entry k of least error sum over its weights of G_i c_j (w_ij - s_g e_k)^2 is sum G c s w / sum G c s^2, where
G_i is the importance of the row and c_j what the quantizer says of the column. Entries are then stretched
until the largest is 127 and rounded to bytes: they are stored so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from laq.core.formats import CANDIDATES, PALETTES, Palette
from laq.core.formats.table import PALETTE_BYTES
from laq.core.formats.trellis import MIDDLE
from laq.core.groups import TILE_ROWS
from laq.core.scheme import ScaleFormat
from laq.quantizers import Feedback
from laq.quantizers.common.engine import Columns
from laq.quantizers.common.engines import engine_of
from laq.quantizers.common.sorting import SortedWeight
from laq.ranges.common.grid import decoded_scales, scale_floor
from laq.ranges.mse import Mse

LARGEST = 127.0
ITERATIONS = 8
SAMPLE_GROUPS, SAMPLE_BLOCKS = 12, 12
"""Column groups and row blocks of the sample, evenly spaced in the order of the tiles."""


def with_palettes(feedback: Feedback, weights: Sequence[SortedWeight], scale_format: ScaleFormat) -> Feedback:
    """Return what a quantizer needs to use palettes on these weights, side by side."""
    learned = [fit_palettes(weight, feedback.column_weights, scale_format) for weight in weights]
    if len(learned) == 1:
        return replace(feedback, palettes=learned[0][None])
    blocks = torch.tensor([weight.grid.n_row_blocks for weight in weights])
    return replace(feedback, palettes=torch.stack(learned).repeat_interleave(blocks, 0))


def fit_palettes(
    weight: SortedWeight, column_weights: torch.Tensor, scale_format: ScaleFormat
) -> torch.Tensor:
    """Return the entries of all palettes of a weight; uint8 [`PALETTE_BYTES`].

    The same weight, importance and quantizer give the same entries: measurement and encoding agree.
    """
    result = torch.empty(PALETTE_BYTES, dtype=torch.uint8)
    sample = _Sample(weight, column_weights)
    for palette in PALETTES.values():
        result[palette.entries] = _fitted(palette, sample, scale_format)
    return result


class _Sample:
    """Some groups of a weight: values [groups][group_size, rows], weights of columns and rows."""

    def __init__(self, weight: SortedWeight, column_weights: torch.Tensor) -> None:
        grid = weight.grid
        blocks = _spread(grid.n_row_blocks, SAMPLE_BLOCKS)
        rows = (blocks[:, None] * TILE_ROWS + torch.arange(TILE_ROWS)).flatten()
        picked = weight.matrix[:, rows]
        self.floor = scale_floor(picked)
        self.rows = weight.rows[rows].double()
        groups = _spread(grid.n_groups, SAMPLE_GROUPS)
        self.values = [picked[g * grid.group_size : (g + 1) * grid.group_size] for g in groups.tolist()]
        split = column_weights.view(grid.n_groups, -1)
        self.columns = [split[g].contiguous() for g in groups.tolist()]


def _spread(n: int, most: int) -> torch.Tensor:
    return torch.from_numpy(np.unique(np.linspace(0, n - 1, min(n, most)).astype(np.int64)))


def _fitted(palette: Palette, sample: _Sample, scale_format: ScaleFormat) -> torch.Tensor:
    n = palette.n_levels
    values = torch.cat([v / v.abs().amax(0).clamp(min=1e-30) for v in sample.values], 1).flatten()
    ranks = (torch.arange(n, dtype=torch.float64) + 0.5) / n * len(values)
    entries = _stored(values.sort().values[ranks.long()].double())
    for _ in range(ITERATIONS):
        numerator, denominator = _sums(palette, entries, sample, scale_format)
        used = denominator > 0
        best = torch.where(used, numerator / denominator.clamp(min=1e-300), entries.double() - MIDDLE)
        entries = _stored(best)
    return entries


def _stored(entries: torch.Tensor) -> torch.Tensor:
    """Rising bytes whose largest distance from the middle is `LARGEST`."""
    stretch = LARGEST / entries.abs().amax().clamp(min=1e-30)
    return ((entries * stretch).round_().sort().values + MIDDLE).to(torch.uint8)


def _sums(
    palette: Palette, entries: torch.Tensor, sample: _Sample, scale_format: ScaleFormat
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums of weight x scale x value and of weight x scale squared over the members of each entry."""
    palettes = torch.zeros((1, PALETTE_BYTES), dtype=torch.uint8)
    palettes[0, palette.entries] = entries
    choices = torch.full((len(sample.rows) // TILE_ROWS,), CANDIDATES.index(palette), dtype=torch.uint8)
    numerator = torch.zeros(palette.n_levels, dtype=torch.float64)
    denominator = torch.zeros_like(numerator)
    for block, columns in zip(sample.values, sample.columns, strict=True):
        searched = Columns(block, columns, sample.floor, scale_format, palettes=palettes)
        rounded = engine_of(Mse()).round(searched, choices, factor=None)
        scales = decoded_scales(rounded.scales, scale_format).double()
        weights = columns.double()[:, None] * sample.rows * scales
        codes = rounded.codes.flatten().long()
        numerator += torch.bincount(codes, (weights * block.double()).flatten(), palette.n_levels)
        denominator += torch.bincount(codes, (weights * scales).flatten(), palette.n_levels)
    return numerator, denominator
