"""The native kernels as torch operators, for torch.compile and torch.export; eager modules call them.

`laq::linear` and `laq::rows` take a packed weight's buffers, in the order of `SECTIONS`, as tensors of their
own, so that a graph knows what it reads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.weak import WeakIdKeyDictionary

from laq.core.errors import RunError
from laq.kernels import native
from laq.runtime.calls import call_linear, call_rows
from laq.runtime.packed import matrix_of

SECTIONS = (
    "Tensor payload, Tensor bits, Tensor groups, Tensor scales, Tensor? scale_base, Tensor zero_points, "
    "Tensor tile_starts, Tensor row_offsets, Tensor? row_permutation, Tensor? column_permutation, "
    "int n_rows, int n_columns, int group_size"
)

_LIBRARY = torch.library.Library("laq", "DEF")
_LIBRARY.define(f"linear(Tensor inputs, Tensor? bias, int activation_bits, {SECTIONS}) -> Tensor")
_LIBRARY.define(f"rows(Tensor stored_rows, float factor, ScalarType dtype, {SECTIONS}) -> Tensor")

_matrices: WeakIdKeyDictionary = WeakIdKeyDictionary()
"""Checked matrices by their payload."""


def _matrix(*sections: torch.Tensor | int | None) -> native.Matrix:
    *tensors, n_rows, n_columns, group_size = sections
    payload = tensors[0]
    found: native.Matrix | None = _matrices.get(payload)
    made = matrix_of(tensors, n_rows=n_rows, n_columns=n_columns, group_size=group_size)  # type: ignore[arg-type]  # as in SECTIONS
    if found is None or bytes(found) != bytes(made):
        library = native.library()
        if library is None:
            raise RunError("the graph needs native kernels", hint="see `laq doctor` for why there are none")
        library.check(made, name="packed weight")
        _matrices[payload] = found = made
    return found


def _linear(
    inputs: torch.Tensor,
    bias: torch.Tensor | None,
    activation_bits: int,
    *sections: torch.Tensor | int | None,
) -> torch.Tensor:
    return call_linear([_matrix(*sections)], [bias], inputs, activation_bits)[0]


def _rows(
    stored_rows: torch.Tensor, factor: float, dtype: torch.dtype, *sections: torch.Tensor | int | None
) -> torch.Tensor:
    return call_rows(_matrix(*sections), stored_rows, factor, dtype)


def _fake_linear(inputs: torch.Tensor, bias: object, activation_bits: int, *sections: Any) -> torch.Tensor:
    del bias, activation_bits
    return inputs.new_empty((*inputs.shape[:-1], sections[-3]))


def _fake_rows(stored_rows: torch.Tensor, factor: float, dtype: torch.dtype, *sections: Any) -> torch.Tensor:
    del factor
    return stored_rows.new_empty((*stored_rows.shape, sections[-2]), dtype=dtype)


_LIBRARY.impl("linear", _linear, "CPU")
_LIBRARY.impl("rows", _rows, "CPU")
torch.library.register_fake("laq::linear", _fake_linear, lib=_LIBRARY)
torch.library.register_fake("laq::rows", _fake_rows, lib=_LIBRARY)
