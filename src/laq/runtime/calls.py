"""Calls of the native kernels with torch tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from laq.kernels import native

TYPES = {torch.float32: native.FLOAT32, torch.bfloat16: native.BFLOAT16, torch.float16: native.FLOAT16}

FEW_INPUTS = 4
"""Up to so many inputs activations have 16 bits: the time goes into reading weights."""


def can_run(inputs: torch.Tensor) -> bool:
    """Say whether the native kernels take this input: on the CPU, of a known type, no gradient wanted."""
    return (
        inputs.device.type == "cpu"
        and inputs.dtype in TYPES
        and not (inputs.requires_grad and torch.is_grad_enabled())
        and has_kernels()
    )


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # torch left it untyped
def has_kernels() -> bool:
    """Say whether this machine has native kernels, and they are wanted."""
    return native.library() is not None


def activation_bits(n_inputs: int) -> int:
    """Return the bits of activations where nobody chose: 16 for a few inputs, 8 for many."""
    return 16 if n_inputs <= FEW_INPUTS else 8


def call_linear(
    matrices: Sequence[native.Matrix],
    biases: Sequence[torch.Tensor | None],
    inputs: torch.Tensor,
    bits: int,
) -> list[torch.Tensor]:
    """Multiply one input by several checked matrices that share its order of columns.

    Parameters
    ----------
    matrices : sequence of Matrix
        Of one width and group size.
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
    rows = inputs.detach().reshape(-1, inputs.shape[-1])
    if rows.stride(1) != 1:
        rows = rows.contiguous()
    lead, dtype = inputs.shape[:-1], inputs.dtype
    outputs = [torch.empty((*lead, matrix.n_rows), dtype=dtype) for matrix in matrices]
    inside = [bias if bias is not None and bias.dtype == torch.float32 else None for bias in biases]
    code = library.linear(
        matrices[0] if len(matrices) == 1 else native.matrices(matrices),
        len(matrices),
        rows.data_ptr(),
        TYPES[dtype],
        len(rows),
        rows.stride(0),
        native.addresses([output.data_ptr() for output in outputs]),
        native.addresses([None if bias is None else bias.data_ptr() for bias in inside]),
        bits or activation_bits(len(rows)),
    )
    native.raise_problem(code, name="linear")
    for i, bias in enumerate(biases):
        if bias is not None and inside[i] is None:
            outputs[i] += bias.to(dtype)
    return outputs


def call_rows(
    matrix: native.Matrix, stored_rows: torch.Tensor, factor: float, dtype: torch.dtype
) -> torch.Tensor:
    """Return stored rows times `factor` in the source's order of columns; int64 [...] to [..., n_columns]."""
    library = native.library()
    assert library is not None
    stored_rows = stored_rows.contiguous()
    out = torch.empty((*stored_rows.shape, matrix.n_columns), dtype=dtype)
    code = library.rows(
        matrix, stored_rows.data_ptr(), stored_rows.numel(), factor, out.data_ptr(), TYPES[dtype]
    )
    native.raise_problem(code, name="embedding")
    return out
