"""Small values: budgets, grids, permutations, schemes, zero points, scales, errors, the registry."""

from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laq.allocation import ALLOCATORS
from laq.core import errors
from laq.core.budget import bpw_to_bytes, bytes_to_bpw, parse_size
from laq.core.errors import BudgetError, FormatError, LaqError, RequestError
from laq.core.formats import CANDIDATES, Integer
from laq.core.formats.table import FP4, NF4, RESIDUALS
from laq.core.groups import GROUP_SIZES, TileGrid
from laq.core.permutation import (
    checked_permutation,
    descending,
    index_dtype,
    inverse,
    is_permutation,
    permutation_bytes,
)
from laq.core.progress import shown_by, track
from laq.core.qtensor import NARROW_BITS, decode_scales, zero_point_code, zero_point_value
from laq.core.record import Record
from laq.core.scheme import ScaleFormat, Scheme


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("60MB", 60_000_000),
        ("1.5 GiB", 3 << 29),
        ("800kib", 819_200),
        ("7", 7),
        (" .5 KB ", 500),
        ("12B", 12),
        ("2gb", 2_000_000_000),
    ],
)
def test_sizes_are_read_with_their_unit(text, size_bytes):
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize("text", ["", "MB", "60 MBit", "-5MB", "1e6", "1,5GB", "5.MB.", "nan", "60MB extra"])
def test_text_that_is_no_size_is_refused_with_an_example(text):
    with pytest.raises(BudgetError, match="60MB"):
        parse_size(text)


@given(bpw=st.floats(0.1, 32), n_params=st.integers(1, 1 << 40))
def test_bytes_allowed_never_exceed_the_bits_per_weight(bpw, n_params):
    assert bytes_to_bpw(bpw_to_bytes(bpw, n_params), n_params) <= bpw * (1 + 1e-12)


@given(n_rows=st.integers(1, 5000), n_columns=st.integers(1, 5000), group_size=st.sampled_from(GROUP_SIZES))
def test_padding_is_less_than_a_tile(n_rows, n_columns, group_size):
    grid = TileGrid(n_rows, n_columns, group_size)
    assert 0 <= grid.padded_rows - n_rows < 16
    assert 0 <= grid.padded_columns - n_columns < group_size
    assert grid.n_tiles * grid.tile_elements == grid.padded_rows * grid.padded_columns


@pytest.mark.parametrize("group_size", [0, 16, 48, 256])
def test_other_group_sizes_do_not_exist(group_size):
    with pytest.raises(ValueError, match="group size"):
        TileGrid(16, 64, group_size)


@given(st.lists(st.floats(0, 1e6, width=32), min_size=1, max_size=50))
def test_descending_sorts_and_inverse_undoes(values):
    array = np.array(values)
    order = descending(array)
    assert (np.diff(array[order]) <= 0).all()
    assert is_permutation(order)
    assert np.array_equal(array[order][inverse(order)], array)


def test_equal_elements_keep_their_order():
    assert descending(np.array([1.0, 2.0, 1.0, 2.0])).tolist() == [1, 3, 0, 2]


@pytest.mark.parametrize(("n", "itemsize"), [(1, 2), (1 << 16, 2), ((1 << 16) + 1, 4)])
def test_indices_take_two_bytes_as_long_as_they_fit(n, itemsize):
    assert index_dtype(n).itemsize == itemsize
    assert permutation_bytes(n) == n * itemsize


@pytest.mark.parametrize("candidate", [[], [1], [0, 0], [0, 2], [0, 1, 3]])
def test_lists_that_are_no_permutation_are_seen(candidate):
    assert not is_permutation(np.array(candidate, np.uint16))


@pytest.mark.parametrize(
    "candidate", [np.uint16([0, 0]), np.uint16([0]), np.uint32([1, 0]), np.uint16([[0, 1]])]
)
def test_permutation_from_a_file_is_checked(candidate):
    with pytest.raises(ValueError, match="2 indices"):
        checked_permutation(candidate, 2)


@pytest.mark.parametrize("bits", [c.code_bits for c in CANDIDATES if c.code_bits])
def test_every_zero_point_code_survives(bits):
    codes = np.arange(1 << bits, dtype=np.uint8)
    widths = np.full(len(codes), bits, np.uint8)
    values = zero_point_value(codes, widths)
    assert np.array_equal(zero_point_code(values, widths), codes)
    assert len(set(values.tolist())) == len(codes)


@pytest.mark.parametrize("bits", range(1, NARROW_BITS + 1))
def test_narrow_zero_points_lie_in_halves_around_the_middle(bits):
    values = zero_point_value(np.arange(1 << bits, dtype=np.uint8), np.full(1 << bits, bits, np.uint8))
    assert np.diff(values).tolist() == [0.5] * ((1 << bits) - 1)
    middle = ((1 << bits) - 1) / 2
    assert middle in values
    assert values.min() >= 0
    assert values.max() <= (1 << bits) - 1


@given(st.integers(-320, 240))
def test_log_scales_are_correctly_rounded(step):
    found = decode_scales(np.array([step], np.int16), ScaleFormat.LOG8)[0]
    assert found == np.float32(2.0 ** (step / 8))


TRITS_BYTES = {32: 64 + 3 * 16, 64: 3 * 64 + 16, 128: 6 * 64 + 2 * 16}
"""Lines of five slots, and 16 bytes a slot that is left: 1.75, 1.625 and 1.625 bits."""


@pytest.mark.parametrize("scale_format", ScaleFormat)
@pytest.mark.parametrize("group_size", GROUP_SIZES)
def test_schemes_count_every_byte(scale_format, group_size):
    for candidate in CANDIDATES:
        scheme = Scheme(candidate, group_size, scale_format)
        b = candidate.code_bits
        zero_points = 16 * b / 8 if isinstance(candidate, Integer) else 0
        codes = TRITS_BYTES[group_size] if candidate.name == "trits" else 16 * group_size * b / 8
        scales = {ScaleFormat.LOG8: 16, ScaleFormat.LOG4: 9, ScaleFormat.FLOAT16: 32, ScaleFormat.E8M0: 16}[
            scale_format
        ]
        expected = codes + scales + zero_points + 3 if b else 0
        assert scheme.tile_bytes == expected


def test_four_bits_in_groups_of_64_take_4_point_21():
    (int4,) = (candidate for candidate in CANDIDATES if candidate.name == "int4")
    assert 8 * Scheme(int4, 64, ScaleFormat.LOG8).tile_bytes / 1024 == 4.2109375


def test_candidates_are_pinned_because_plans_store_their_positions():
    names = ["absent", "int1", "ternary", "int2", "int3", "int4", "int5", "int6", "int8"]
    trellises = [f"trellis{bits}" for bits in range(1, 7)]
    tables = ["nf4", "fp4", "palette2", "palette3", "palette4", "trits"]
    residuals = ["residual45", "residual55", "residual65", "residual75"]
    assert [c.name for c in CANDIDATES] == [*names, *trellises, *tables, *residuals]
    levels = [1, 2, 3, 4, 8, 16, 32, 64, 256, 2, 4, 8, 16, 32, 64, 16, 16, 4, 8, 16, 3, 4, 4, 4, 4]
    assert [c.n_levels for c in CANDIDATES] == levels
    widths = [0, 1, 2, 2, 3, 4, 5, 6, 8, 1, 2, 3, 4, 5, 6, 4, 4, 2, 3, 4, 2, 2, 2, 2, 2]
    assert [c.code_bits for c in CANDIDATES] == widths
    integers, of_trellises = [0, 1, 2, 2, 3, 4, 5, 6, 8], [17, 18, 19, 20, 21, 22]
    of_tables = [52, 68, 34, 35, 36, 82, 98, 114, 130, 146]
    assert [c.tag for c in CANDIDATES] == [*integers, *of_trellises, *of_tables]


def test_floats_of_four_bits_are_exact():
    """Sign, two bits of exponent, one of mantissa, doubled."""
    magnitudes = [2 * (m / 2 if e == 0 else 2.0 ** (e - 1) * (1 + m / 2)) for e in range(4) for m in range(2)]
    assert list(FP4.levels) == [*magnitudes, *(-x for x in magnitudes)]


@pytest.mark.parametrize(("residual", "share"), [*zip(RESIDUALS, (0.45, 0.55, 0.65, 0.75), strict=True)])
def test_residual_codes_are_sums_of_two_signs(residual, share):
    for code, level in enumerate(residual.levels):
        first, second = (1 if code & bit else -1 for bit in (2, 1))
        assert level / 20 == pytest.approx(first + share * second)


def test_nf4_are_quantiles_of_a_normal_distribution():
    """Halves of 8 and of 9 quantiles that meet in zero, as its authors compute them."""
    ends, normal = (1 / 32 + 1 / 30) / 2, NormalDist()
    below = [normal.inv_cdf(ends + (0.5 - ends) * i / 7) for i in range(7)]
    above = [normal.inv_cdf(0.5 + (0.5 - ends) * i / 8) for i in range(1, 9)]
    largest = above[-1]
    assert list(NF4.levels) == [round(127 * x / largest) for x in (*below, 0, *above)]


def test_every_error_says_how_it_ends():
    found = {name: value for name, value in vars(errors).items() if isinstance(value, type)}
    for error in found.values():
        assert issubclass(error, LaqError)
        assert error.exit_code == (2 if issubclass(error, RequestError) else 1)
    assert str(RequestError("a: wrong", hint="do b")) == "a: wrong\nhint: do b"
    assert str(RequestError("a: wrong")) == "a: wrong"


def test_unknown_method_is_refused_with_the_list():
    with pytest.raises(RequestError, match=r"unknown allocator 'magic'\nhint: .*lagrange.*uniform"):
        ALLOCATORS.get("magic")


def test_progress_is_told_inside_its_block_only():
    seen = []

    class Recorder:
        def track(self, items, *, label, total):
            seen.append((label, total))
            return iter(items)

    with shown_by(Recorder()):
        assert list(track("ab", label="inside", total=2)) == ["a", "b"]
    assert list(track("ab", label="outside", total=2)) == ["a", "b"]
    assert seen == [("inside", 2)]


def test_records_come_back_and_other_files_are_refused(tmp_path):
    record = Record(0.1, None, 2.0, 2.2, 0.9, 100, 10, 20, 4.0, "test", "hash")
    record.save(tmp_path / "record.json")
    assert Record.open(tmp_path / "record.json") == record
    (tmp_path / "other.json").write_text('{"kind": "plan"}')
    with pytest.raises(FormatError):
        Record.open(tmp_path / "other.json")
