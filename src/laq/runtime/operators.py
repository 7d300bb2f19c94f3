"""The native kernels as torch operators, for torch.compile and torch.export; eager modules call them.

`laq::linear`, `laq::rows` and `laq::outliers` take a packed weight's buffers, those of tiles in the order of
`SECTIONS`, as tensors of their own, so that a graph knows what it reads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.weak import WeakIdKeyDictionary

from laq.core.errors import RunError
from laq.kernels import native
from laq.runtime.calls import call_linear, call_outliers, call_rows, has_kernels
from laq.runtime.packed import checked_matrix, versions_of

SECTIONS = (
    "Tensor payload, Tensor bits, Tensor groups, Tensor scales, Tensor? scale_base, Tensor zero_points, "
    "Tensor tile_starts, Tensor zero_offsets, Tensor row_offsets, "
    "Tensor? row_permutation, Tensor? column_permutation, Tensor? palettes, "
    "int n_rows, int n_columns, int group_size"
)

_LIBRARY = torch.library.Library("laq", "DEF")
_LIBRARY.define(f"linear(Tensor inputs, Tensor? bias, int activation_bits, {SECTIONS}) -> Tensor")
_LIBRARY.define(f"rows(Tensor ids, Tensor? row_index, ScalarType dtype, {SECTIONS}) -> Tensor")
_LIBRARY.define("outliers(Tensor inputs, Tensor starts, Tensor columns, Tensor values) -> Tensor")

_checked: WeakIdKeyDictionary = WeakIdKeyDictionary()
"""By payload: what was checked, as addresses and versions, and the matrix. A cache; graphs have no state."""


def matrix_of(*arguments: Any) -> native.Matrix:
    """Return the checked matrix of sections and sizes, as operators take them."""
    *sections, n_rows, n_columns, group_size = arguments
    if not has_kernels():
        raise RunError("the graph needs native kernels", hint="see `laq doctor` for why there are none")
    addresses = tuple(None if section is None else section.data_ptr() for section in sections)
    given = [section for section in sections if section is not None]
    key = (addresses, versions_of(given), n_rows, n_columns, group_size)
    found = _checked.get(sections[0])
    if found is None or found[0] != key:
        made = checked_matrix(sections, n_rows=n_rows, n_columns=n_columns, group_size=group_size)
        found = _checked[sections[0]] = key, made.matrix
    matrix: native.Matrix = found[1]
    return matrix


def _linear(
    inputs: torch.Tensor, bias: torch.Tensor | None, activation_bits: int, *rest: Any
) -> torch.Tensor:
    return call_linear(native.matrices([matrix_of(*rest)]), [bias], inputs, activation_bits)[0]


def _rows(ids: torch.Tensor, row_index: torch.Tensor | None, dtype: torch.dtype, *rest: Any) -> torch.Tensor:
    return call_rows(matrix_of(*rest), ids, row_index, dtype)


def _fake_linear(inputs: torch.Tensor, bias: object, activation_bits: int, *rest: Any) -> torch.Tensor:
    del bias, activation_bits
    torch._check(
        inputs.shape[-1] == rest[-2], lambda: f"inputs of {inputs.shape}, expected {rest[-2]} columns"
    )
    return inputs.new_empty((*inputs.shape[:-1], rest[-3]))


def _fake_rows(ids: torch.Tensor, row_index: object, dtype: torch.dtype, *rest: Any) -> torch.Tensor:
    del row_index
    return ids.new_empty((*ids.shape, rest[-2]), dtype=dtype)


def _fake_outliers(inputs: torch.Tensor, starts: torch.Tensor, *rest: Any) -> torch.Tensor:
    del rest
    return inputs.new_empty((*inputs.shape[:-1], len(starts) - 1))


_LIBRARY.impl("linear", _linear, "CPU")
_LIBRARY.impl("rows", _rows, "CPU")
_LIBRARY.impl("outliers", call_outliers, "CPU")
torch.library.register_fake("laq::linear", _fake_linear, lib=_LIBRARY)
torch.library.register_fake("laq::rows", _fake_rows, lib=_LIBRARY)
torch.library.register_fake("laq::outliers", _fake_outliers, lib=_LIBRARY)
