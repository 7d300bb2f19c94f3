"""Where packed weights lie: copied into huge pages where the system gives them, else in the mapped file.

A product with one input is bound by memory, and huge pages need fewer address translations: 10 % faster.
Files have none, so weights are copied out of them; where the system has none either, a copy gains nothing.
"""

from __future__ import annotations

import mmap
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, TypeVar, final

import numpy as np
import numpy.typing as npt

Scalar = TypeVar("Scalar", bound=np.generic)

CHUNK_BYTES = 64 << 20
"""Reserved at a time; what is not used takes no memory."""

ALIGNMENT = 64
"""A cache line and a register."""

HUGE_PAGES, MAPPED_FILE, ORDINARY = "huge pages", "mapped file", "ordinary memory"

SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")


class Memory(Protocol):
    """Gives the sections of packed weights their place."""

    def place(self, array: npt.NDArray[Scalar]) -> npt.NDArray[Scalar]:
        """Return the same values where they will lie, aligned to what they are."""


@final
class Arena:
    """Copies arrays side by side into large anonymous mappings; each lives as long as one of its copies.

    Many small matrices of one network share a mapping: a huge page has 2 MB.
    """

    def __init__(self) -> None:
        self._free: npt.NDArray[np.uint8] = np.empty(0, np.uint8)

    def place(self, array: npt.NDArray[Scalar]) -> npt.NDArray[Scalar]:
        """Return a copy."""
        size = -(-array.nbytes // ALIGNMENT) * ALIGNMENT
        if size > len(self._free):
            self._free = _mapping(max(size, CHUNK_BYTES))
        taken, self._free = self._free[: array.nbytes], self._free[size:]
        target = taken.view(array.dtype).reshape(array.shape)
        target[...] = array
        return target


@final
class MappedFile:
    """Leaves arrays where they are, in a mapped file; what it does not align is copied."""

    def place(self, array: npt.NDArray[Scalar]) -> npt.NDArray[Scalar]:
        """Return the array itself, or a copy."""
        return array if array.flags.aligned else array.copy()


def archive_memory() -> Memory:
    """Return the place of an archive's weights on this system; see `archive_place`."""
    return MappedFile() if archive_place() == MAPPED_FILE else Arena()


def archive_place() -> str:
    """Return where an archive's weights lie on this system: `HUGE_PAGES`, `MAPPED_FILE` or `ORDINARY`."""
    if not huge_page_problem():
        return HUGE_PAGES
    # Windows does not let a file be replaced while it is mapped
    return ORDINARY if sys.platform == "win32" else MAPPED_FILE


def huge_page_problem() -> str:
    """Return why this system gives no huge pages; empty if it does."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return "this system has none for a program to ask for"
    with mmap.mmap(-1, mmap.PAGESIZE, **_private()) as probe:
        try:
            probe.madvise(mmap.MADV_HUGEPAGE)
        except OSError as error:
            return f"the system refuses them: {error.strerror}"
    try:
        is_off = "[never]" in SETTING.read_text(encoding="ascii")
    except OSError:
        return ""  # it did not refuse
    return f"{SETTING} says never" if is_off else ""


def _private() -> dict[str, Any]:
    # shared memory, the default, would outlive a fork and have small pages
    return {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}


def _mapping(size: int) -> npt.NDArray[np.uint8]:
    mapping = mmap.mmap(-1, size, **_private())
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without them: ordinary pages do
            mapping.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(mapping, np.uint8)
