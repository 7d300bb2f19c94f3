"""Between torch tensors and the raw bytes that containers hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from laq.core.errors import FormatError
from laq.io.safetensors import RawTensor

SAFETENSORS_NAMES: dict[torch.dtype, str] = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
TORCH_DTYPES = {name: dtype for dtype, name in SAFETENSORS_NAMES.items()}

Place = Callable[[npt.NDArray[Any]], npt.NDArray[Any]]


def to_raw(tensor: torch.Tensor) -> RawTensor:
    """Return the bytes of a tensor, without a copy where it is contiguous."""
    flat = tensor.detach().cpu().contiguous().view(-1)
    return RawTensor(SAFETENSORS_NAMES[tensor.dtype], tuple(tensor.shape), flat.view(torch.uint8).numpy())


def from_raw(raw: RawTensor, *, place: Place = np.array) -> torch.Tensor:
    """Return a tensor of these bytes.

    Parameters
    ----------
    raw : RawTensor
        What a file holds.
    place : callable
        Returns the elements where they will lie, as integers that hold their bits where numpy lacks the type.
        By default a copy of their own.

    Raises
    ------
    FormatError
        If torch has no such type.
    """
    dtype = torch_dtype(raw)
    if dtype is torch.bool and bool((raw.data > 1).any()):
        raise FormatError("a tensor of truth values holds others", hint="copy or quantize it again")
    return torch.from_numpy(place(raw.array())).view(dtype)


def torch_dtype(raw: RawTensor) -> torch.dtype:
    """Return the type of a tensor in torch.

    Raises
    ------
    FormatError
        If torch has no such type.
    """
    if raw.dtype not in TORCH_DTYPES:
        raise FormatError(f"tensor of type {raw.dtype}: expected one of {', '.join(TORCH_DTYPES)}")
    return TORCH_DTYPES[raw.dtype]
