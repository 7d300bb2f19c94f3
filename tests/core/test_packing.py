"""Damage of every kind is refused before a kernel sees it."""

from dataclasses import replace

import numpy as np
import pytest

from laq.core.errors import FormatError
from laq.core.groups import TileGrid
from laq.core.packing import PackedTensor, check_packed, tile_offsets, tile_row_blocks
from laq.core.scale_units import ScalePer
from laq.core.scheme import ScaleFormat


@pytest.fixture
def packed():
    """Two row blocks, three groups: widths 4 and 2 in the first, 3 in the second; 30 x 90 weights."""
    bits = np.array([4, 2, 3], np.uint8)
    return PackedTensor(
        grid=TileGrid(30, 90, 32),
        scale_format=ScaleFormat.LOG8,
        payload=np.zeros(64 * 9, np.uint8),
        bits=bits,
        groups=np.array([0, 2, 1], np.uint16),
        scales=np.full((3, 16), 128, np.uint8),
        scale_base=np.array([1.0, 0.25], np.float16),
        zero_points=np.zeros(18, np.uint8),
        row_offsets=np.array([0, 64 * 6], np.uint64),
        row_permutation=np.arange(30, dtype=np.uint16),
        column_permutation=np.arange(90, dtype=np.uint16)[::-1].copy(),
    )


def test_sound_sections_are_accepted(packed):
    check_packed(packed, name="w")


def test_sections_are_found_by_name_in_file_order(packed):
    names = ["payload", "bits", "groups", "scales", "scale_base", "zero_points", "row_offsets"]
    assert list(packed.sections()) == [*names, "row_permutation", "column_permutation"]
    assert packed.size_bytes == 576 + 3 + 6 + 48 + 4 + 18 + 16 + 60 + 180


def test_tiles_of_learned_entries_are_accepted_with_them(packed):
    entries = np.zeros(28, np.uint8)
    learned = replace(packed, bits=u8(36, 34, 35), zero_points=u8(), palettes=entries)
    check_packed(learned, name="w")
    assert list(learned.sections())[-1] == "palettes"
    assert learned.size_bytes == packed.size_bytes - 18 + 28


def test_tiles_know_where_they_lie(packed):
    assert tile_offsets(packed.bits, packed.grid).tolist() == [0, 256, 384, 576]
    assert tile_row_blocks(packed).tolist() == [0, 0, 1]


def test_empty_row_blocks_own_no_tile(packed):
    grid = TileGrid(64, 90, 32)
    offsets = np.array([0, 0, 64 * 6, 64 * 9], np.uint64)
    assert tile_row_blocks(replace(packed, grid=grid, row_offsets=offsets)).tolist() == [1, 1, 2]


def u8(*values):
    return np.array(values, np.uint8)


def u16(*values):
    return np.array(values, np.uint16)


def u64(*values):
    return np.array(values, np.uint64)


def f16(*values):
    return np.array(values, np.float16)


DAMAGES = {
    "width zero": ({"bits": u8(4, 2, 0)}, "tags of tiles"),
    "width seven": ({"bits": u8(4, 2, 7)}, "tags of tiles"),
    "width 255": ({"bits": u8(4, 2, 255)}, "tags of tiles"),
    "width of a palette too large": ({"bits": u8(4, 2, 37)}, "tags of tiles"),
    "palette tiles without palettes": (
        {"bits": u8(36, 34, 35), "zero_points": u8()},
        "palettes have shape None",
    ),
    "palettes of another size": (
        {"bits": u8(36, 34, 35), "zero_points": u8(), "palettes": np.zeros(27, np.uint8)},
        r"palettes have shape \(27,\)",
    ),
    "payload too short": ({"payload": np.zeros(64 * 9 - 1, np.uint8)}, "payload has 575 bytes"),
    "payload too long": ({"payload": np.zeros(64 * 9 + 1, np.uint8)}, "payload has 577 bytes"),
    "group out of range": ({"groups": u16(0, 3, 1)}, "beyond the 3 groups"),
    "too few groups": ({"groups": u16(0, 2)}, "beyond the 3 groups"),
    "too few scales": ({"scales": np.ones((2, 16), np.uint8)}, "scales have shape"),
    "scales of fifteen rows": ({"scales": np.ones((3, 15), np.uint8)}, "scales have shape"),
    "too few zero points": ({"zero_points": np.zeros(17, np.uint8)}, "zero points have 17 bytes"),
    "offset between tiles": ({"row_offsets": u64(0, 64)}, "do not fall on tiles"),
    "offset beyond the end": ({"row_offsets": u64(0, 640)}, "do not fall on tiles"),
    "offset beyond int64": ({"row_offsets": u64(0, 1 << 63)}, "do not fall on tiles"),
    "first offset not zero": ({"row_offsets": u64(64 * 4, 64 * 6)}, "do not fall on tiles"),
    "too few offsets": ({"row_offsets": u64(0)}, "do not fall on tiles"),
    "no offsets": ({"row_offsets": u64()}, "do not fall on tiles"),
    "tile stored twice": ({"groups": u16(0, 0, 1)}, "stored twice"),
    "base not a power of two": ({"scale_base": f16(1.0, 0.3)}, "power of two"),
    "negative base": ({"scale_base": f16(1.0, -0.25)}, "power of two"),
    "base of zero": ({"scale_base": f16(1.0, 0.0)}, "power of two"),
    "infinite base": ({"scale_base": f16(1.0, np.inf)}, "power of two"),
    "base that is not a number": ({"scale_base": f16(1.0, np.nan)}, "power of two"),
    "too few bases": ({"scale_base": f16(1.0)}, "power of two"),
    "row index twice": ({"row_permutation": u16(*range(29), 0)}, "row permutation"),
    "row index out of range": ({"row_permutation": u16(*range(29), 30)}, "row permutation"),
    "too few row indices": ({"row_permutation": u16(*range(29))}, "row permutation"),
    "no row indices": ({"row_permutation": u16()}, "row permutation"),
    "column index twice": ({"column_permutation": u16(*range(89), 0)}, "column permutation"),
    "too many column indices": ({"column_permutation": u16(*range(91))}, "column permutation"),
}


@pytest.mark.parametrize(("changes", "message"), DAMAGES.values(), ids=DAMAGES.keys())
def test_damage_is_refused_and_named(packed, changes, message):
    with pytest.raises(FormatError, match=f"layer.weight: .*{message}"):
        check_packed(replace(packed, **changes), name="layer.weight")


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_scales_that_are_not_finite_are_refused(packed, value):
    scales = np.ones((3, 16), np.float16)
    sound = replace(packed, scale_format=ScaleFormat.FLOAT16, scales=scales, scale_base=None)
    check_packed(sound, name="w")
    scales[1, 2] = value
    with pytest.raises(FormatError, match="not finite"):
        check_packed(sound, name="w")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (255, "not numbers"),
        (86, "2 \\*\\* -40"),
        (158, "2 \\*\\* 30"),
        (0, "outside of"),
        (95, "more than 31 octaves"),
    ],
)
def test_powers_of_two_that_are_none_or_out_of_reach_are_refused(packed, code, message):
    scales = np.full((3, 16), 127, np.uint8)
    sound = replace(packed, scale_format=ScaleFormat.E8M0, scales=scales, scale_base=None)
    scales[0, 5] = 96  # 31 below the others of its row block, as far as they may
    scales[2] = 87  # another row block
    check_packed(sound, name="w")
    scales[1, 2] = code
    with pytest.raises(FormatError, match=message):
        check_packed(sound, name="w")


def test_falling_offsets_are_refused(packed):
    grid = TileGrid(48, 90, 32)
    falling = replace(packed, grid=grid, row_permutation=None, row_offsets=u64(0, 64 * 6, 64 * 4))
    with pytest.raises(FormatError, match="offsets fall"):
        check_packed(falling, name="w")


def test_all_offenders_are_named_at_once(packed):
    broken = replace(
        packed, payload=packed.payload[1:], zero_points=packed.zero_points[1:], row_permutation=u16(0)
    )
    with pytest.raises(FormatError, match=r"payload.*zero points.*row permutation"):
        check_packed(broken, name="w")


@pytest.fixture(params=[ScalePer.TILE, ScalePer.CHANNEL, ScalePer.TENSOR], ids=lambda per: per.value)
def sharing(packed, request):
    """The same tiles with three entries: tiles, formats of a row block, or formats of the weight."""
    per = request.param
    return replace(
        packed,
        scale_per=per,
        scales=np.full((3, per.stored_rows), 128, np.uint8),
        zero_points=np.zeros((3, per.stored_rows), np.uint8),
        scale_base=packed.scale_base[:1] if per is ScalePer.TENSOR else packed.scale_base,
    )


SHARED_DAMAGES = {
    "too few scales": (lambda p: {"scales": p.scales[1:]}, "not the shape"),
    "zero points in a row": (lambda p: {"zero_points": p.zero_points.reshape(-1)}, "not the shape"),
    "a zero point of 5 bits for codes of 4": (lambda p: {"zero_points": p.zero_points + u8(16)}, "wider"),
    "a tile of a trellis": (lambda p: {"bits": u8(20, 2, 3)}, "no integers"),
    "too many bases": (lambda p: {"scale_base": f16(1, 1, 1)}, "power of two"),
    "scales of four bits": (lambda p: {"scale_format": ScaleFormat.LOG4}, "four bits"),
}


@pytest.mark.parametrize(("changes", "message"), SHARED_DAMAGES.values(), ids=SHARED_DAMAGES.keys())
def test_damage_of_shared_scales_is_refused(sharing, changes, message):
    check_packed(sharing, name="w")
    with pytest.raises(FormatError, match=message):
        check_packed(replace(sharing, **changes(sharing)), name="w")
