"""Tensors parked on disk while other blocks are at work."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch


class Spool:
    """A temporary folder of tensors; it vanishes with the last reference to it.

    The files stay in the page cache while memory allows, so this costs little and bounds what is held.
    """

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="laq-"))
        self._finalizer = weakref.finalize(self, shutil.rmtree, str(self.folder), ignore_errors=True)
        self._shapes: dict[str, tuple[torch.Size, torch.dtype]] = {}

    def put(self, key: str, tensor: torch.Tensor) -> None:
        """Store a tensor; one of the same key is replaced."""
        raw = tensor.detach().cpu().contiguous()
        self._shapes[key] = (raw.shape, raw.dtype)
        raw.view(-1).view(torch.uint8).numpy().tofile(self.folder / key)

    def get(self, key: str) -> torch.Tensor:
        """Return a stored tensor."""
        shape, dtype = self._shapes[key]
        return torch.from_numpy(np.fromfile(self.folder / key, np.uint8)).view(dtype).view(shape)

    def drop(self, key: str) -> None:
        """Forget a tensor."""
        del self._shapes[key]
        (self.folder / key).unlink()

    def forget_array(self, parked: npt.NDArray[np.float32]) -> None:
        """Remove the file of an array that `park_array` returned; the array itself stays readable."""
        assert isinstance(parked, np.memmap)
        Path(str(parked.filename)).unlink()

    def park_array(self, key: str, array: npt.NDArray[np.float64], scale: float) -> npt.NDArray[np.float32]:
        """Write array * scale as float32 in slices; return it memory-mapped, read-only."""
        path = self.folder / f"{key}.npy"
        target = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=array.shape)
        step = max(1, (1 << 22) // max(1, array[0].size if array.ndim > 1 else 1))
        for start in range(0, len(array), step):
            target[start : start + step] = array[start : start + step] * scale
        target.flush()
        del target
        parked: npt.NDArray[np.float32] = np.load(path, mmap_mode="r")
        weakref.finalize(parked, _keep, self)
        return parked


def _keep(spool: Spool) -> None:
    """Hold a reference to the spool until the array that lies in it is gone."""
    del spool
