"""Calls of the native kernels with torch tensors."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch.autograd import forward_ad

from laq.core.errors import FormatError, RequestError
from laq.core.groups import TILE_ROWS
from laq.core.packing import UNIT_BYTES
from laq.kernels import native

TYPES = {torch.float32: native.FLOAT32, torch.bfloat16: native.BFLOAT16, torch.float16: native.FLOAT16}

FEW_INPUTS = 4
"""Up to so many inputs activations have 16 bits: the time goes into reading weights."""


def can_run(inputs: torch.Tensor, bias: torch.Tensor | None = None) -> bool:
    """Say whether the native kernels take this input: on the CPU, of a known type, no gradient wanted."""
    wants_gradient = inputs.requires_grad or (bias is not None and bias.requires_grad)
    return (
        inputs.is_cpu
        and inputs.dtype in TYPES
        and not (wants_gradient and torch.is_grad_enabled())
        and forward_ad._current_level < 0  # forward-mode derivatives ride on the tensor, unseen by a pointer
        and has_kernels()
    )


def can_unpack(payload: torch.Tensor) -> bool:
    """Say whether the native kernels take the lines of a packed weight."""
    return payload.device.type == "cpu" and has_kernels() and not is_recorded()


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # torch left it untyped
def has_kernels() -> bool:
    """Say whether this machine has native kernels, and they are wanted."""
    return native.library() is not None


def is_recorded() -> bool:
    """Say whether a graph is being made of what runs: it needs operators, pointers would be lost."""
    return (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._len_torch_dispatch_stack() > 0
    )


def activation_bits(n_inputs: int) -> int:
    """Return the bits of activations where nobody chose: 16 for a few inputs, 8 for many."""
    return 16 if n_inputs <= FEW_INPUTS else 8


def call_linear(
    matrices: ctypes.Array[native.Matrix],
    biases: Sequence[torch.Tensor | None],
    inputs: torch.Tensor,
    bits: int,
) -> list[torch.Tensor]:
    """Multiply one input by several checked matrices that share its order of columns.

    Parameters
    ----------
    matrices : array of Matrix
        Of one width and group size; see `native.matrices`.
    biases : sequence of Tensor or None
        float [n_rows] of each.
    inputs : float [..., n_columns]
        Of a type in `TYPES`.
    bits : int
        Of activations, 8 or 16; 0 lets the number of inputs decide.

    Returns
    -------
    list of Tensor
        float [..., n_rows] of each matrix, in the input's type.
    """
    library = native.library()
    assert library is not None
    _check_call(matrices, biases, inputs)
    dtype, rows, n_inputs, stride = inputs.dtype, *_in_rows(inputs, matrices[0].n_columns)
    lead = inputs.shape[:-1]
    outputs = [torch.empty((*lead, matrix.n_rows), dtype=dtype, device="cpu") for matrix in matrices]
    inside = [bias if bias is not None and bias.dtype == torch.float32 else None for bias in biases]
    code = library.linear(
        matrices,
        len(outputs),
        rows.data_ptr(),
        TYPES[dtype],
        n_inputs,
        stride,
        native.addresses([output.data_ptr() for output in outputs]),
        native.addresses([None if bias is None else bias.data_ptr() for bias in inside]),
        bits or activation_bits(n_inputs),
    )
    native.raise_problem(code, name="linear")
    for output, bias, added in zip(outputs, biases, inside, strict=True):
        if bias is not None and added is None:
            output.add_(bias.to(dtype))
    return outputs


def _in_rows(inputs: torch.Tensor, width: int) -> tuple[torch.Tensor, int, int]:
    """Return inputs whose last axis has no gaps, their number, and the elements from one to the next."""
    if inputs.is_contiguous() and not inputs.is_neg():
        return inputs, inputs.numel() // width, width
    rows = inputs.detach().resolve_neg().reshape(-1, width)
    rows = rows if rows.stride(1) == 1 else rows.contiguous()
    return rows, len(rows), rows.stride(0)


def _check_call(
    matrices: ctypes.Array[native.Matrix], biases: Sequence[torch.Tensor | None], inputs: torch.Tensor
) -> None:
    assert len(biases) == len(matrices)
    width = matrices[0].n_columns
    if not inputs.ndim or inputs.shape[-1] != width:
        raise RequestError(f"inputs of shape {tuple(inputs.shape)}, the last axis should be {width}")
    for i, bias in enumerate(biases):
        if bias is None:
            continue
        matrix = matrices[i]
        if bias.device.type != "cpu" or bias.shape != (matrix.n_rows,) or not bias.is_contiguous():
            raise RequestError(
                f"a bias of shape {tuple(bias.shape)} on {bias.device}, expected {(matrix.n_rows,)} on cpu"
            )


def outliers_of(
    starts: torch.Tensor, columns: torch.Tensor, values: torch.Tensor, n_columns: int
) -> native.Outliers:
    """Return a matrix of few elements as the native kernels take it; they check what is in it at every call.

    Parameters
    ----------
    starts : int32 [n_rows + 1]
        First element of each row, and the number of elements.
    columns : int16 or int32 [n]
        Bits of u16 or u32.
    values : int16 [n]
        Bits of bfloat16.
    n_columns : int
        Columns of the matrix.

    Raises
    ------
    FormatError
        If types or lengths are others.
    """
    types = (starts.dtype, columns.dtype, values.dtype)
    is_known = types in [(torch.int32, index, torch.int16) for index in (torch.int16, torch.int32)]
    if (
        not is_known
        or columns.shape != values.shape
        or not all(one.ndim == 1 and one.is_contiguous() and one.is_cpu for one in (starts, columns, values))
    ):
        raise FormatError("outliers: buffers of other types or lengths", hint="load its state dict again")
    return native.Outliers(
        n_rows=len(starts) - 1,
        n_columns=n_columns,
        n=len(values),
        starts=starts.data_ptr(),
        columns=columns.data_ptr(),
        values=values.data_ptr(),
        column_bytes=columns.element_size(),
    )


def call_outliers(
    inputs: torch.Tensor, starts: torch.Tensor, columns: torch.Tensor, values: torch.Tensor
) -> torch.Tensor:
    """Multiply float [..., n_columns] by a matrix of few elements, see `outliers_of`; [..., n_rows]."""
    library = native.library()
    assert library is not None
    width = inputs.shape[-1]
    outliers = outliers_of(starts, columns, values, width)
    rows, n_inputs, stride = _in_rows(inputs, width)
    out = torch.empty((*inputs.shape[:-1], outliers.n_rows), dtype=inputs.dtype, device="cpu")
    kind = TYPES[inputs.dtype]
    code = library.outlier_product(outliers, rows.data_ptr(), kind, n_inputs, stride, out.data_ptr())
    native.raise_problem(code, name="outliers")
    return out


def call_rows(
    matrix: native.Matrix, ids: torch.Tensor, row_index: torch.Tensor | None, dtype: torch.dtype
) -> torch.Tensor:
    """Return rows of the source's matrix; integer ids [...] to [..., n_columns].

    Parameters
    ----------
    matrix : Matrix
        Checked.
    ids : int64 or int32 [...]
        Rows of the source.
    row_index : int32 [n_rows] or None
        Where each row of the source is stored; None if rows keep their order.
    dtype : torch.dtype
        One of `TYPES`.

    Raises
    ------
    IndexError
        If an id is out of range.
    """
    library = native.library()
    assert library is not None
    n_rows = matrix.n_rows
    if ids.numel() and (int(ids.min()) < 0 or int(ids.max()) >= n_rows):
        raise IndexError(f"ids from {int(ids.min())} to {int(ids.max())}, the vocabulary has {n_rows}")
    stored = (ids if row_index is None else row_index[ids.long()]).long().contiguous()
    out = torch.empty((*ids.shape, matrix.n_columns), dtype=dtype, device="cpu")
    code = library.rows(matrix, stored.data_ptr(), stored.numel(), out.data_ptr(), TYPES[dtype])
    native.raise_problem(code, name="embedding")
    return out


def call_unpack(
    payload: torch.Tensor,
    first_units: torch.Tensor,
    tag: int,
    group_size: int,
    *,
    palettes: torch.Tensor | None,
) -> torch.Tensor:
    """Return the levels of tiles with one tag; uint8 [n, 16, group_size].

    Parameters
    ----------
    payload : uint8 [units, 16]
        Of a checked matrix.
    first_units : int64 [n]
        Where each tile starts.
    tag : int
        What the tile table says of them.
    group_size : int
        Columns of a tile.
    palettes : uint8 [28] or None
        Its learned entries.
    """
    library = native.library()
    assert library is not None
    n = len(first_units)
    levels = torch.empty((n, TILE_ROWS, group_size), dtype=torch.uint8)
    tags = torch.full((n,), tag, dtype=torch.uint8)
    code_starts, payload_starts = torch.arange(n) * (TILE_ROWS * group_size), first_units * UNIT_BYTES
    tiles = native.Tiles(
        n_tiles=n,
        group_size=group_size,
        bits=tags.data_ptr(),
        code_starts=code_starts.data_ptr(),
        stride=group_size,
        payload_starts=payload_starts.data_ptr(),
        palettes=None if palettes is None else palettes.data_ptr(),
    )
    library.unpack(tiles, payload.data_ptr(), levels.data_ptr())
    return levels
