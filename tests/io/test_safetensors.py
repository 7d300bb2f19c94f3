"""What write_tensors writes, both readers read back; sizes and alignment are as promised."""

import math
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from laq.core.errors import LaqError, RequestError, ResourceError
from laq.io.safetensors import (
    RawTensor,
    file_size_bytes,
    open_tensors,
    read_header,
    write_tensors,
)
from laq.io.safetensors_header import DTYPES, NATIVE_DTYPES

GOLDEN = Path(__file__).parents[1] / "golden" / "safetensors_small.hex"

NAMES = st.text(st.characters(codec="utf-8"), max_size=20).filter(lambda name: name != "__metadata__")
METADATA = st.dictionaries(NAMES, NAMES, max_size=3)


@st.composite
def raw_tensors(draw: st.DrawFn) -> RawTensor:
    dtype = draw(st.sampled_from(sorted(DTYPES)))
    shape = tuple(draw(st.lists(st.integers(0, 5), max_size=3)))
    size_bytes = math.prod(shape) * DTYPES[dtype].itemsize
    if dtype == "BOOL":
        data = np.arange(size_bytes, dtype=np.uint8) % 2
    else:
        data = np.frombuffer(draw(st.binary(min_size=size_bytes, max_size=size_bytes)), dtype=np.uint8)
    return RawTensor(dtype, shape, data)


TENSORS = st.dictionaries(NAMES, raw_tensors(), max_size=5)


def specs(tensors):
    return [(name, tensor.dtype, tensor.shape) for name, tensor in tensors.items()]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("safetensors") / "file.safetensors"


@given(tensors=TENSORS, metadata=METADATA)
def test_written_tensors_come_back_in_any_dtype(path, tensors, metadata):
    write_tensors(path, tensors, metadata=metadata)

    found = open_tensors(path)
    with safetensors.safe_open(path, "numpy") as official:
        assert (official.metadata() or {}) == metadata
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert found[name].data.tobytes() == tensor.data.tobytes()


@given(tensors=TENSORS, metadata=METADATA)
def test_official_package_reads_the_same_bytes(path, tensors, metadata):
    write_tensors(path, tensors, metadata=metadata)

    found = dict(safetensors.deserialize(path.read_bytes()))
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (found[name]["dtype"], tuple(found[name]["shape"])) == (tensor.dtype, tensor.shape)
        assert bytes(found[name]["data"]) == tensor.data.tobytes()
    with safetensors.safe_open(path, framework="numpy") as file:
        assert (file.metadata() or {}) == metadata


@given(tensors=TENSORS, metadata=METADATA)
def test_predicted_size_is_the_size_of_the_file(path, tensors, metadata):
    write_tensors(path, tensors, metadata=metadata)
    assert file_size_bytes(specs(tensors), metadata) == path.stat().st_size


@given(tensors=TENSORS, metadata=METADATA)
def test_data_starts_at_a_multiple_of_64_and_keeps_the_given_order(path, tensors, metadata):
    write_tensors(path, tensors, metadata=metadata)

    entries = read_header(path)
    at = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    assert at % 64 == 0
    for name, tensor in tensors.items():
        assert entries[name].start == at
        at += tensor.data.size


@given(tensors=st.dictionaries(NAMES, raw_tensors().filter(lambda t: t.dtype in NATIVE_DTYPES), max_size=5))
def test_files_of_the_official_package_are_read(path, tensors):
    safetensors.numpy.save_file({name: t.array() for name, t in tensors.items()}, path, metadata={"a": "b"})

    found = open_tensors(path)
    for name, tensor in tensors.items():
        assert found[name].array().tobytes() == tensor.array().tobytes()


def test_bfloat16_of_torch_passes_through(path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file, save_file

    weight = torch.linspace(-3, 3, 10).to(torch.bfloat16).reshape(2, 5)
    save_file({"w": weight}, path)
    tensor = open_tensors(path)["w"]
    assert (tensor.dtype, tensor.shape, tensor.array().dtype) == ("BF16", (2, 5), np.uint16)

    write_tensors(path, {"again": tensor}, metadata={})
    assert torch.equal(load_file(path)["again"], weight)


def test_bytes_of_a_small_file_never_change(tmp_path):
    tensors = {
        "packed": RawTensor.of(np.arange(64, dtype=np.uint8)),
        "scales": RawTensor.of(np.array([[0.5, -2.0]], dtype=np.float16)),
        "head.bias": RawTensor("BF16", (2,), np.array([0x80, 0x3F, 0x00, 0xC0], dtype=np.uint8)),
    }
    write_tensors(tmp_path / "small", tensors, metadata={"name": "Ω"})
    assert (tmp_path / "small").read_bytes() == bytes.fromhex(GOLDEN.read_text())


def test_big_endian_and_strided_arrays_are_stored_little_endian_in_c_order():
    array = np.arange(12, dtype=">i4").reshape(3, 4)[:, ::2]
    tensor = RawTensor.of(array)
    assert tensor.dtype == "I32"
    np.testing.assert_array_equal(tensor.array(), array)


def test_contiguous_array_is_viewed_and_a_mapped_file_is_never_changed(path):
    array = np.ones(4, dtype=np.float32)
    assert np.shares_memory(RawTensor.of(array).data, array)

    write_tensors(path, {"w": RawTensor.of(array)}, metadata={})
    mapped = open_tensors(path)
    assert np.shares_memory(mapped["w"].data, mapped["w"].array())
    mapped["w"].data[:] = 0
    assert mapped["w"].array().tolist() == [0] * 4
    assert open_tensors(path)["w"].array().tolist() == [1] * 4


def test_a_file_can_be_rewritten_from_its_own_mapped_tensors(path):
    write_tensors(path, {"w": RawTensor.of(np.arange(5.0))}, metadata={})
    write_tensors(path, open_tensors(path), metadata={"turn": "2"})
    np.testing.assert_array_equal(open_tensors(path)["w"].array(), np.arange(5.0))


@pytest.mark.parametrize(
    ("dtype", "shape", "size_bytes"), [("F32", (2,), 7), ("F33", (2,), 8), ("U8", (2, 2), 5)]
)
def test_raw_tensor_whose_parts_disagree_cannot_be_made(dtype, shape, size_bytes):
    with pytest.raises(ValueError, match=r"F32|F33|U8"):
        RawTensor(dtype, shape, np.zeros(size_bytes, dtype=np.uint8))


def test_array_type_unknown_to_the_format_is_refused():
    with pytest.raises(ValueError, match="complex128"):
        RawTensor.of(np.zeros(2, dtype=np.complex128))


@pytest.mark.parametrize("name", ["__metadata__", "half \ud800"])
def test_name_that_cannot_be_stored_is_refused_before_writing(tmp_path, name):
    with pytest.raises(RequestError) as caught:
        write_tensors(tmp_path / "f", {name: RawTensor.of(np.zeros(1))}, metadata={})
    assert caught.value.hint
    assert not list(tmp_path.iterdir())


def test_two_tensors_of_one_name_have_no_size():
    with pytest.raises(RequestError, match="taken"):
        file_size_bytes([("w", "U8", (1,)), ("w", "U8", (1,))], {})


def test_header_longer_than_readers_accept_is_refused(tmp_path):
    with pytest.raises(RequestError, match="at most 100000000"):
        write_tensors(tmp_path / "f", {}, metadata={"text": "x" * 100_000_000})
    assert not list(tmp_path.iterdir())


def test_failure_while_writing_leaves_the_old_file_and_no_partial_one(tmp_path):
    class Failing(dict):
        def __getitem__(self, name):
            if name == "second":
                raise KeyboardInterrupt
            return super().__getitem__(name)

    target = tmp_path / "f"
    write_tensors(target, {"old": RawTensor.of(np.zeros(3))}, metadata={})
    before = target.read_bytes()
    tensors = Failing(first=RawTensor.of(np.ones(3)), second=RawTensor.of(np.ones(3)))
    with pytest.raises(KeyboardInterrupt):
        write_tensors(target, tensors, metadata={})
    assert target.read_bytes() == before
    assert list(tmp_path.iterdir()) == [target]


def test_unwritable_place_and_missing_file_are_named(tmp_path):
    with pytest.raises(ResourceError, match="no_folder"):
        write_tensors(tmp_path / "no_folder" / "f", {}, metadata={})
    for place in (tmp_path / "absent", tmp_path):
        with pytest.raises(LaqError, match=place.name):
            read_header(place)
