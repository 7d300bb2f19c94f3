"""The safetensors container: a checked header, mapped reads, aligned and atomic writes.

A file is eight bytes of header length, a JSON header, then the bytes of all tensors without
a gap. The `safetensors` package starts the data at a multiple of 8 bytes only; kernels read
mapped bytes in whole cache lines, so files written here start it at a multiple of 64.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, final

import numpy as np
import numpy.typing as npt

from laq.core.errors import RequestError, ResourceError
from laq.io.safetensors_header import (
    DTYPES,
    MAX_HEADER_BYTES,
    NATIVE_DTYPES,
    Header,
    TensorEntry,
    head_bytes,
    parse_header,
    refusal,
    tensor_size_bytes,
)

__all__ = [
    "RawTensor",
    "TensorEntry",
    "file_size_bytes",
    "open_tensors",
    "read_header",
    "write_tensors",
]

StrPath = str | os.PathLike[str]

_SPELLINGS = {dtype: spelling for spelling, dtype in NATIVE_DTYPES.items()}


@dataclass(frozen=True, slots=True, eq=False)
class RawTensor:
    """A tensor as bytes, so that types numpy does not know pass through.

    Parameters
    ----------
    dtype : str
        Element type as safetensors spells it.
    shape : tuple of int
        Axes, outermost first.
    data : array of uint8, [size_bytes]
        Little-endian elements in C order.

    Examples
    --------
    >>> tensor = RawTensor.of(np.arange(6, dtype=np.float32).reshape(2, 3))
    >>> tensor.dtype, tensor.shape, tensor.data.size
    ('F32', (2, 3), 24)
    >>> tensor.array()[1]
    array([3., 4., 5.], dtype=float32)
    """

    dtype: str
    shape: tuple[int, ...]
    data: npt.NDArray[np.uint8]

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype {self.dtype!r} is not one of {', '.join(DTYPES)}")
        size_bytes = tensor_size_bytes(self.dtype, self.shape)
        if self.data.dtype != np.uint8 or self.data.shape != (size_bytes,):
            raise ValueError(
                f"{self.dtype} of shape {self.shape} needs uint8 [{size_bytes}], "
                f"got {self.data.dtype} {list(self.data.shape)}"
            )

    @classmethod
    def of(cls, array: npt.NDArray[np.generic]) -> RawTensor:
        """Take the bytes of a numpy array; a view where its layout allows it.

        Parameters
        ----------
        array : array of bool, integers, floats or complex64, any shape

        Returns
        -------
        RawTensor

        Raises
        ------
        ValueError
            If safetensors has no such element type.
        """
        little = array.dtype.newbyteorder("<")
        if little not in _SPELLINGS:
            raise ValueError(f"safetensors has no element type for numpy's {array.dtype}")
        flat = np.ascontiguousarray(array, dtype=little).reshape(-1)
        return cls(_SPELLINGS[little], array.shape, flat.view(np.uint8))

    def array(self) -> npt.NDArray[np.generic]:
        """View the bytes as a numpy array.

        Returns
        -------
        array, `shape`
            BF16 and the F8 types, which numpy does not know, come as unsigned integers
            that hold their bits.
        """
        return self.data.view(DTYPES[self.dtype]).reshape(self.shape)


def read_header(path: StrPath) -> dict[str, TensorEntry]:
    """Read and check the header of a file: when it returns, every tensor lies in the file.

    Parameters
    ----------
    path : path of a safetensors file

    Returns
    -------
    dict of TensorEntry
        By name, in the order of their data.

    Raises
    ------
    FormatError
        If anything in the header contradicts itself or the size of the file.
    RequestError
        If the file cannot be opened.
    """
    with _opened(Path(path)) as file:
        return _header(file, Path(path)).entries


def open_tensors(path: StrPath) -> Mapping[str, RawTensor]:
    """Map a file into memory; bytes are fetched from disk when they are touched.

    What is written into the views stays in this process: the file is never changed.

    Parameters
    ----------
    path : path of a safetensors file

    Returns
    -------
    Mapping of RawTensor
        Views of the mapped file, in the order of their data.

    Raises
    ------
    FormatError
        If the file is malformed.
    RequestError
        If the file cannot be opened.
    """
    with _opened(Path(path)) as file:
        entries = _header(file, Path(path)).entries
        mapped = np.memmap(file, dtype=np.uint8, mode="c")
    return _MappedTensors(entries, mapped.view(np.ndarray))


def write_tensors(path: StrPath, tensors: Mapping[str, RawTensor], *, metadata: Mapping[str, str]) -> None:
    """Write a file whose data starts at a multiple of 64 bytes, or leave none behind.

    Tensors follow each other in the mapping's order without a gap: all of them are aligned
    up to and including the first whose size is not a multiple of 64 bytes. The mapping is
    walked twice, for shapes and for bytes; no second copy of the data is made.

    Parameters
    ----------
    path : path of the file; replaced in one step when all is on disk
    tensors : Mapping of RawTensor
    metadata : Mapping of str
        Free text to keep beside them.

    Raises
    ------
    RequestError
        If a name or a text cannot be stored.
    ResourceError
        If the disk refuses.
    """
    target = Path(path)
    specs = [(name, tensor.dtype, tensor.shape) for name, tensor in tensors.items()]
    head = head_bytes(specs, metadata)
    partial = target.with_name(target.name + ".partial")
    try:
        with partial.open("wb") as file:
            file.write(head)
            for name, dtype, shape in specs:
                tensor = tensors[name]
                assert (tensor.dtype, tensor.shape) == (dtype, shape), f"{name} changed while being written"
                file.write(np.ascontiguousarray(tensor.data).data)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        if isinstance(error, OSError):
            raise ResourceError(f"cannot write {target}: {error.strerror}", hint=_room(target)) from error
        raise


def file_size_bytes(entries: Iterable[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str]) -> int:
    """Size of the file that `write_tensors` would write, to the byte.

    Parameters
    ----------
    entries : iterable of (name, dtype, shape)
    metadata : Mapping of str

    Returns
    -------
    int
        Bytes, header and padding included.

    Raises
    ------
    RequestError
        If a name or a text cannot be stored.

    Examples
    --------
    >>> file_size_bytes([("w", "F32", (4, 4))], {})
    192
    """
    specs = list(entries)
    payload_bytes = sum(tensor_size_bytes(dtype, shape) for _, dtype, shape in specs)
    return len(head_bytes(specs, metadata)) + payload_bytes


@final
class _MappedTensors(Mapping[str, RawTensor]):
    """Tensors as views of one mapped file."""

    def __init__(self, entries: Mapping[str, TensorEntry], mapped: npt.NDArray[np.uint8]) -> None:
        self._entries = entries
        self._mapped = mapped

    def __getitem__(self, name: str) -> RawTensor:
        entry = self._entries[name]
        data = self._mapped[entry.start : entry.start + entry.size_bytes]
        return RawTensor(entry.dtype, entry.shape, data)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def _room(target: Path) -> str:
    return f"check that {target.parent} exists, can be written and has room"


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise RequestError(f"cannot open {path}: {error.strerror}", hint="check the path") from error


def _header(file: BinaryIO, path: Path) -> Header:
    """Read the header of an open file, never more of it than the file and the limit hold."""
    size_bytes = os.fstat(file.fileno()).st_size
    if size_bytes < 8:
        raise refusal(path, "file", expected="at least 8 bytes", got=size_bytes)
    length = int.from_bytes(file.read(8), "little")
    room = min(size_bytes - 8, MAX_HEADER_BYTES)
    if length > room:
        raise refusal(path, "header length", expected=f"at most {room} bytes", got=length)
    return parse_header(path, file.read(length), file_size_bytes=size_bytes)
