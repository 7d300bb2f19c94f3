"""Searching and rounding by the native kernels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import final

import torch

from laq.core.formats import CANDIDATES, Format, Integer, Trellis
from laq.core.formats.table import PALETTE_BYTES
from laq.core.groups import TILE_ROWS
from laq.kernels import native
from laq.quantizers.common.engine import EVERY_FORMAT, Columns, Engine, RoundedGroup, asked_for, stored_zeros
from laq.quantizers.common.table import SHRINK_STEPS as TABLE_STEPS
from laq.quantizers.common.trellis import FIRST_STEP, LAST_STEP, error_terms
from laq.ranges.common.clip_search import SHRINK_STEPS


def _format(candidate: Format) -> native.Format:
    if isinstance(candidate, Trellis):
        terms = error_terms(candidate)
        return native.Format(candidate.tag, candidate.n_levels, FIRST_STEP, LAST_STEP, terms)
    is_integer = isinstance(candidate, Integer)
    steps = SHRINK_STEPS[candidate.n_levels] if is_integer else TABLE_STEPS[candidate.name]
    return native.Format(candidate.tag, candidate.n_levels, *steps)


FORMATS = native.formats([_format(candidate) for candidate in CANDIDATES])


@final
class NativeEngine(Engine):
    """csrc/search.hpp, on the pool of threads; the same bits as `TorchEngine`.

    Parameters
    ----------
    library : Library
        The native kernels.
    """

    def __init__(self, library: native.Library) -> None:
        self._library = library

    def errors(
        self, columns: Columns, *, group_size: int, allowed: Sequence[bool] = EVERY_FORMAT
    ) -> torch.Tensor:
        """See `Engine.errors`."""
        assert columns.fixed is None
        columns, asked = _contiguous(columns), asked_for(allowed, columns.palettes)
        matrix = columns.matrix
        found = torch.empty(len(asked), len(matrix) // group_size, matrix.shape[1])
        source = _source(columns, group_size)
        formats = native.formats([_format(CANDIDATES[i]) for i in asked])
        source.formats, source.n_formats = formats, len(asked)
        kept = _set_palettes(source, columns.palettes)
        self._library.errors(source, found.data_ptr())
        del kept
        result = torch.full((len(CANDIDATES), *found.shape[1:]), torch.inf)
        result[asked] = found
        return result

    def round(self, columns: Columns, choices: torch.Tensor, *, factor: torch.Tensor | None) -> RoundedGroup:
        """See `Engine.round`."""
        assert columns.fixed is None
        columns, choices = _contiguous(columns), choices.contiguous()
        factor = None if factor is None else factor.contiguous()
        block, n_rows = columns.matrix, columns.matrix.shape[1]
        rounded = RoundedGroup(
            codes=torch.empty(block.shape, dtype=torch.uint8),
            scales=stored_zeros(n_rows, columns.scale_format),
            zero_points=torch.empty(n_rows),
            errors=torch.empty(block.shape if factor is not None else 0),
        )
        rounding = native.Rounding(
            choices=choices.data_ptr(),
            factor=None if factor is None else factor.data_ptr(),
            codes=rounded.codes.data_ptr(),
            scales=rounded.scales.data_ptr(),
            zero_points=rounded.zero_points.data_ptr(),
            errors=rounded.errors.data_ptr(),
        )
        source = _source(columns, len(block))
        kept = _set_palettes(source, columns.palettes)
        self._library.round(source, rounding)
        del kept
        return rounded


def _set_palettes(source: native.Source, palettes: torch.Tensor | None) -> torch.Tensor | None:
    """Point to learned entries; returns what has to outlive the call."""
    if palettes is None:
        return None
    n, width = palettes.shape
    assert palettes.dtype == torch.uint8
    assert width == PALETTE_BYTES
    assert n in (1, source.n_rows // TILE_ROWS)
    kept = palettes.contiguous()
    source.palettes, source.palette_stride = kept.data_ptr(), width if n > 1 else 0
    return kept


def _contiguous(columns: Columns) -> Columns:
    return replace(columns, matrix=columns.matrix.contiguous(), weights=columns.weights.contiguous())


def _source(columns: Columns, group_size: int) -> native.Source:
    """Point to contiguous columns, which have to outlive the call."""
    matrix, column_weights, floor = columns.matrix, columns.weights, columns.floor
    assert matrix.dtype == column_weights.dtype == floor.dtype == torch.float32
    assert (len(column_weights), len(floor)) == matrix.shape
    return native.Source(
        n_rows=matrix.shape[1],
        n_columns=len(matrix),
        stride=matrix.stride(0),
        group_size=group_size,
        scale_format=native.SCALE_FORMATS[columns.scale_format],
        values=matrix.data_ptr(),
        column_weights=column_weights.data_ptr(),
        floors=floor.data_ptr(),
        formats=FORMATS,
        n_formats=len(FORMATS),
    )
