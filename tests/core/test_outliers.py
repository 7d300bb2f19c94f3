"""Outliers in some 14 bits each: near what they stand for, priced by their section, checked when read."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laq.core.errors import RequestError
from laq.core.outliers import MAX_SHARE, Outliers, outlier_sections, shares_of

SHAPE = (20, 310)


def some(n=40, shape=SHAPE, *, seed=0, octaves=3.0, size=1.0):
    """Positions, values within some octaves of each other, and both rounded."""
    generator = np.random.default_rng(seed)
    positions = np.sort(generator.choice(shape[0] * shape[1], n, replace=False))
    signs = generator.choice([-1, 1], n)
    values = (signs * size * 2 ** generator.uniform(-octaves, 0, n)).astype(np.float32)
    return positions, values, Outliers.of(positions, values, shape[0] * shape[1])


@given(
    seed=st.integers(0, 1000),
    n=st.integers(1, 300),
    n_columns=st.integers(15, 900),
    exponent=st.integers(-30, 30),
)
def test_positions_survive_and_sizes_are_within_a_third(seed, n, n_columns, exponent):
    shape = (20, n_columns)
    positions, values, rounded = some(n, shape, seed=seed, size=10.0**exponent)
    found, sizes = rounded.elements()
    assert np.array_equal(found, positions)
    assert sizes.dtype == np.float32
    assert (np.abs(sizes - values) <= 0.334 * np.abs(values)).all()
    assert rounded.problems(*shape) == []


def test_values_are_numbers_of_bfloat16():
    _, values = some(seed=3)[2].elements()
    assert not (values.view(np.uint32) & 0xFFFF).any()


def test_values_far_below_the_largest_count_for_nothing():
    rounded = Outliers.of(np.arange(4), np.array([1, 2**-6, -(2**-7), 1e-9], np.float32), 100)
    assert rounded.elements()[1].tolist() == [1, 2**-6, 0, 0]


def test_outliers_of_a_weight_of_zeros_are_zero():
    rounded = Outliers.of(np.arange(3), np.zeros(3, np.float32), 100)
    assert not rounded.dequantize(10, 10).any()
    assert rounded.problems(10, 10) == []


def test_the_matrix_holds_each_element_where_it_was():
    positions, _, rounded = some()
    matrix = rounded.dequantize(*SHAPE)
    assert np.array_equal(np.flatnonzero(matrix), positions)
    assert np.array_equal(matrix.ravel()[positions], rounded.elements()[1])


@pytest.mark.parametrize(("share", "bits"), [(0.001, 17.2), (0.002, 15), (0.01, 13.5)])
def test_an_outlier_takes_some_fourteen_bits(share, bits):
    n = round(share * 1000 * 1000)
    ((name, dtype, shape),) = outlier_sections(1000, 1000, n)
    section = some(n, (1000, 1000))[2].sections()[name]
    assert (section.dtype, section.shape) == (dtype, shape)
    assert 8 * section.nbytes / n == pytest.approx(bits, abs=0.3)


def damaged(change):
    sound = some()[2]
    data = sound.data.copy()
    return Outliers(sound.n, change(data))


def flip(*places):
    def change(data):
        for place in places:
            data[place] ^= 255
        return data

    return change


def swap_in_a_run(data):
    run = np.bincount(some()[0] // 256).argmax()
    first = 1 + np.searchsorted(some()[0] // 256, run)
    data[[first, first + 1]] = data[[first + 1, first]]
    return data


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda data: data[:-1], "shape"),
        (flip(-1), "runs do not hold 40"),
        (lambda data: np.r_[np.uint8(7), data[1:]], "size below"),
        (flip(-5), "runs do not hold 40"),
        (swap_in_a_run, "do not rise"),
    ],
)
def test_damage_is_named(change, problem):
    (found,) = damaged(change).problems(*SHAPE)
    assert problem in found


def test_a_position_beyond_the_last_element_is_damage():
    last = Outliers.of(np.array([249]), np.ones(1, np.float32), 250)
    assert last.problems(25, 10) == []
    last.data[1] += 1
    assert "leave the matrix of 25 x 10" in last.problems(25, 10)[0]


@given(data=st.binary(min_size=79, max_size=79))
def test_whatever_bytes_there_are_either_have_a_problem_or_decode(data):
    ((_, _, shape),) = outlier_sections(*SHAPE, 40)
    outliers = Outliers(40, np.resize(np.frombuffer(data, np.uint8), shape))
    if not outliers.problems(*SHAPE):
        positions, values = outliers.elements()
        assert np.array_equal(outliers.dequantize(*SHAPE).ravel()[positions], values)
        assert np.isfinite(values).all()


@pytest.mark.parametrize("asked", ["", "some", "-1", -0.1, MAX_SHARE * 1.01, True, "nan", None, [0.1]])
def test_what_is_no_share_is_refused(asked):
    with pytest.raises(RequestError, match=r"hint: choose a number up to 0\.05, or auto"):
        shares_of(asked)
