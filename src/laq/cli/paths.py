"""Output paths, checked before the slow work."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from laq.core.errors import RequestError, ResourceError
from laq.core.storage import FolderKind, check_replaceable


def check_output(folder: Path, kind: FolderKind, *, size_bytes: int) -> None:
    """Raise unless a folder can be written.

    Parameters
    ----------
    folder : Path
        Free, empty, or ours to replace.
    kind : FolderKind
        How a folder of ours is told.
    size_bytes : int
        Room that it will take at most.

    Raises
    ------
    RequestError
        If it holds something else, or its parent cannot be written.
    ResourceError
        If the disk lacks room.
    """
    check_replaceable(folder, kind)
    parent = _existing_parent(folder)
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise RequestError(f"{folder}: {parent} cannot be written", hint="choose another output path")
    free = shutil.disk_usage(parent).free
    if size_bytes > free:
        raise ResourceError(
            f"{folder}: needs up to {size_bytes / 1e6:.0f} MB of disk, {free / 1e6:.0f} MB are free",
            hint="free some space, or choose an output path on a larger disk",
        )


def stored_bytes(model: str) -> int:
    """Return the bytes of a model's weights on disk; 0 if it is not there, such as a hub id."""
    path = Path(model)
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.glob("*.safetensors")) if path.is_dir() else 0


def _existing_parent(path: Path) -> Path:
    return next(parent for parent in path.absolute().parents if parent.exists())
