"""Copies lie side by side, aligned, and outlive the arena."""

import gc
import mmap
import os

import numpy as np
import pytest

from laq.runtime import arena as arena_module
from laq.runtime.arena import (
    ALIGNMENT,
    HUGE_PAGES,
    MAPPED_FILE,
    ORDINARY,
    Arena,
    MappedFile,
    archive_memory,
    archive_place,
    huge_page_problem,
)


def test_copies_are_equal_aligned_and_apart():
    arena = Arena()
    arrays = [np.random.default_rng(n).integers(0, 256, n).astype(np.uint8) for n in (1, 64, 1000, 0, 65)]
    copies = [arena.place(array) for array in arrays]
    for array, copied in zip(arrays, copies, strict=True):
        assert np.array_equal(array, copied)
        assert len(copied) == 0 or copied.ctypes.data % ALIGNMENT == 0
    copies[1][:] = 0
    assert np.array_equal(copies[2], arrays[2])


def test_arrays_larger_than_a_chunk_have_one_of_their_own(monkeypatch):
    monkeypatch.setattr(arena_module, "CHUNK_BYTES", 4096)
    arena = Arena()
    large = np.arange(10_000, dtype=np.int32).view(np.uint8)
    assert np.array_equal(arena.place(large), large)
    assert np.array_equal(arena.place(large[:100]), large[:100])


def test_copies_outlive_their_arena():
    arena = Arena()
    copied = arena.place(np.full(5000, 7, np.uint8))
    del arena
    gc.collect()
    assert (copied == 7).all()


def test_systems_without_huge_pages_do(monkeypatch):
    monkeypatch.delattr(arena_module.mmap, "MADV_HUGEPAGE", raising=False)
    assert Arena().place(np.full(10, 3, np.uint8)).tolist() == [3] * 10


def test_refusal_of_huge_pages_is_no_failure(monkeypatch):
    monkeypatch.setattr(arena_module.mmap, "MADV_HUGEPAGE", 9999, raising=False)
    assert Arena().place(np.full(10, 3, np.uint8)).tolist() == [3] * 10


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_has_its_own():
    copied = Arena().place(np.full(5000, 7, np.uint8))
    child = os.fork()
    if child == 0:
        copied[:] = 0
        os._exit(0)
    os.waitpid(child, 0)
    assert (copied == 7).all()


@pytest.fixture
def setting(monkeypatch, tmp_path):
    file = tmp_path / "enabled"
    monkeypatch.setattr(arena_module, "SETTING", file)
    return file


needs_huge_pages = pytest.mark.skipif(
    not hasattr(mmap, "MADV_HUGEPAGE"), reason="this system has no huge pages"
)


@needs_huge_pages
@pytest.mark.parametrize("text", ["always [madvise] never\n", "[always] madvise never\n", None])
def test_huge_pages_are_used_where_the_system_gives_them(setting, text):
    if text is not None:
        setting.write_text(text)
    assert huge_page_problem() == ""
    assert archive_place() == HUGE_PAGES
    assert isinstance(archive_memory(), Arena)


@needs_huge_pages
def test_setting_that_says_never_is_named(setting):
    setting.write_text("always madvise [never]\n")
    assert huge_page_problem() == f"{setting} says never"
    assert archive_place() == MAPPED_FILE
    assert isinstance(archive_memory(), MappedFile)


@needs_huge_pages
def test_system_that_refuses_is_believed(setting, monkeypatch):
    setting.write_text("[always] madvise never\n")
    monkeypatch.setattr(arena_module.mmap, "MADV_HUGEPAGE", 9999)
    assert "refuses" in huge_page_problem()
    assert archive_place() == MAPPED_FILE


def test_other_systems_have_none(monkeypatch):
    monkeypatch.delattr(arena_module.mmap, "MADV_HUGEPAGE", raising=False)
    assert "none" in huge_page_problem()
    assert archive_place() == MAPPED_FILE
    monkeypatch.setattr(arena_module.sys, "platform", "win32")
    assert archive_place() == ORDINARY
    assert isinstance(archive_memory(), Arena)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float16, np.uint64, np.bool_])
def test_copies_keep_type_and_shape(dtype):
    array = np.arange(15).reshape(3, 5).astype(dtype)
    for one in (array, array[0, :0], array[1, 1].reshape(())):
        placed = Arena().place(one)
        assert (placed.dtype, placed.shape) == (one.dtype, one.shape)
        assert np.array_equal(placed, one)
        assert not np.shares_memory(placed, one)
