"""Broken safetensors files: refused by FormatError that names the trouble, never anything else."""

import json
import re

import numpy as np
import pytest
import safetensors
from hypothesis import given
from hypothesis import strategies as st

from laq.core.errors import FormatError
from laq.io.safetensors import RawTensor, open_tensors, read_header, write_tensors

ENTRY = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}


def file_bytes(header: object, data: bytes = bytes(16)) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(**changes: object) -> dict[str, object]:
    return {"layer.weight": ENTRY | changes}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("hostile") / "file.safetensors"


@pytest.fixture(scope="module")
def valid(path):
    tensors = {
        "packed": RawTensor.of(np.arange(64, dtype=np.uint8)),
        "empty": RawTensor.of(np.zeros((0, 3), dtype=np.float32)),
        "scales": RawTensor.of(np.ones((2, 2), dtype=np.float16)),
    }
    write_tensors(path, tensors, metadata={"format": "laq"})
    return path.read_bytes()


def test_the_crafted_header_is_valid_before_it_is_broken(path):
    path.write_bytes(file_bytes(entry()))
    assert open_tensors(path)["layer.weight"].array().tolist() == [[0, 0], [0, 0]]


NESTED = b'{"w":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
CRAFTED = {
    "nothing": (b"", "at least 8 bytes"),
    "seven bytes": (bytes(7), "at least 8 bytes"),
    "header longer than file": ((100).to_bytes(8, "little") + b"{}", "at most 2 bytes"),
    "header length 2**64 - 1": (b"\xff" * 8 + b"{}", "header length"),
    "empty header": (bytes(8), "JSON"),
    "not JSON": (file_bytes(b"{'w': 1}"), "JSON"),
    "not UTF-8": (file_bytes(b'{"\xff": 1}'), "UTF-8.*0xff"),
    "JSON list": (file_bytes([]), "JSON object"),
    "space before the object": (file_bytes(b" {}", b""), "first byte"),
    "deep nesting": (file_bytes(NESTED), "JSON"),
    "number of 5000 digits": (file_bytes(b'{"w":' + b"9" * 5000 + b"}"), "JSON"),
    "not a number": (file_bytes(b'{"w":NaN}'), "finite"),
    "name twice": (file_bytes(b'{"w":1,"w":1}'), "'w' twice"),
    "key twice": (file_bytes(b'{"w":{"dtype":"U8","dtype":"I8"}}'), "'dtype' twice"),
    "half a character": (file_bytes(rb'{"\ud800":{}}'), "Unicode"),
    "metadata list": (file_bytes({"__metadata__": []}), "__metadata__"),
    "metadata number": (file_bytes({"__metadata__": {"a": 1}}, b""), "__metadata__ a.*text"),
    "metadata half a character": (file_bytes(rb'{"__metadata__":{"a":"\ud800"}}', b""), "Unicode"),
    "entry list": (file_bytes({"layer.weight": []}), "layer.weight.*dtype"),
    "entry without shape": (file_bytes({"layer.weight": {"dtype": "F32"}}), "layer.weight.*shape"),
    "unknown dtype": (file_bytes(entry(dtype="F31")), "layer.weight.*F31"),
    "dtype list": (file_bytes(entry(dtype=["F32"])), "layer.weight.*dtype"),
    "shape text": (file_bytes(entry(shape="22")), "layer.weight.*shape"),
    "axis fraction": (file_bytes(entry(shape=[2.0, 2])), "layer.weight.*shape"),
    "axis bool": (file_bytes(entry(shape=[True, 4])), "layer.weight.*shape"),
    "axis negative": (file_bytes(entry(shape=[-2, -2])), "layer.weight.*shape"),
    "axis 2**64": (file_bytes(entry(shape=[2**64, 0], data_offsets=[0, 0])), "layer.weight.*shape"),
    "product overflows": (file_bytes(entry(shape=[2**32, 2**32])), "layer.weight.*2\\*\\*60"),
    "empty but too wide": (file_bytes(entry(shape=[2**62, 0], data_offsets=[0, 0]), b""), "2\\*\\*60"),
    "65 axes": (file_bytes(entry(shape=[2, 2] + [1] * 63)), "at most 64"),
    "size of another shape": (file_bytes(entry(shape=[2, 3])), "layer.weight.*24 bytes"),
    "offsets text": (file_bytes(entry(data_offsets=["0", "16"])), "layer.weight.*data_offsets"),
    "three offsets": (file_bytes(entry(data_offsets=[0, 16, 16])), "layer.weight.*data_offsets"),
    "offsets reversed": (file_bytes(entry(data_offsets=[16, 0])), "layer.weight.*data_offsets"),
    "offset negative": (file_bytes(entry(data_offsets=[-16, 0])), "layer.weight.*data_offsets"),
    "data shorter": (file_bytes(entry(), bytes(15)), "layer.weight.*a file of"),
    "data longer": (file_bytes(entry(), bytes(17)), "after the last tensor"),
    "data far away": (file_bytes(entry(data_offsets=[2**62, 2**62 + 16])), "layer.weight.*byte"),
    "hole": (file_bytes(entry(data_offsets=[4, 20]), bytes(20)), "layer.weight.*right after"),
    "overlap": (file_bytes({"a": ENTRY, "b": ENTRY}), "b.*right after"),
    "no tensors but data": (file_bytes({}, b"x"), "after the last tensor"),
}


@pytest.mark.parametrize("case", CRAFTED)
def test_broken_file_is_refused_with_its_reason_and_a_hint(path, case):
    content, reason = CRAFTED[case]
    path.write_bytes(content)
    for read in (read_header, open_tensors):
        with pytest.raises(FormatError) as caught:
            read(path)
        assert re.search(reason, caught.value.message)
        assert caught.value.message.startswith(str(path))
        assert caught.value.hint


def test_header_over_the_limit_is_not_read(path):
    with path.open("wb") as file:  # sparse: takes no room on disk
        file.write((200_000_000).to_bytes(8, "little"))
        file.truncate(300_000_000)
    with pytest.raises(FormatError, match="at most 100000000 bytes"):
        read_header(path)


def test_hostile_name_is_shown_escaped_on_one_line(path):
    path.write_bytes(file_bytes({"\x1b[31m\n" + "x" * 10_000: ENTRY | {"dtype": "?"}}))
    with pytest.raises(FormatError) as caught:
        read_header(path)
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 1000 + len(str(path))


def test_every_truncation_is_refused(path, valid):
    for length in range(len(valid)):
        path.write_bytes(valid[:length])
        with pytest.raises(FormatError):
            open_tensors(path)


def check_loads_or_refuses(path, content: bytes) -> None:
    path.write_bytes(content)
    try:
        tensors = open_tensors(path)
    except FormatError:
        return
    for tensor in tensors.values():
        tensor.array().tobytes()
    assert dict(safetensors.deserialize(content)).keys() == tensors.keys()


@given(data=st.data())
def test_mutated_bytes_load_or_are_refused(path, valid, data):
    content = bytearray(valid)
    header_end = len(valid) - 72
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, header_end))] = data.draw(st.integers(0, 255))
    check_loads_or_refuses(path, bytes(content))


@given(
    number=st.integers(-2, 2**65), where=st.sampled_from(["shape", "data_offsets"]), index=st.integers(0, 1)
)
def test_any_number_in_a_header_loads_or_is_refused(path, number, where, index):
    changed = list(ENTRY[where])
    changed[index] = number
    check_loads_or_refuses(path, file_bytes(entry(**{where: changed})))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(dtype=st.just("U8") | JSON, shape=JSON, offsets=JSON)
def test_any_json_in_a_header_loads_or_is_refused(path, dtype, shape, offsets):
    content = file_bytes({"w": {"dtype": dtype, "shape": shape, "data_offsets": offsets}})
    check_loads_or_refuses(path, content)


@given(content=st.binary(max_size=64))
def test_random_bytes_load_or_are_refused(path, content):
    check_loads_or_refuses(path, content)
