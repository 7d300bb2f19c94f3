"""Output paths, checked before the slow work."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from laq.core.errors import RequestError, ResourceError
from laq.core.storage import FolderKind, check_replaceable


def check_output(folder: Path, kind: FolderKind) -> None:
    """Raise RequestError unless a folder is free, empty or ours to replace, and its parent can be written.

    Parameters
    ----------
    folder : Path
        Where something will be written.
    kind : FolderKind
        How a folder of ours is told.
    """
    check_replaceable(folder, kind)
    parent = _existing_parent(folder)
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise RequestError(f"{folder}: {parent} cannot be written", hint="choose another output path")


def check_checkpoint(folder: Path | None, output: Path) -> None:
    """Raise RequestError if a checkpoint cannot be kept in a folder, or lies in what will be replaced."""
    from laq.checkpoint import checkpoint_at

    if folder is None:
        return
    if output.resolve() in (folder.resolve(), *folder.resolve().parents):
        raise RequestError(
            f"{folder}: lies in {output}, which is written as a whole", hint="keep the checkpoint elsewhere"
        )
    checkpoint_at(folder)


def check_room(folder: Path, size_bytes: int) -> None:
    """Raise ResourceError unless the disk has room for `size_bytes` at `folder`."""
    free = shutil.disk_usage(_existing_parent(folder)).free
    if size_bytes > free:
        raise ResourceError(
            f"{folder}: needs up to {size_bytes / 1e6:.0f} MB of disk, {free / 1e6:.0f} MB are free",
            hint="free some space, or choose an output path on a larger disk",
        )


def _existing_parent(path: Path) -> Path:
    return next(parent for parent in path.absolute().parents if parent.exists())
