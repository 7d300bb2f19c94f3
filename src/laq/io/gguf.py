"""GGUF headers, walked within bounds before any other reader sees the file.

gguf-py 0.19.0 reads past the end of a file as zero-size values, so a claimed count of 2**63
keeps it busy for ever (49 bytes suffice). `check_gguf` refuses such files at once; what it
accepts, `gguf.GGUFReader` opens.
"""

from __future__ import annotations

import math
import mmap
import os
import reprlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TypeAlias

import numpy as np

from laq.core.errors import FormatError, LaqError, RequestError

_MAX_HEADER_BYTES = 2**27  # bounds time and memory; a vocabulary of 256k tokens takes about 2**24
_MAX_SHOWN = 64  # longer arrays keep their length only
_MAX_DEPTH = 8  # of arrays in arrays; writers in the field nest none
_MAX_SIZE = 2**63 - 1  # of a count of bytes in numpy
_DEFAULT_ALIGNMENT = 32  # of the format
_AGAIN = "the file is damaged or was cut short: download or convert it again"

_UINT32, _BOOL, _STRING, _ARRAY = 4, 7, 8, 9
_SCALARS = {  # value type: its spelling in `struct`
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    _UINT32: "<I",
    5: "<i",
    6: "<f",
    _BOOL: "<B",
    10: "<Q",
    11: "<q",
    12: "<d",
}
_MIN_BYTES = {kind: struct.calcsize(code) for kind, code in _SCALARS.items()} | {_STRING: 8, _ARRAY: 12}
_MIN_PAIR_BYTES = 8 + 4 + 1  # key length, value type, value
_MIN_TENSOR_BYTES = 8 + 4 + 8 + 4 + 8  # name length, number of axes, axis, type, offset
# gguf-py keeps these beside the keys of the file and fails on a second one
_RESERVED_KEYS = ("GGUF.version", "GGUF.tensor_count", "GGUF.kv_count")


@dataclass(frozen=True, slots=True)
class LongArray:
    """An array of metadata too long to keep, such as a vocabulary.

    Parameters
    ----------
    length : int
        Number of its elements.
    """

    length: int


MetadataValue: TypeAlias = "bool | int | float | str | LongArray | tuple[MetadataValue, ...]"


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """Where one tensor lies in a GGUF file.

    Parameters
    ----------
    name : str
    type_name : str
        Its ggml type: `F32`, `Q4_K` ...
    shape : tuple of int
        Axes in numpy's order, outermost first; ggml stores them innermost first.
    start : int
        Offset of its first byte from the start of the file.
    size_bytes : int
        Length of its data.
    """

    name: str
    type_name: str
    shape: tuple[int, ...]
    start: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """All that the header of a GGUF file says, after it was checked.

    Parameters
    ----------
    version : int
        2 or 3.
    metadata : Mapping
        Arrays of more than 64 elements as `LongArray`.
    tensors : tuple of GgufTensor
        In the order of the header.
    """

    version: int
    metadata: Mapping[str, MetadataValue]
    tensors: tuple[GgufTensor, ...]


def check_gguf(path: str | os.PathLike[str]) -> GgufHeader:
    """Walk the header of a little-endian GGUF file of version 2 or 3 and check all of it.

    Parameters
    ----------
    path : path of one whole file, not a part of a split one

    Returns
    -------
    GgufHeader

    Raises
    ------
    FormatError
        If the file is malformed, truncated, split, or of a version or type not known.
    RequestError
        If the file cannot be opened.
    LaqError
        If the package gguf, which knows the tensor types, is missing.
    """
    where = Path(path)
    try:
        with where.open("rb") as file:
            size_bytes = os.fstat(file.fileno()).st_size
            if size_bytes < 24:  # magic, version and two counts; mmap refuses empty files
                raise _refusal(where, "file", expected="at least 24 bytes", got=size_bytes)
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _header(_Cursor(where, data))
    except OSError as error:
        raise RequestError(f"cannot open {where}: {error.strerror}", hint="check the path") from error


@cache
def is_dequantizable(type_name: str) -> bool:
    """Whether gguf-py can turn a tensor type into float32.

    It can for the float types F32, F16 and BF16 and nearly all block types, not for integers,
    F64 and the types that only activations take (Q8_1, Q8_K).

    Parameters
    ----------
    type_name : str
        A ggml type as `GgufTensor` names it.

    Returns
    -------
    bool

    Raises
    ------
    LaqError
        If the package gguf is missing.

    Examples
    --------
    >>> is_dequantizable("Q4_K"), is_dequantizable("Q8_K")
    (True, False)
    """
    gguf = _gguf()
    known = {kind.name: kind for kind in gguf.GGML_QUANT_SIZES}
    if type_name not in known:
        return False
    _, block_bytes = gguf.GGML_QUANT_SIZES[known[type_name]]
    try:
        gguf.dequantize(np.zeros((1, block_bytes), dtype=np.uint8), known[type_name])
    except NotImplementedError:
        return False
    return True


def _gguf() -> ModuleType:
    try:
        import gguf
    except ImportError as error:
        raise LaqError("GGUF files need the package gguf", hint="pip install 'laq[llm]'") from error
    return gguf


def _refusal(path: Path, what: str, *, expected: object, got: object, hint: str = _AGAIN) -> FormatError:
    shown = what if what.isprintable() and len(what) <= 200 else ascii(what[:200])
    return FormatError(f"{path}: {shown}: expected {expected}, got {got}", hint=hint)


class _Cursor:
    """A place in the header; every step is held against the end of the file before it is made."""

    __slots__ = ("at", "data", "end", "path")

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path = path
        self.data = data
        self.at = 0
        self.end = min(len(data), _MAX_HEADER_BYTES)

    def require(self, n_bytes: int, what: str) -> None:
        """Refuse unless this many bytes are left."""
        if n_bytes > self.end - self.at:
            left = f"{self.end - self.at} left of {self.end}"
            raise _refusal(self.path, what, expected=f"{n_bytes} bytes at {self.at}", got=left)

    def scalar(self, code: str, what: str) -> int | float:
        """Step over a number of this `struct` code."""
        size_bytes = struct.calcsize(code)
        self.require(size_bytes, what)
        found: int | float = struct.unpack_from(code, self.data, self.at)[0]
        self.at += size_bytes
        return found

    def number(self, code: str, what: str) -> int:
        """Step over a whole number of this `struct` code."""
        return int(self.scalar(code, what))

    def count(self, what: str, *, min_bytes: int) -> int:
        """Step over a count of things that take at least this many bytes each."""
        found = self.number("<Q", what)
        self.require(found * min_bytes, f"{what}, {found} claimed")
        return found

    def text(self, what: str) -> str:
        """Step over a string."""
        length = self.count(what, min_bytes=1)
        raw = self.data[self.at : self.at + length]
        self.at += length
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            got = f"byte {raw[error.start]:#04x}"
            raise _refusal(self.path, what, expected="UTF-8", got=got) from error


def _header(cursor: _Cursor) -> GgufHeader:
    version = _version(cursor)
    n_tensors = cursor.count("number of tensors", min_bytes=_MIN_TENSOR_BYTES)
    n_pairs = cursor.count("number of metadata", min_bytes=_MIN_PAIR_BYTES)
    metadata = _metadata(cursor, n_pairs)
    alignment = _alignment(cursor.path, metadata)
    _refuse_split(cursor.path, metadata)
    tensors = tuple(_tensor_info(cursor) for _ in range(n_tensors))
    data_start = -(-cursor.at // alignment) * alignment
    placed = tuple(_placed(cursor, tensor, data_start=data_start, alignment=alignment) for tensor in tensors)
    _check_disjoint(cursor.path, placed)
    return GgufHeader(version, metadata, placed)


def _version(cursor: _Cursor) -> int:
    magic = cursor.data[:4]
    if magic != b"GGUF":
        hint = "give a .gguf file; older ggml files must be converted first"
        raise _refusal(cursor.path, "magic", expected=b"GGUF", got=magic, hint=hint)
    cursor.at = 4
    version = cursor.number("<I", "version")
    if version not in (2, 3):
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
        got = f"{swapped}, big-endian" if swapped in (2, 3) else version
        hint = "convert the model again with a current llama.cpp, on or for a little-endian machine"
        raise _refusal(cursor.path, "version", expected="2 or 3, little-endian", got=got, hint=hint)
    return version


def _metadata(cursor: _Cursor, n_pairs: int) -> dict[str, MetadataValue]:
    found: dict[str, MetadataValue] = {}
    for index in range(n_pairs):
        key = cursor.text(f"key {index} of {n_pairs}")
        if key in found or key in _RESERVED_KEYS:
            raise _refusal(cursor.path, key, expected="a key not used before", got="it twice")
        kind = cursor.number("<I", key)
        if key == "general.alignment" and kind != _UINT32:
            raise _refusal(cursor.path, key, expected=f"value type {_UINT32} (uint32)", got=kind)
        found[key] = _value(cursor, kind, what=key)
    return found


def _value(cursor: _Cursor, kind: int, *, what: str, depth: int = 0) -> MetadataValue:
    if kind == _STRING:
        return cursor.text(what)
    if kind == _ARRAY:
        return _array(cursor, what, depth=depth)
    if kind not in _SCALARS:
        raise _refusal(cursor.path, what, expected="a value type from 0 to 12", got=kind)
    found = cursor.scalar(_SCALARS[kind], what)
    if kind != _BOOL:
        return found
    if found > 1:
        raise _refusal(cursor.path, what, expected="0 or 1 for a bool", got=found)
    return found == 1


def _array(cursor: _Cursor, what: str, *, depth: int) -> MetadataValue:
    if depth == _MAX_DEPTH:
        raise _refusal(cursor.path, what, expected=f"at most {_MAX_DEPTH} arrays in arrays", got="more")
    kind = cursor.number("<I", what)
    if kind not in _MIN_BYTES:
        raise _refusal(cursor.path, what, expected="a value type from 0 to 12", got=kind)
    length = cursor.count(what, min_bytes=_MIN_BYTES[kind])
    if length <= _MAX_SHOWN:
        return tuple(_value(cursor, kind, what=what, depth=depth + 1) for _ in range(length))
    if kind in _SCALARS:
        cursor.at += length * _MIN_BYTES[kind]
    else:
        for _ in range(length):
            _value(cursor, kind, what=what, depth=depth + 1)
    return LongArray(length)


def _alignment(path: Path, metadata: Mapping[str, MetadataValue]) -> int:
    found = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
    if not isinstance(found, int) or found <= 0 or found & (found - 1):
        raise _refusal(path, "general.alignment", expected="a power of two", got=found)
    return found


def _refuse_split(path: Path, metadata: Mapping[str, MetadataValue]) -> None:
    n_parts = metadata.get("split.count", 1)
    if n_parts not in (0, 1):
        hint = "merge the parts first: llama-gguf-split --merge FIRST-PART WHOLE.gguf"
        raise _refusal(
            path, "split.count", expected="one whole file", got=f"{reprlib.repr(n_parts)} parts", hint=hint
        )


def _tensor_info(cursor: _Cursor) -> GgufTensor:
    """One tensor of the header; its start counts from the start of the data, not yet checked."""
    name = cursor.text("tensor name")
    n_axes = cursor.number("<I", name)
    if not 1 <= n_axes <= 4:
        raise _refusal(cursor.path, name, expected="1 to 4 axes", got=n_axes)
    axes = tuple(cursor.number("<Q", name) for _ in range(n_axes))
    kind = cursor.number("<I", name)
    start = cursor.number("<Q", name)
    type_name, block_elements, block_bytes = _type(cursor.path, name, kind)
    if axes[0] % block_elements:
        what = f"rows of a multiple of {block_elements} elements for {type_name}"
        raise _refusal(cursor.path, name, expected=what, got=axes[0])
    # numpy counts the other axes even where one of them is zero
    if math.prod(max(axis, 1) for axis in axes) * max(block_bytes, 8) > _MAX_SIZE:
        raise _refusal(cursor.path, name, expected="a shape of less than 2**60 elements", got=list(axes))
    size_bytes = math.prod(axes) // block_elements * block_bytes
    return GgufTensor(name, type_name, axes[::-1], start=start, size_bytes=size_bytes)


def _type(path: Path, name: str, kind: int) -> tuple[str, int, int]:
    """Name, elements and bytes of a block of a ggml type."""
    found = _types().get(kind)
    if found is None:
        hint = "update the package: pip install -U gguf; if that is no help, convert the model again"
        raise _refusal(path, name, expected="a ggml type that gguf-py knows", got=f"number {kind}", hint=hint)
    return found


@cache
def _types() -> dict[int, tuple[str, int, int]]:
    sizes = _gguf().GGML_QUANT_SIZES
    return {int(kind): (kind.name, elements, n_bytes) for kind, (elements, n_bytes) in sizes.items()}


def _placed(cursor: _Cursor, tensor: GgufTensor, *, data_start: int, alignment: int) -> GgufTensor:
    """Place a tensor in the file, or refuse it."""
    if tensor.start % alignment:
        what = f"an offset that is a multiple of {alignment}"
        raise _refusal(cursor.path, tensor.name, expected=what, got=tensor.start)
    start = data_start + tensor.start
    if start + tensor.size_bytes > len(cursor.data):
        what = f"{tensor.size_bytes} bytes at {start}"
        raise _refusal(cursor.path, tensor.name, expected=what, got=f"a file of {len(cursor.data)} bytes")
    return GgufTensor(tensor.name, tensor.type_name, tensor.shape, start=start, size_bytes=tensor.size_bytes)


def _check_disjoint(path: Path, tensors: tuple[GgufTensor, ...]) -> None:
    names: set[str] = set()
    end = 0
    for tensor in sorted(tensors, key=lambda tensor: (tensor.start, tensor.size_bytes)):
        if tensor.name in names:
            raise _refusal(path, tensor.name, expected="each tensor name once", got="it twice")
        if tensor.start < end:
            what = f"data after byte {end}, the end of another tensor"
            raise _refusal(path, tensor.name, expected=what, got=f"byte {tensor.start}")
        names.add(tensor.name)
        end = tensor.start + tensor.size_bytes
