"""Memory in huge pages, where the system gives them: weights are read through fewer address translations."""

from __future__ import annotations

import mmap
from contextlib import suppress

import numpy as np
import numpy.typing as npt

CHUNK_BYTES = 64 << 20
"""Reserved at a time; what is not used takes no memory."""

ALIGNMENT = 64
"""A cache line and a register."""


class Arena:
    """Copies arrays side by side into large anonymous mappings; each lives as long as one of its copies.

    A product with one input is bound by memory. Many small matrices of one network share a mapping: a huge
    page has 2 MB.
    """

    def __init__(self) -> None:
        self._free: npt.NDArray[np.uint8] = np.empty(0, np.uint8)

    def copy(self, array: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Return a copy of uint8 [n], aligned."""
        size = -(-array.nbytes // ALIGNMENT) * ALIGNMENT
        if size > len(self._free):
            self._free = _mapping(max(size, CHUNK_BYTES))
        target, self._free = self._free[: array.nbytes], self._free[size:]
        target[:] = array
        return target


def _mapping(size: int) -> npt.NDArray[np.uint8]:
    private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
    mapping = mmap.mmap(
        -1, size, **private
    )  # shared memory, the default, would outlive a fork and have small pages
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without them: ordinary pages do
            mapping.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(mapping, np.uint8)
