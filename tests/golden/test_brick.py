"""Released bytes stay readable for ever: what brick_v1.json holds is packed and unpacked as it always was."""

import doctest
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from laq.core.formats import CANDIDATES
from laq.core.formats.trellis import MIDDLE, TAG
from laq.core.groups import GROUP_SIZES, TILE_ROWS, TileGrid
from laq.core.packing import TAGS, ZERO_POINT_BITS, PackedTensor, check_packed
from laq.core.qtensor import QTensor, zero_point_value
from laq.core.scheme import ScaleFormat
from laq.kernels.reference import (
    dequantize,
    pack,
    pack_bricks,
    pack_trits,
    unpack_bricks,
    unpack_trits,
)
from laq.runtime.packed import PackedWeight

GOLDEN = json.loads((Path(__file__).parent / "brick_v1.json").read_text())
TABLE = json.loads((Path(__file__).parent / "table_v3.json").read_text())
TRELLIS = json.loads((Path(__file__).parent / "trellis_v2.json").read_text())
RESIDUAL = json.loads((Path(__file__).parent / "residual_v4.json").read_text())
LOG4 = json.loads((Path(__file__).parent / "log4_v3.json").read_text())
E8M0 = json.loads((Path(__file__).parent / "e8m0_v4.json").read_text())
INTEGERS = list(range(9))
TRELLISES = [9, 10, 11, 12, 13, 14, 0, 5, 8]
"""Choices of version 2: every trellis once, and with them an absent tile and two of integers."""

TABLES = [15, 16, 17, 18, 19, 20, 0, 5, 10]
"""Choices of version 3: every table once, an absent tile, one of integers and one of a trellis."""

RESIDUALS = [21, 22, 23, 24, 0, 5, 10, 18, 20]
"""Choices of version 4: every residual code once, and tiles of other kinds."""

STORED = [("log8", GOLDEN, INTEGERS), ("float16", GOLDEN, INTEGERS), ("log8", TRELLIS, TRELLISES)]
STORED += [("float16", TRELLIS, TRELLISES), ("log8", TABLE, TABLES), ("float16", TABLE, TABLES)]
STORED += [("log4", LOG4, TRELLISES), ("log4", TABLE, TABLES)]
STORED += [("e8m0", E8M0, TABLES)]
STORED += [(name, RESIDUAL, RESIDUALS) for name in ("log8", "log4", "float16")]
every_matrix = pytest.mark.parametrize(("name", "golden", "formats"), STORED)
FORMAT_PAGE = Path(__file__).parents[2] / "docs" / "FORMAT.md"


def brick_codes(bits):
    """One brick: code of row r, column k is (5 r + 3 k) mod 2 ** bits."""
    r, k = np.mgrid[:16, :32]
    return ((5 * r + 3 * k) % (1 << bits)).astype(np.uint8)


def matrix(scale_format, formats):
    """18 x 283 weights in groups of 32: each format once in the first row block, backwards in the second."""
    grid = TileGrid(18, 283, 32)
    choices = np.array([formats, formats[::-1]], np.uint8)
    tags = TAGS[choices].repeat(TILE_ROWS, 0)
    bits = ZERO_POINT_BITS[tags]
    levels = np.array([c.n_levels for c in CANDIDATES])[choices].repeat(TILE_ROWS, 0).repeat(32, 1)
    r, k = np.mgrid[:32, :288]
    _, g = np.mgrid[:32, :9]
    row = np.mgrid[:32, :9][0]
    zero_points = zero_point_value(((3 * row + g) % (1 << bits.astype(int))).astype(np.uint8), bits)
    steps = (5 * row + 11 * g) % 40 - 60
    if scale_format is ScaleFormat.LOG4:
        steps = (5 * row) % 16 + 11 * g - 60
    if scale_format is ScaleFormat.E8M0:
        steps = 8 * ((5 * row) % 16 + g - 20)
    scales = steps.astype(np.int16) if scale_format.is_log else np.ldexp(1 + row / 32, -g).astype(np.float16)
    return QTensor(
        grid=grid,
        scale_format=scale_format,
        choices=choices,
        codes=((5 * r + 3 * k) % levels).astype(np.uint8),
        scales=scales,
        zero_points=np.where(bits > 0, zero_points, np.where(tags > TAG, MIDDLE, 0)).astype(np.float32),
        row_permutation=np.arange(17, -1, -1).astype(np.uint16),
        column_permutation=((np.arange(283) * 5) % 283).astype(np.uint16),
        palettes=((np.arange(28) * 37 + 5) % 256).astype(np.uint8),
    )


def stored(name, golden):
    """The sections of a golden matrix as a reader finds them."""
    sections = {}
    for section, (dtype, shape, text) in golden[name]["sections"].items():
        sections[section] = np.frombuffer(bytes.fromhex(text), dtype).reshape(shape).copy()
    return PackedTensor(TileGrid(18, 283, 32), ScaleFormat(name), **{"scale_base": None} | sections)


@pytest.mark.parametrize("bits", range(1, 9))
def test_bricks_keep_their_bytes(bits):
    golden = bytes.fromhex(GOLDEN["bricks"][str(bits)])
    lines = pack_bricks(brick_codes(bits)[None], bits)
    assert lines.tobytes() == golden
    read = np.frombuffer(golden, np.uint8).reshape(1, 1, bits, 64)
    assert np.array_equal(unpack_bricks(read, bits)[0], brick_codes(bits))


@every_matrix
def test_sections_keep_their_bytes(name, golden, formats):
    packed, expected = pack(matrix(ScaleFormat(name), formats)), stored(name, golden)
    assert list(packed.sections()) == list(golden[name]["sections"])
    for section, array in packed.sections().items():
        assert array.tobytes() == expected.sections()[section].tobytes(), section


@every_matrix
def test_stored_sections_decode_to_the_same_values(name, golden, formats):
    packed = stored(name, golden)
    check_packed(packed, name=name)
    values = dequantize(packed)
    assert hashlib.sha256(values.astype("<f4").tobytes()).hexdigest() == golden[name]["values_sha256"]
    assert torch.equal(PackedWeight(packed).dequantize(), torch.from_numpy(values))


@pytest.mark.parametrize("group_size", GROUP_SIZES)
def test_tiles_of_three_values_keep_their_bytes(group_size):
    r, k = np.mgrid[:16, :group_size]
    codes = ((5 * r + 7 * k + k // 5) % 3).astype(np.uint8)
    golden = bytes.fromhex(TABLE["trits"][str(group_size)])
    assert pack_trits(codes[None]).tobytes() == golden
    assert np.array_equal(unpack_trits(np.frombuffer(golden, np.uint8)[None], group_size)[0], codes)


def test_worked_examples_of_the_format_page_are_true(monkeypatch):
    monkeypatch.chdir(FORMAT_PAGE.parents[1])
    found = doctest.testfile(
        str(FORMAT_PAGE), module_relative=False, optionflags=doctest.NORMALIZE_WHITESPACE
    )
    assert found.attempted >= 8
    assert found.failed == 0
