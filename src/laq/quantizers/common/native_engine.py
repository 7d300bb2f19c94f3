"""Searching and rounding by the native kernels."""

from __future__ import annotations

from typing import final

import torch

from laq.core.formats import CANDIDATES, Trellis
from laq.core.scheme import ScaleFormat
from laq.kernels import native
from laq.quantizers.common.engine import Engine, RoundedGroup
from laq.quantizers.common.trellis import FIRST_STEP, LAST_STEP, error_terms
from laq.ranges.common.clip_search import SHRINK_STEPS

FORMATS = native.formats(
    [
        native.Format(candidate.tag, candidate.n_levels, FIRST_STEP, LAST_STEP, error_terms(candidate))
        if isinstance(candidate, Trellis)
        else native.Format(candidate.tag, candidate.n_levels, *SHRINK_STEPS[candidate.n_levels])
        for candidate in CANDIDATES
    ]
)


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
        self,
        matrix: torch.Tensor,
        column_weights: torch.Tensor,
        *,
        group_size: int,
        floor: torch.Tensor,
        scale_format: ScaleFormat,
    ) -> torch.Tensor:
        """See `Engine.errors`."""
        matrix, column_weights = matrix.contiguous(), column_weights.contiguous()
        result = torch.empty(len(CANDIDATES), len(matrix) // group_size, matrix.shape[1])
        source = _source(matrix, column_weights, group_size, floor, scale_format)
        self._library.errors(source, result.data_ptr())
        return result

    def round(
        self,
        block: torch.Tensor,
        choices: torch.Tensor,
        column_weights: torch.Tensor,
        *,
        floor: torch.Tensor,
        factor: torch.Tensor | None,
        scale_format: ScaleFormat,
    ) -> RoundedGroup:
        """See `Engine.round`."""
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
        self._library.round(_source(block, column_weights, len(block), floor, scale_format), rounding)
        return rounded


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
