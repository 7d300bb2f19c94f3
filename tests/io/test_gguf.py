"""check_gguf agrees with gguf-py on every file that gguf-py writes."""

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laq.core.errors import LaqError, RequestError
from laq.io.gguf import LongArray, check_gguf, is_dequantizable

gguf = pytest.importorskip("gguf", reason="needs the extra llm")

TYPES = sorted(gguf.GGML_QUANT_SIZES, key=int)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("gguf") / "file.gguf"


def write(path, *, metadata=(), tensors=(), alignment=None):
    """Write a file by gguf-py; tensors are (name, ggml type, rows, blocks in a row)."""
    writer = gguf.GGUFWriter(path, "llama")
    if alignment:
        writer.add_custom_alignment(alignment)
    for method, key, value in metadata:
        getattr(writer, method)(key, value)
    for name, kind, n_rows, n_blocks in tensors:
        block_bytes = gguf.GGML_QUANT_SIZES[kind][1]
        writer.add_tensor(name, np.zeros((n_rows, n_blocks * block_bytes), np.uint8), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


NAMES = st.text(st.characters(codec="utf-8"), max_size=20)
VALUES = st.one_of(
    st.tuples(st.just("add_uint8"), NAMES, st.integers(0, 2**8 - 1)),
    st.tuples(st.just("add_int16"), NAMES, st.integers(-(2**15), 2**15 - 1)),
    st.tuples(st.just("add_uint64"), NAMES, st.integers(0, 2**64 - 1)),
    st.tuples(st.just("add_float32"), NAMES, st.floats(width=32, allow_nan=False)),
    st.tuples(st.just("add_float64"), NAMES, st.floats(allow_nan=False)),
    st.tuples(st.just("add_bool"), NAMES, st.booleans()),
    st.tuples(st.just("add_string"), NAMES, st.text(st.characters(codec="utf-8"), min_size=1)),
    st.tuples(st.just("add_array"), NAMES, st.lists(st.integers(0, 9), min_size=1, max_size=64)),
    st.tuples(st.just("add_array"), NAMES, st.lists(NAMES, min_size=1, max_size=64)),
)
METADATA = st.lists(VALUES, max_size=5, unique_by=lambda item: item[1])
TENSORS = st.lists(
    st.tuples(NAMES, st.sampled_from(TYPES), st.integers(1, 3), st.integers(1, 3)),
    max_size=5,
    unique_by=lambda item: item[0],
)


@given(metadata=METADATA, tensors=TENSORS, alignment=st.sampled_from([None, 8, 64, 4096]))
def test_header_says_what_the_writer_was_told(path, metadata, tensors, alignment):
    metadata = [item for item in metadata if not item[1].startswith(("GGUF.", "general.", "split."))]
    write(path, metadata=metadata, tensors=tensors, alignment=alignment)

    header = check_gguf(path)
    expected = {key: tuple(value) if isinstance(value, list) else value for _, key, value in metadata}
    expected |= {"general.architecture": "llama"}
    expected |= {"general.alignment": alignment} if alignment else {}
    assert header.version == 3
    assert header.metadata == expected
    assert [tensor.name for tensor in header.tensors] == [name for name, *_ in tensors]
    for tensor, (_, kind, n_rows, n_blocks) in zip(header.tensors, tensors, strict=True):
        elements, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        assert tensor.type_name == kind.name
        assert tensor.shape == (n_rows, n_blocks * elements)
        assert tensor.size_bytes == n_rows * n_blocks * block_bytes


@given(tensors=TENSORS)
def test_places_and_shapes_are_those_of_gguf_py(path, tensors):
    write(path, tensors=tensors)
    theirs = gguf.GGUFReader(path).tensors
    for ours, tensor in zip(check_gguf(path).tensors, theirs, strict=True):
        assert (ours.name, ours.type_name) == (tensor.name, tensor.tensor_type.name)
        assert ours.shape == tuple(reversed(tensor.shape.tolist()))
        assert (ours.start, ours.size_bytes) == (tensor.data_offset, tensor.n_bytes)


def test_value_that_is_a_bool_comes_back_as_a_bool(path):
    write(path, metadata=[("add_bool", "flag", True), ("add_uint8", "number", 1)])
    metadata = check_gguf(path).metadata
    assert metadata["flag"] is True
    assert type(metadata["number"]) is int


@pytest.mark.parametrize("values", [list(range(65)), [f"token {i}" for i in range(65)], [[1, 2]] * 65])
def test_array_longer_than_64_keeps_its_length_only(path, values):
    write(path, metadata=[("add_array", "long", values), ("add_string", "after", "here")])
    metadata = check_gguf(path).metadata
    assert metadata["long"] == LongArray(65)
    assert metadata["after"] == "here"


def test_arrays_in_arrays_come_back_as_tuples(path):
    write(path, metadata=[("add_array", "nested", [["a", "b"], ["c"]])])
    assert check_gguf(path).metadata["nested"] == (("a", "b"), ("c",))


def test_part_of_a_split_file_is_refused_with_the_way_to_merge(path):
    write(path, metadata=[("add_uint16", "split.count", 3)])
    with pytest.raises(LaqError, match=r"split\.count.*3 parts") as caught:
        check_gguf(path)
    assert "merge" in caught.value.hint


def test_whole_file_may_say_that_it_is_one_part(path):
    write(path, metadata=[("add_uint16", "split.count", 1)])
    assert check_gguf(path).metadata["split.count"] == 1


def test_a_real_file_passes(smollm2_path):
    header = check_gguf(smollm2_path)
    assert header.metadata["general.architecture"] == "llama"
    assert header.metadata["tokenizer.ggml.tokens"] == LongArray(49152)
    assert len(header.tensors) == 272
    assert all(is_dequantizable(tensor.type_name) for tensor in header.tensors)


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.name)
def test_is_dequantizable_tells_what_gguf_py_can_do(kind):
    block = np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), dtype=np.uint8)
    if is_dequantizable(kind.name):
        assert gguf.dequantize(block, kind).shape == (1, gguf.GGML_QUANT_SIZES[kind][0])
    else:
        with pytest.raises(NotImplementedError):
            gguf.dequantize(block, kind)


def test_types_people_use_are_dequantizable_and_unknown_ones_are_not():
    assert all(map(is_dequantizable, ["F32", "F16", "BF16", "Q4_0", "Q8_0", "Q4_K", "IQ4_XS", "MXFP4"]))
    assert not any(map(is_dequantizable, ["Q8_K", "I32", "Q99", ""]))


def test_missing_package_is_named_with_the_extra_that_brings_it(monkeypatch):
    is_dequantizable.cache_clear()
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(LaqError, match="package gguf") as caught:
        is_dequantizable("F32")
    assert "laq[llm]" in caught.value.hint


def test_missing_file_and_folder_are_named(tmp_path):
    for place in (tmp_path / "absent.gguf", tmp_path):
        with pytest.raises(RequestError, match=place.name):
            check_gguf(place)
