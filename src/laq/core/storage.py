"""Values as folders of one JSON file and one .npy file an array; written beside and renamed into place."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from laq.core.errors import FormatError, RequestError

Json = dict[str, Any]
HEADER_NAME = "laq-value.json"

MALFORMED = (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)
"""What reading a JSON file raises that is missing, or holds something else than expected."""


def checked_names(values: object) -> tuple[str, ...]:
    """Return a list of texts as a tuple, or raise ValueError."""
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ValueError(f"{values!r} is not a list of names")
    return tuple(values)


@dataclass(frozen=True, slots=True)
class FolderKind:
    """How a folder that laq wrote is told from the user's own.

    Parameters
    ----------
    marker : str
        File that is always in it.
    patterns : tuple of str
        Names of its other files, as glob patterns; of folders in it, exactly.
    """

    marker: str
    patterns: tuple[str, ...]

    def foreign(self, path: Path) -> list[str]:
        """Return the names in an existing folder that laq did not write."""
        allowed = (self.marker, *self.patterns)
        return sorted(
            entry.name
            for entry in path.iterdir()
            if not any(fnmatchcase(entry.name, pattern) for pattern in allowed)
            or (entry.is_dir() and entry.name not in allowed)
        )


@contextmanager
def replaced_folder(path: Path, kind: FolderKind) -> Iterator[Path]:
    """Yield an empty folder beside `path` that takes its place when the block ends without error.

    Parameters
    ----------
    path : Path
        The folder to write. If it exists it must be empty or hold only what laq wrote.
    kind : FolderKind
        How that is told.

    Raises
    ------
    RequestError
        If `path` holds something that laq did not write.
    """
    path = path.resolve()
    check_replaceable(path, kind)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{path.name}.partial-", dir=path.parent))
    partial.chmod(0o755)
    try:
        yield partial
        _swap(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_replaceable(path: Path, kind: FolderKind) -> None:
    """Raise RequestError unless `path` is free, an empty folder, or one that holds only what laq wrote."""
    if not path.exists():
        return
    if not path.is_dir() or (any(path.iterdir()) and not (path / kind.marker).is_file()):
        raise RequestError(
            f"{path}: exists and was not written by laq (no {kind.marker} in it)",
            hint="choose another output path, or move it away yourself",
        )
    foreign = kind.foreign(path)
    if foreign:
        raise RequestError(
            f"{path}: replacing it would delete files that laq did not write: {', '.join(foreign[:5])}",
            hint="choose another output path, or move these files away",
        )


def _swap(partial: Path, path: Path) -> None:
    """Put `partial` at `path`; what was there is deleted only after the new folder is in place."""
    old = partial.with_name(partial.name + ".old")
    _flush(partial)
    try:
        if path.exists():
            path.rename(old)
        partial.rename(path)
    except BaseException:
        if old.exists():
            old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _flush(folder: Path) -> None:
    """Wait until every file of a folder is on the disk."""
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())


VALUE_FOLDER = FolderKind(HEADER_NAME, ("[0-9]" * 5 + ".npy",))


def write_text_atomic(path: Path, text: str) -> None:
    """Write a text file beside and rename it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.partial-", dir=path.parent)
    partial = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        partial.chmod(0o644)
        os.replace(partial, path)  # noqa: PTH105 - the atomic form, on every platform
    finally:
        partial.unlink(missing_ok=True)


def save_value(path: Path, kind: str, header: Json, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write a value of class `kind`: `header` as JSON, every array as .npy.

    Raises
    ------
    RequestError
        If `path` holds a value of another class, or something that laq did not write.
    """
    _check_same_kind(path, kind)
    with replaced_folder(path, VALUE_FOLDER) as partial:
        names = {}
        for index, (name, array) in enumerate(arrays.items()):
            names[name] = f"{index:05d}.npy"
            np.save(partial / names[name], np.ascontiguousarray(array), allow_pickle=False)
        content = {"kind": kind, "version": 1, "header": header, "arrays": names}
        (partial / HEADER_NAME).write_text(json.dumps(content), encoding="utf-8")


def _check_same_kind(path: Path, kind: str) -> None:
    header = path / HEADER_NAME
    if not header.is_file():
        return
    try:
        found = json.loads(header.read_text(encoding="utf-8"))["kind"]
    except MALFORMED:
        return  # damaged: nothing of value is lost
    if found != kind:
        raise RequestError(f"{path}: holds {found}, not {kind}", hint="choose another output path")


@contextmanager
def refusing(path: Path, kind: str) -> Iterator[None]:
    """Turn what reading a missing or malformed value raises into FormatError."""
    try:
        yield
    except MALFORMED as error:
        raise FormatError(
            f"{path}: not a saved {kind} ({error})", hint="write it with `laq measure`"
        ) from error


def open_value(path: Path, kind: str) -> tuple[Json, dict[str, npt.NDArray[Any]]]:
    """Read what `save_value` wrote; arrays are memory-mapped, read-only.

    Raises
    ------
    FormatError
        If the folder is missing, damaged or holds another kind of value.
    """
    if not (path / HEADER_NAME).is_file():
        raise FormatError(
            f"{path}: holds no {kind}, {HEADER_NAME} is missing", hint="write them with `laq measure`"
        )
    with refusing(path, kind):
        content = json.loads((path / HEADER_NAME).read_text(encoding="utf-8"))
        found = content["kind"], content["version"]
        files = {name: path / Path(file).name for name, file in content["arrays"].items()}
        header = content["header"]
    if found != (kind, 1):
        raise FormatError(f"{path}: expected a saved {kind} of version 1, found {found}")
    return header, {name: _load_array(file) for name, file in files.items()}


def _load_array(file: Path) -> npt.NDArray[Any]:
    try:
        array: npt.NDArray[Any] = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise FormatError(f"{file}: damaged array ({error})", hint="measure again") from error
    return array
