"""Searching and rounding by the native kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch

from laq.core.formats import CANDIDATES, Format, Integer, Trellis
from laq.core.formats.table import PALETTE_BYTES
from laq.core.groups import TILE_ROWS
from laq.core.scheme import ScaleFormat
from laq.kernels import native
from laq.quantizers.common.engine import EVERY_FORMAT, Engine, FixedScales, RoundedGroup, asked_for
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
        """See `Engine.errors`."""
        assert fixed is None
        matrix, column_weights = matrix.contiguous(), column_weights.contiguous()
        asked = asked_for(allowed, palettes)
        found = torch.empty(len(asked), len(matrix) // group_size, matrix.shape[1])
        source = _source(matrix, column_weights, group_size, floor, scale_format)
        formats = native.formats([_format(CANDIDATES[i]) for i in asked])
        source.formats, source.n_formats = formats, len(asked)
        kept = _set_palettes(source, palettes)
        self._library.errors(source, found.data_ptr())
        del kept
        result = torch.full((len(CANDIDATES), *found.shape[1:]), torch.inf)
        result[asked] = found
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
        """See `Engine.round`."""
        assert fixed is None
        block, column_weights = block.contiguous(), column_weights.contiguous()
        factor = None if factor is None else factor.contiguous()
        n_rows = block.shape[1]
        choices = choices.contiguous()
        rounded = RoundedGroup(
            codes=torch.empty(block.shape, dtype=torch.uint8),
            scales=torch.empty(n_rows, dtype=torch.int16 if scale_format.is_log else torch.float16),
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
        source = _source(block, column_weights, len(block), floor, scale_format)
        kept = _set_palettes(source, palettes)
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


def _source(
    matrix: torch.Tensor,
    column_weights: torch.Tensor,
    group_size: int,
    floor: torch.Tensor,
    scale_format: ScaleFormat,
) -> native.Source:
    assert matrix.dtype == column_weights.dtype == floor.dtype == torch.float32
    assert (len(column_weights), len(floor)) == matrix.shape
    return native.Source(
        n_rows=matrix.shape[1],
        n_columns=len(matrix),
        stride=matrix.stride(0),
        group_size=group_size,
        scale_format=native.SCALE_FORMATS[scale_format],
        values=matrix.data_ptr(),
        column_weights=column_weights.data_ptr(),
        floors=floor.data_ptr(),
        formats=FORMATS,
        n_formats=len(FORMATS),
    )
