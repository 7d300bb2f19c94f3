"""Native packing gives the reference's bytes, and unpacking gives the codes back."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from laq.core.errors import FormatError
from laq.core.formats import CANDIDATES
from laq.core.groups import GROUP_SIZES, TILE_ROWS
from laq.core.packing import tile_offsets
from laq.core.scheme import ScaleFormat
from laq.kernels import native, reference
from laq.kernels.packing import pack

LIBRARY = native.library()
pytestmark = pytest.mark.usefixtures("tier_is_put_back")
needs_library = pytest.mark.skipif(LIBRARY is None, reason="native kernels are not built here")


def tiles_of(bits, group_size, code_starts, payload_starts, stride):
    return native.Tiles(
        n_tiles=len(bits),
        group_size=group_size,
        bits=bits.ctypes.data,
        code_starts=code_starts.ctypes.data,
        stride=stride,
        payload_starts=payload_starts.ctypes.data,
    )


def unpacked(packed, stride=None):
    n, group_size = len(packed.bits), packed.grid.group_size
    codes = np.full((n, TILE_ROWS, stride or group_size), 77, np.uint8)
    code_starts = np.arange(n) * (TILE_ROWS * codes.shape[2])
    payload_starts = tile_offsets(packed.bits, packed.grid)
    tiles = tiles_of(packed.bits, group_size, code_starts, payload_starts, codes.shape[2])
    if packed.palettes is not None:
        tiles.palettes = packed.palettes.ctypes.data
    LIBRARY.unpack(tiles, packed.payload.ctypes.data, codes.ctypes.data)
    assert (codes[:, :, group_size:] == 77).all()
    return codes[:, :, :group_size]


@needs_library
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    n_rows=st.integers(1, 300),
    n_columns=st.integers(1, 500),
    group_size=st.sampled_from(GROUP_SIZES),
    scale_format=st.sampled_from(ScaleFormat),
    choices=st.sampled_from([None, *range(len(CANDIDATES))]),
    threads=st.sampled_from([1, 3]),
    seed=st.integers(0, 2**32 - 1),
)
def test_bytes_are_those_of_the_reference(
    random_qtensor, n_rows, n_columns, group_size, scale_format, choices, threads, seed
):
    LIBRARY.set_threads(threads)
    options = {"scale_format": scale_format, "choices": choices, "seed": seed, "sorts_rows": True}
    tensor = random_qtensor((n_rows, n_columns), group_size, **options)
    expected = reference.pack(tensor)
    codes = reference.levels_of(reference.unpack_tiles(expected), expected.bits, expected.palettes)
    found = pack(tensor)
    for name, section in expected.sections().items():
        assert np.array_equal(found.sections()[name], section), name
    for tier in LIBRARY.tiers:
        LIBRARY.use_tier(tier)
        assert np.array_equal(unpacked(found), codes)
    assert np.array_equal(unpacked(found, group_size + 5), codes)


@needs_library
def test_palettes_that_are_not_given_are_refused(random_qtensor):
    packed = pack(random_qtensor((16, 64), choices=18))
    assert packed.bits.tolist() == [35]
    with pytest.raises(FormatError):
        unpacked(replace(packed, palettes=None))


def test_without_kernels_the_reference_packs(random_qtensor, monkeypatch):
    tensor = random_qtensor((100, 173))
    expected = pack(tensor)
    monkeypatch.setenv(native.ENVIRONMENT, native.WITHOUT)
    native.library.cache_clear()
    try:
        found = pack(tensor)
    finally:
        monkeypatch.undo()
        native.library.cache_clear()
    for name, section in expected.sections().items():
        assert np.array_equal(found.sections()[name], section), name


@needs_library
@pytest.mark.parametrize(
    ("bits", "group_size", "stride"), [(7, 32, 32), (0, 32, 32), (9, 32, 32), (4, 48, 48), (4, 32, 31)]
)
def test_widths_and_sizes_out_of_range_are_refused(bits, group_size, stride):
    start, width = np.zeros(1, np.int64), np.array([bits], np.uint8)
    codes, payload = np.zeros(16 * 64, np.uint8), np.full(64 * 16, 9, np.uint8)
    tiles = tiles_of(width, group_size, start, start, stride)
    with pytest.raises(FormatError):
        LIBRARY.pack(tiles, codes.ctypes.data, payload.ctypes.data)
    with pytest.raises(FormatError):
        LIBRARY.unpack(tiles, payload.ctypes.data, codes.ctypes.data)
    assert (payload == 9).all()
    assert not codes.any()
