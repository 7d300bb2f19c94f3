"""The header of a safetensors file: its element types, how it is spelt, how it is checked.

Nothing in a header is believed: each number is held against the size of the file before it
is used, and what is accepted fits numpy's limits, so that no later step can fail on it.
"""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from laq.core.errors import FormatError, RequestError

DATA_ALIGNMENT_BYTES = 64
"""The data section of a written file starts at a multiple of this: one cache line."""

MAX_HEADER_BYTES = 100_000_000
"""Longest header read or written: the limit of the safetensors package."""

NATIVE_DTYPES = {
    "BOOL": np.dtype("?"),
    "U8": np.dtype("u1"),
    "I8": np.dtype("i1"),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "F16": np.dtype("<f2"),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "F32": np.dtype("<f4"),
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "F64": np.dtype("<f8"),
    "C64": np.dtype("<c8"),
}
"""Element types that numpy knows, by their spelling in a header."""

DTYPES = NATIVE_DTYPES | {
    "BF16": np.dtype("<u2"),
    "F8_E4M3": np.dtype("u1"),
    "F8_E4M3FNUZ": np.dtype("u1"),
    "F8_E5M2": np.dtype("u1"),
    "F8_E5M2FNUZ": np.dtype("u1"),
    "F8_E8M0": np.dtype("u1"),
}
"""All element types; those numpy does not know as unsigned integers that hold their bits."""

_MAX_SIZE = 2**63 - 1  # of a count of bytes, in numpy as in the format
_MAX_AXES = 64  # of a numpy array
_METADATA = "__metadata__"
_AGAIN = "the file is damaged or was cut short: download or write it again"


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where one tensor lies in a file.

    Parameters
    ----------
    name : str
        Name in the header.
    dtype : str
        Element type as safetensors spells it: `F32`, `BF16`, `U8` ...
    shape : tuple of int
        Axes, outermost first.
    start : int
        Offset of its first byte from the start of the file.
    size_bytes : int
        Length of its data.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Header:
    """All that a header says, after it was checked.

    Parameters
    ----------
    entries : dict of TensorEntry
        By name, in the order of their data.
    metadata : dict of str
        Free text; empty if there is none.
    """

    entries: dict[str, TensorEntry]
    metadata: dict[str, str]


def tensor_size_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Count the bytes of a tensor.

    Parameters
    ----------
    dtype : str
        One of `DTYPES`.
    shape : tuple of int

    Returns
    -------
    int
    """
    return math.prod(shape) * DTYPES[dtype].itemsize


def head_bytes(specs: Iterable[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str]) -> bytes:
    """Spell the start of a file: header length and header, padded with spaces.

    Parameters
    ----------
    specs : iterable of (name, dtype, shape)
        Tensors in the order of their data, which has no gaps.
    metadata : Mapping of str

    Returns
    -------
    bytes
        Their number is a multiple of 64.

    Raises
    ------
    RequestError
        If a name is taken, is no Unicode text, or the header is longer than is read back.
    """
    header: dict[str, object] = {_METADATA: dict(metadata)} if metadata else {}
    at = 0
    for name, dtype, shape in specs:
        if name in header or name == _METADATA:
            raise RequestError(f"tensor {name!r}: the name is taken", hint="rename the tensor")
        end = at + tensor_size_bytes(dtype, shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = _encoded(json.dumps(header, ensure_ascii=False, separators=(",", ":")))
    size_bytes = -(-(8 + len(text)) // DATA_ALIGNMENT_BYTES) * DATA_ALIGNMENT_BYTES - 8
    if size_bytes > MAX_HEADER_BYTES:
        raise RequestError(
            f"the header takes {size_bytes} bytes, at most {MAX_HEADER_BYTES} are read back",
            hint="keep less metadata, or write several files",
        )
    return size_bytes.to_bytes(8, "little") + text.ljust(size_bytes)


def parse_header(path: Path, head: bytes, *, file_size_bytes: int) -> Header:
    """Check a header against itself and the size of its file.

    Parameters
    ----------
    path : Path
        Named in errors; not opened.
    head : bytes
        The header, without the eight bytes of its length.
    file_size_bytes : int
        Size of the whole file.

    Returns
    -------
    Header

    Raises
    ------
    FormatError
        If it is not JSON as the format asks, or its tensors do not fill the file exactly.
    """
    found = _json_object(path, head)
    metadata = _metadata(path, found.pop(_METADATA, {}))
    data_start = 8 + len(head)
    entries = [_entry(path, name, fields=fields, data_start=data_start) for name, fields in found.items()]
    entries.sort(key=lambda entry: (entry.start, entry.size_bytes))
    _check_layout(path, entries, data_start=data_start, file_size_bytes=file_size_bytes)
    return Header({entry.name: entry for entry in entries}, metadata)


def refusal(path: Path, what: str, *, expected: object, got: object) -> FormatError:
    """Make an error that names the file and the thing in it, on one line whatever its name.

    Parameters
    ----------
    path : Path
    what : str
        Name of a tensor, or part of the file.
    expected, got : object
        Shown as text.

    Returns
    -------
    FormatError
        To be raised by the caller.
    """
    shown = what if what.isprintable() and len(what) <= 200 else ascii(what[:200])
    return FormatError(f"{path}: {shown}: expected {expected}, got {got}", hint=_AGAIN)


def _encoded(text: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        bad = ascii(text[error.start : error.end])
        raise RequestError(
            f"{bad} in a name or in the metadata is not a Unicode character", hint="rename the tensor"
        ) from error


class _NotAllowedError(ValueError):
    """Valid to Python's parser, not to the format."""


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, value in pairs:
        if name in found:
            raise _NotAllowedError(f"{reprlib.repr(name)} twice")
        found[name] = value
    return found


def _no_constant(text: str) -> object:
    raise _NotAllowedError(text)


def _json_object(path: Path, head: bytes) -> dict[str, object]:
    try:
        found = json.loads(head.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise refusal(path, "header", expected="UTF-8", got=f"byte {head[error.start]:#04x}") from error
    except _NotAllowedError as error:
        raise refusal(path, "header", expected="each name once, finite numbers", got=error) from error
    except (ValueError, RecursionError) as error:  # ValueError: also a number of thousands of digits
        raise refusal(path, "header", expected="JSON", got=error) from error
    if not isinstance(found, dict) or not head.startswith(b"{"):
        raise refusal(path, "header", expected="a JSON object from its first byte", got=reprlib.repr(found))
    return found


def _is_unicode(text: str) -> bool:
    r"""Whether text can be written again; JSON lets through half a character, such as \ud800."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _metadata(path: Path, found: object) -> dict[str, str]:
    if not isinstance(found, dict):
        raise refusal(path, _METADATA, expected="a JSON object", got=reprlib.repr(found))
    for key, text in found.items():
        if not isinstance(text, str) or not _is_unicode(key + text):
            raise refusal(path, f"{_METADATA} {key}", expected="Unicode text", got=reprlib.repr(text))
    return found


def _entry(path: Path, name: str, *, fields: object, data_start: int) -> TensorEntry:
    """One tensor; its offsets agree with its shape but are not yet held against the file."""
    if not _is_unicode(name):
        raise refusal(path, ascii(name), expected="a name in Unicode", got="half a character")
    if not isinstance(fields, dict) or not {"dtype", "shape", "data_offsets"} <= fields.keys():
        raise refusal(path, name, expected="dtype, shape and data_offsets", got=reprlib.repr(fields))
    dtype = fields["dtype"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise refusal(path, name, expected=f"a dtype of {', '.join(DTYPES)}", got=reprlib.repr(dtype))
    shape = _shape(path, name, fields["shape"])
    size_bytes = tensor_size_bytes(dtype, shape)
    offsets = fields["data_offsets"]
    if not _is_counts(offsets) or len(offsets) != 2 or offsets[1] - offsets[0] != size_bytes:
        what = f"data_offsets {size_bytes} bytes apart, for {dtype} of shape {list(shape)}"
        raise refusal(path, name, expected=what, got=reprlib.repr(offsets))
    return TensorEntry(name, dtype, shape, start=data_start + offsets[0], size_bytes=size_bytes)


def _shape(path: Path, name: str, found: object) -> tuple[int, ...]:
    if not isinstance(found, list) or not _is_counts(found) or len(found) > _MAX_AXES:
        what = f"a shape: at most {_MAX_AXES} whole numbers"
        raise refusal(path, name, expected=what, got=reprlib.repr(found))
    # numpy counts the other axes even where one of them is zero
    if math.prod(max(axis, 1) for axis in found) > _MAX_SIZE // 8:
        raise refusal(path, name, expected="a shape of at most 2**60 elements", got=reprlib.repr(found))
    return tuple(found)


def _is_counts(found: object) -> bool:
    """Whether this is a list of whole numbers from 0 to 2**63 - 1."""
    return isinstance(found, list) and all(type(item) is int and 0 <= item <= _MAX_SIZE for item in found)


def _check_layout(path: Path, entries: list[TensorEntry], *, data_start: int, file_size_bytes: int) -> None:
    """Tensors, sorted, fill the rest of the file: no hole, no overlap, nothing after them."""
    end = data_start
    for entry in entries:
        if entry.start != end:
            what = f"data at byte {end}, right after the tensor before it"
            raise refusal(path, entry.name, expected=what, got=f"byte {entry.start}")
        end += entry.size_bytes
        if end > file_size_bytes:
            what = f"data that ends at byte {end}"
            raise refusal(path, entry.name, expected=what, got=f"a file of {file_size_bytes} bytes")
    if end != file_size_bytes:
        raise refusal(path, "end of file", expected=f"byte {end}, after the last tensor", got=file_size_bytes)
