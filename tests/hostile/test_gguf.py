"""Broken GGUF files: refused by FormatError, in no time; what passes, gguf-py opens."""

import re
import struct
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laq.core.errors import FormatError
from laq.io.gguf import check_gguf

gguf = pytest.importorskip("gguf", reason="needs the extra llm")

U8, U16, U32, F32, BOOL, STRING, ARRAY = 0, 2, 4, 6, 7, 8, 9
GGML_F32, GGML_Q4_0 = 0, 2


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def pair(key: str | bytes, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def array(kind: int, length: int, items: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, length) + items


def tensor(name="w", axes=(4,), kind=GGML_F32, offset=0, n_axes=None) -> bytes:
    n_axes = len(axes) if n_axes is None else n_axes
    return text(name) + struct.pack(f"<I{len(axes)}QIQ", n_axes, *axes, kind, offset)


def file_bytes(
    pairs=(), tensors=(), *, data=bytes(64), magic=b"GGUF", version=3, n_pairs=None, n_tensors=None
):
    n_pairs = len(pairs) if n_pairs is None else n_pairs
    n_tensors = len(tensors) if n_tensors is None else n_tensors
    head = magic + struct.pack("<IQQ", version, n_tensors, n_pairs) + b"".join([*pairs, *tensors])
    return head + bytes(-len(head) % 32) + data


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("hostile") / "file.gguf"


@pytest.fixture(scope="module")
def valid(path):
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_array("names", ["a", "b"])
    writer.add_array("numbers", [1.5, 2.5])
    writer.add_bool("flag", True)
    writer.add_tensor("w", np.ones((2, 3), dtype=np.float32))
    writer.add_tensor("q", np.ones((1, 18), dtype=np.uint8), raw_dtype=gguf.GGMLQuantizationType.Q4_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    check_gguf(path)
    return path.read_bytes()


def test_the_crafted_file_is_valid_before_it_is_broken(path):
    path.write_bytes(file_bytes([pair("a", U8, b"\1")], [tensor()]))
    assert check_gguf(path).tensors[0].size_bytes == 16
    path.write_bytes(file_bytes([], [tensor("a", offset=32), tensor("b", axes=(8, 0))], version=2))
    assert [found.shape for found in check_gguf(path).tensors] == [(4,), (0, 8)]


def nested(depth: int) -> bytes:
    return array(ARRAY, 1) * depth + array(U8, 0)


def of_alignment(value: int) -> list[bytes]:
    return [pair("general.alignment", U32, struct.pack("<I", value))]


CRAFTED = {
    "nothing": (b"", "at least 24 bytes"),
    "23 bytes": (b"GGUF" + bytes(19), "at least 24 bytes"),
    "other magic": (file_bytes(magic=b"GGML"), "magic.*GGML"),
    "version 1": (file_bytes(version=1), "version.*got 1"),
    "version 4": (file_bytes(version=4), "version.*got 4"),
    "big-endian": (file_bytes(version=3 << 24), "version.*big-endian"),
    "huge number of pairs": (file_bytes(n_pairs=2**64 - 1), "number of metadata"),
    "huge number of tensors": (file_bytes(n_tensors=2**63), "number of tensors"),
    "pairs in the padding": (file_bytes(n_pairs=2), "twice"),
    "key past the end": (file_bytes([struct.pack("<Q", 2**60)]), "key 0 of 1"),
    "key not UTF-8": (file_bytes([pair(b"\xff", U8, b"\1")]), "key 0.*UTF-8"),
    "key twice": (file_bytes([pair("a", U8, b"\1")] * 2), "a: .*twice"),
    "key of gguf-py": (file_bytes([pair("GGUF.version", U8, b"\1")]), "GGUF.version.*twice"),
    "value type 13": (file_bytes([pair("a", 13, bytes(8))]), "a: .*value type.*13"),
    "text past the end": (file_bytes([pair("a", STRING, struct.pack("<Q", 2**64 - 1))]), "a, 184"),
    "text not UTF-8": (file_bytes([pair("a", STRING, text(b"\xc0"))]), "a: .*UTF-8.*0xc0"),
    "bool 2": (file_bytes([pair("a", BOOL, b"\2")]), "a: .*bool.*2"),
    "array of type 99": (file_bytes([pair("a", ARRAY, array(99, 0))]), "a: .*value type.*99"),
    "huge array of bytes": (file_bytes([pair("a", ARRAY, array(U8, 2**63))]), "a, 922"),
    "huge array of texts": (file_bytes([pair("a", ARRAY, array(STRING, 2**61))]), "a, 230"),
    "huge array of arrays": (file_bytes([pair("a", ARRAY, array(ARRAY, 2**62))]), "a, 461"),
    "long array, bad text": (file_bytes([pair("a", ARRAY, array(STRING, 65, text(b"\xff") * 65))]), "UTF-8"),
    "deep arrays": (file_bytes([pair("a", ARRAY, nested(10_000))]), "at most 8 arrays"),
    "split": (file_bytes([pair("split.count", U16, b"\2\0")]), "split.count.*2 parts"),
    "split text": (file_bytes([pair("split.count", STRING, text("2"))]), "split.count"),
    "alignment 0": (file_bytes(of_alignment(0)), "general.alignment.*power of two"),
    "alignment 48": (file_bytes(of_alignment(48)), "general.alignment.*48"),
    "alignment float": (file_bytes([pair("general.alignment", F32, bytes(4))]), "alignment.*uint32"),
    "alignment past the end": (file_bytes(of_alignment(2**31), [tensor()]), "w: .*a file of"),
    "no axes": (file_bytes([], [tensor(axes=())]), "w: .*1 to 4 axes"),
    "five axes": (file_bytes([], [tensor(axes=(1,) * 5)]), "w: .*1 to 4 axes.*5"),
    "2**32 - 1 axes": (file_bytes([], [tensor(n_axes=2**32 - 1)]), "w: .*1 to 4 axes"),
    "axis 2**64 - 1": (file_bytes([], [tensor(axes=(2**64 - 1,))]), "w: .*2\\*\\*60"),
    "product overflows": (file_bytes([], [tensor(axes=(2**32, 2**32))]), "w: .*2\\*\\*60"),
    "empty but too wide": (file_bytes([], [tensor(axes=(2**63, 0))]), "w: .*2\\*\\*60"),
    "removed type": (file_bytes([], [tensor(kind=4)]), "w: .*number 4"),
    "unknown type": (file_bytes([], [tensor(kind=2**32 - 1)]), "w: .*number 4294967295"),
    "row of half a block": (file_bytes([], [tensor(kind=GGML_Q4_0, axes=(48, 2))]), "w: .*32.*48"),
    "offset not aligned": (file_bytes([], [tensor(offset=16)]), "w: .*multiple of 32"),
    "data past the end": (file_bytes([], [tensor(offset=64)]), "w: .*a file of"),
    "data far past the end": (file_bytes([], [tensor(offset=2**64 - 32)]), "w: .*a file of"),
    "data one byte short": (file_bytes([], [tensor(axes=(16,))], data=bytes(63)), "w: .*64 bytes"),
    "tensor twice": (file_bytes([], [tensor(), tensor(offset=32)]), "w: .*twice"),
    "tensors overlap": (
        file_bytes([], [tensor("a", axes=(16,)), tensor("b", offset=32)]),
        "b: .*end of another",
    ),
    "tensor name not UTF-8": (file_bytes([], [tensor(b"\xff")]), "tensor name.*UTF-8"),
}


@pytest.mark.parametrize("case", CRAFTED)
def test_broken_file_is_refused_with_its_reason_and_a_hint(path, case):
    content, reason = CRAFTED[case]
    path.write_bytes(content)
    with pytest.raises(FormatError) as caught:
        check_gguf(path)
    assert re.search(reason, caught.value.message.removeprefix(f"{path}: "))
    assert caught.value.message.startswith(str(path))
    assert caught.value.hint


HANGING = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + pair("a", ARRAY, array(U8, 2**63))


def test_49_bytes_on_which_gguf_py_hangs_are_refused_at_once(path):
    assert len(HANGING) == 49
    path.write_bytes(HANGING)
    start_s = time.perf_counter()
    with pytest.raises(FormatError, match="a, 9223372036854775808 claimed"):
        check_gguf(path)
    assert time.perf_counter() - start_s < 1


@pytest.mark.slow
def test_gguf_py_still_hangs_on_the_49_bytes(path):
    path.write_bytes(HANGING)
    command = [
        sys.executable,
        "-c",
        "import sys, gguf; print('ready', flush=True); gguf.GGUFReader(sys.argv[1])",
    ]
    with subprocess.Popen(
        [*command, str(path)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout.readline() == b"ready\n"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=2)
        process.kill()


def test_zeros_without_end_are_refused_at_once(path):
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + pair("a", ARRAY, array(STRING, 2**32))
    with path.open("wb") as file:  # sparse: takes no room on disk
        file.write(head)
        file.truncate(2**36)
    start_s = time.perf_counter()
    with pytest.raises(FormatError, match="4294967296 claimed"):
        check_gguf(path)
    assert time.perf_counter() - start_s < 1


def test_hostile_name_is_shown_escaped_on_one_line(path):
    path.write_bytes(file_bytes([], [tensor("\x1b[31m\n" + "x" * 10_000, axes=())]))
    with pytest.raises(FormatError) as caught:
        check_gguf(path)
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 1000 + len(str(path))


def check_loads_or_refuses(path, content: bytes) -> None:
    path.write_bytes(content)
    try:
        header = check_gguf(path)
    except FormatError:
        return
    theirs = gguf.GGUFReader(path).tensors
    assert [found.name for found in header.tensors] == [found.name for found in theirs]
    assert [found.start for found in header.tensors] == [found.data_offset for found in theirs]


def test_every_truncation_is_refused(path, valid):
    for length in range(len(valid) - 32 + 18):  # the last tensor's padding is not needed
        path.write_bytes(valid[:length])
        with pytest.raises(FormatError):
            check_gguf(path)


@given(data=st.data())
def test_mutated_bytes_load_or_are_refused(path, valid, data):
    content = bytearray(valid)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 65))] = data.draw(st.integers(0, 255))
    check_loads_or_refuses(path, bytes(content))


def test_every_byte_set_to_its_extremes_loads_or_is_refused(path, valid):
    for index in range(len(valid) - 64):
        for value in (0, 1, 127, 255):
            check_loads_or_refuses(path, valid[:index] + bytes([value]) + valid[index + 1 :])


@given(kind=st.integers(0, 13), value=st.binary(max_size=80))
def test_any_value_loads_or_is_refused(path, kind, value):
    check_loads_or_refuses(path, file_bytes([pair("a", kind, value)]))


SIZES = st.integers(0, 2**64 - 1) | st.sampled_from([0, 1, 2, 4, 16, 32, 64])


@given(axes=st.lists(SIZES, max_size=5), kind=st.integers(0, 45), offset=SIZES)
def test_any_tensor_loads_or_is_refused(path, axes, kind, offset):
    check_loads_or_refuses(path, file_bytes([], [tensor(axes=axes, kind=kind, offset=offset)]))


@given(content=st.binary(max_size=64))
def test_random_bytes_load_or_are_refused(path, content):
    check_loads_or_refuses(path, b"GGUF\3\0\0\0" + content)
