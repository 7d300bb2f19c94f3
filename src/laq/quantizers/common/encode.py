"""From sorted weights and their plan to codes: weights that share a hessian go through together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from laq.core.groups import TILE_ROWS
from laq.core.packing import TAGS, uses_palettes
from laq.core.permutation import IndexArray
from laq.core.qtensor import QTensor
from laq.core.scheme import ScaleFormat
from laq.quantizers import Codes, Feedback, Quantizer
from laq.quantizers.common.engine import FixedScales
from laq.quantizers.common.palettes import with_palettes
from laq.quantizers.common.sorting import SortedWeight


def encode(
    weights: Sequence[SortedWeight],
    choices: Sequence[npt.NDArray[np.uint8]],
    quantizer: Quantizer,
    feedback: Feedback,
    *,
    columns: IndexArray | None,
    scale_format: ScaleFormat,
) -> list[QTensor]:
    """Quantize weights that share a hessian.

    Parameters
    ----------
    weights : sequence of SortedWeight
        In one order of columns.
    choices : sequence of uint8 [n_row_blocks, n_groups]
        Candidate format of every tile of each weight.
    quantizer, feedback
        Method, and what it prepared from the shared hessian.
    columns : uint16 or uint32 [n_columns], or None
        The shared order of columns.
    scale_format : ScaleFormat
        How scales are stored.
    """
    matrix = torch.cat([weight.matrix for weight in weights], 1)
    chosen = torch.from_numpy(np.ascontiguousarray(np.concatenate(choices).T))
    if any(uses_palettes(TAGS[choice]) for choice in choices):
        feedback = with_palettes(feedback, weights, scale_format)
    if quantizer.scale_per.beyond_groups:
        feedback = _with_fixed(feedback, weights, choices, quantizer, scale_format)
    codes = quantizer.quantize(matrix, feedback, chosen, scale_format=scale_format)
    ends = np.cumsum([weight.grid.padded_rows for weight in weights]).tolist()
    tensors = [
        _qtensor(
            weight,
            choice,
            _rows(codes, end - weight.grid.padded_rows, end),
            columns=columns,
            scale_format=scale_format,
            palettes=feedback.of_blocks(slice(end // TILE_ROWS - 1, end // TILE_ROWS)).palettes,
        )
        for weight, choice, end in zip(weights, choices, ends, strict=True)
    ]
    return [replace(tensor, scale_per=quantizer.scale_per) for tensor in tensors]


def _with_fixed(
    feedback: Feedback,
    weights: Sequence[SortedWeight],
    choices: Sequence[npt.NDArray[np.uint8]],
    quantizer: Quantizer,
    scale_format: ScaleFormat,
) -> Feedback:
    """Scales of each weight by itself, side by side."""
    parts = []
    for weight, choice in zip(weights, choices, strict=True):
        fixed = quantizer.engine.fixed(
            weight.matrix,
            feedback.column_weights,
            torch.from_numpy(np.unique(choice)),
            scale_format=scale_format,
            rows=weight.rows,
        )
        assert fixed is not None, "a quantizer of other scales"
        parts.append([each.expand(-1, weight.grid.padded_rows) for each in (fixed.stored, fixed.zero_points)])
    stored, zero_points = (torch.cat(each, 1) for each in zip(*parts, strict=True))
    return replace(feedback, fixed=FixedScales(stored, zero_points))


def _rows(codes: Codes, start: int, stop: int) -> Codes:
    part = slice(start, stop)
    return Codes(codes.codes[:, part], codes.scales[:, part], codes.zero_points[:, part])


def _qtensor(
    weight: SortedWeight,
    choices: npt.NDArray[np.uint8],
    codes: Codes,
    *,
    columns: IndexArray | None,
    scale_format: ScaleFormat,
    palettes: torch.Tensor | None,
) -> QTensor:
    return QTensor(
        grid=weight.grid,
        scale_format=scale_format,
        choices=choices,
        codes=codes.codes.T.contiguous().numpy(),
        scales=codes.scales.T.contiguous().numpy(),
        zero_points=codes.zero_points.T.contiguous().numpy(),
        row_permutation=weight.row_permutation,
        column_permutation=columns,
        palettes=None if palettes is None else palettes[0].numpy(),
    )
