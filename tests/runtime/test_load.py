"""An archive as a module, its weights copied into huge pages or left in the mapped file."""

import copy
import io
import shutil

import numpy as np
import pytest
import torch
from torch import nn

import laq
from laq.core.errors import RequestError
from laq.io.archive import METADATA, open_archive
from laq.io.safetensors import open_tensors, write_tensors
from laq.kernels import native
from laq.runtime import arena
from laq.runtime.load import module_of
from laq.runtime.packed import SECTIONS

SHARD = "packed-00001-of-00001.safetensors"
COMPUTED = ("scale_base", "tile_starts", "zero_offsets")
"""Sections that are not in the file as they are."""


def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(70, 40), nn.ReLU(), nn.Linear(40, 24))


def inputs():
    return torch.randn(6, 16, 70, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=["log8", "float16"])
def saved(request, tmp_path_factory):
    options = {"compare": False, "group_size": 32, "scale_format": request.param}
    result = laq.quantize(network(), bpw=27.0, data=[(x,) for x in inputs()], **options)
    return result.save(tmp_path_factory.mktemp("load") / "out")


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "out")


@pytest.fixture
def without_huge_pages(monkeypatch):
    monkeypatch.setattr(arena, "huge_page_problem", lambda: "switched off by a test")


@pytest.fixture(params=[arena.HUGE_PAGES, arena.MAPPED_FILE])
def place(request, monkeypatch):
    problem = "" if request.param == arena.HUGE_PAGES else "switched off by a test"
    monkeypatch.setattr(arena, "huge_page_problem", lambda: problem)
    return request.param


def outputs(module):
    with torch.inference_mode():
        return module(inputs()[0])


def packed_weights(module):
    return [layer.packed for layer in module if hasattr(layer, "packed")]


def in_file(archive, buffer):
    """Whether a tensor lies where the archive's file is mapped."""
    whole = [raw.data for raw in archive.tensors.values()]
    starts = [data.ctypes.data for data in whole]
    ends = [start + data.nbytes for start, data in zip(starts, whole, strict=True)]
    return min(starts) <= buffer.data_ptr() < max(ends)


def test_both_places_compute_the_same(folder, monkeypatch):
    found = []
    for problem in ("", "none"):
        monkeypatch.setattr(arena, "huge_page_problem", lambda problem=problem: problem)
        found.append(outputs(laq.load(folder, module=network())))
    assert torch.equal(*found)


def test_weights_stay_in_the_file_where_there_are_no_huge_pages(folder, place):
    archive = open_archive(folder)
    module = module_of(archive, module=network())
    for packed in packed_weights(module):
        for name, buffer in zip(SECTIONS, packed.sections(), strict=True):
            if buffer is not None and name not in (*COMPUTED, "column_permutation"):
                assert in_file(archive, buffer) == (place == arena.MAPPED_FILE), name


def test_kept_tensors_stay_in_the_file_where_the_module_has_no_memory_for_them(folder, place):
    archive = open_archive(folder)
    module = module_of(archive, module=network().to(torch.float64))
    assert module[0].bias.dtype == torch.float32
    loaded = module_of(archive, module=network().to("meta"))
    assert in_file(archive, loaded[2].bias) == (place == arena.MAPPED_FILE)


@pytest.mark.usefixtures("without_huge_pages")
def test_weights_are_copied_where_a_mapped_file_cannot_be_replaced(folder, monkeypatch):
    monkeypatch.setattr(arena.sys, "platform", "win32")
    archive = open_archive(folder)
    module = module_of(archive, module=network())
    assert not any(in_file(archive, packed.payload) for packed in packed_weights(module))


@pytest.mark.usefixtures("place")
def test_buffers_can_be_changed_and_the_file_stays(folder):
    before = (folder / SHARD).read_bytes()
    module = laq.load(folder, module=network())
    expected = outputs(module)
    for packed in packed_weights(module):
        packed.payload.zero_()
        packed.scales.fill_(7)
    assert not torch.equal(outputs(module), expected)
    assert (folder / SHARD).read_bytes() == before
    assert torch.equal(outputs(laq.load(folder, module=network())), expected)


@pytest.mark.usefixtures("place")
def test_copies_casts_and_states_work(folder):
    module = laq.load(folder, module=network())
    expected = outputs(module)
    twin = copy.deepcopy(module)
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    for buffer in (buffer for packed in packed_weights(module) for buffer in packed.buffers()):
        buffer.zero_()
    assert torch.equal(outputs(twin), expected)
    module.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    assert torch.equal(outputs(module), expected)
    rounded = outputs(module.to(torch.bfloat16).to("cpu", torch.float32))
    assert 0 < float((rounded - expected).abs().max()) < 0.01  # the biases alone
    assert all(tensor.device.type == "meta" for tensor in twin.to("meta").state_dict().values())


@pytest.mark.usefixtures("place")
def test_loaded_module_outlives_its_folder(folder):
    module = laq.load(folder, module=network())
    expected = outputs(module)
    shutil.rmtree(folder)
    assert torch.equal(outputs(module), expected)


@pytest.mark.usefixtures("place")
def test_archive_can_be_replaced_while_it_is_loaded(folder):
    module = laq.load(folder, module=network())
    expected = outputs(module)
    other = laq.quantize(network(), bpw=28.0, data=[(x,) for x in inputs()], compare=False, group_size=32)
    other.save(folder)
    assert torch.equal(outputs(module), expected)
    assert not torch.equal(outputs(laq.load(folder, module=network())), expected)


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("has_kernels", [True, False], ids=["native", "decoded"])
def test_tensors_that_the_file_does_not_align_are_copied(folder, has_kernels, monkeypatch):
    if not has_kernels:
        monkeypatch.setattr(native, "library", lambda: None)
    expected = outputs(laq.load(folder, module=network()))
    tensors = dict(open_tensors(folder / SHARD))
    odd = next(name for name, raw in tensors.items() if raw.data.nbytes % 2)
    order = [odd, *(name for name in tensors if name != odd)]
    write_tensors(folder / SHARD, {name: tensors[name] for name in order}, metadata=METADATA)
    assert any(not raw.array().flags.aligned for raw in open_tensors(folder / SHARD).values())
    module = laq.load(folder, module=network())
    for buffer in module.state_dict().values():
        assert buffer.data_ptr() % buffer.element_size() == 0
    assert torch.equal(outputs(module), expected)


def test_activation_bits_are_8_or_16(folder):
    with pytest.raises(RequestError, match="activation_bits=4"):
        laq.load(folder, module=network(), activation_bits=4)


def test_siblings_do_not_share_the_buffer_of_their_order(packed_random):
    packed = packed_random((40, 70), 32)
    one, other = (arena_weight(packed) for _ in range(2))
    assert one.payload.data_ptr() == other.payload.data_ptr()
    assert one.column_permutation.data_ptr() != other.column_permutation.data_ptr()


def arena_weight(packed):
    from laq.runtime.packed import PackedWeight

    return PackedWeight(packed, memory=arena.MappedFile())


def test_mapped_memory_keeps_what_is_aligned_and_copies_the_rest():
    raw = np.arange(17, dtype=np.uint8)
    memory = arena.MappedFile()
    assert memory.place(raw) is raw
    aligned, shifted = raw[:16].view(np.uint16), raw[1:].view(np.uint16)
    assert memory.place(aligned) is aligned
    found = memory.place(shifted)
    assert found.flags.aligned
    assert np.array_equal(found, shifted)
