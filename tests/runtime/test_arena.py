"""Copies lie side by side, aligned, and outlive the arena."""

import gc
import os

import numpy as np
import pytest

from laq.runtime import arena as arena_module
from laq.runtime.arena import ALIGNMENT, Arena


def test_copies_are_equal_aligned_and_apart():
    arena = Arena()
    arrays = [np.random.default_rng(n).integers(0, 256, n).astype(np.uint8) for n in (1, 64, 1000, 0, 65)]
    copies = [arena.copy(array) for array in arrays]
    for array, copied in zip(arrays, copies, strict=True):
        assert np.array_equal(array, copied)
        assert len(copied) == 0 or copied.ctypes.data % ALIGNMENT == 0
    copies[1][:] = 0
    assert np.array_equal(copies[2], arrays[2])


def test_arrays_larger_than_a_chunk_have_one_of_their_own(monkeypatch):
    monkeypatch.setattr(arena_module, "CHUNK_BYTES", 4096)
    arena = Arena()
    large = np.arange(10_000, dtype=np.int32).view(np.uint8)
    assert np.array_equal(arena.copy(large), large)
    assert np.array_equal(arena.copy(large[:100]), large[:100])


def test_copies_outlive_their_arena():
    arena = Arena()
    copied = arena.copy(np.full(5000, 7, np.uint8))
    del arena
    gc.collect()
    assert (copied == 7).all()


def test_systems_without_huge_pages_do(monkeypatch):
    monkeypatch.delattr(arena_module.mmap, "MADV_HUGEPAGE", raising=False)
    assert Arena().copy(np.full(10, 3, np.uint8)).tolist() == [3] * 10


def test_refusal_of_huge_pages_is_no_failure(monkeypatch):
    monkeypatch.setattr(arena_module.mmap, "MADV_HUGEPAGE", 9999, raising=False)
    assert Arena().copy(np.full(10, 3, np.uint8)).tolist() == [3] * 10


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_has_its_own():
    copied = Arena().copy(np.full(5000, 7, np.uint8))
    child = os.fork()
    if child == 0:
        copied[:] = 0
        os._exit(0)
    os.waitpid(child, 0)
    assert (copied == 7).all()
