"""Corrections in 8 bits: near what was rounded, priced by their sections, checked before they are used."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laq.core.errors import RequestError
from laq.core.low_rank import LowRank, low_rank_sections, ranks_of


def low_rank(rank=3, n_rows=20, n_columns=31, *, seed=0, size=1.0):
    generator = np.random.default_rng(seed)
    rows = size * generator.standard_normal((n_rows, rank)).astype(np.float32)
    columns = generator.standard_normal((rank, n_columns)).astype(np.float32)
    return LowRank.of(rows, columns), rows @ columns


@given(seed=st.integers(0, 1000), exponent=st.integers(-6, 3))
def test_rounding_to_8_bits_leaves_a_hundredth(seed, exponent):
    rounded, exact = low_rank(seed=seed, size=10.0**exponent)
    error = np.linalg.norm(rounded.dequantize(20, 31) - exact)
    assert error < 0.015 * np.linalg.norm(exact)


def test_factors_of_very_unlike_sizes_are_balanced():
    rows, columns = np.full((4, 1), 1e4, np.float32), np.full((1, 5), 1e-6, np.float32)
    assert np.allclose(LowRank.of(rows, columns).dequantize(4, 5), 1e-2, rtol=2e-3)


def test_a_product_of_nothing_is_nothing():
    rounded = LowRank.of(np.zeros((4, 2), np.float32), np.zeros((2, 5), np.float32))
    assert not rounded.dequantize(4, 5).any()
    assert rounded.problems(4, 5) == []


def test_truncating_drops_the_last_products():
    rounded, _ = low_rank()
    rest = LowRank(rounded.factors[2:], rounded.scales[2:])
    whole = rounded.truncated(2).dequantize(20, 31) + rest.dequantize(20, 31)
    assert np.allclose(whole, rounded.dequantize(20, 31), atol=1e-5)


def test_sections_have_the_types_and_shapes_that_are_priced():
    sections = low_rank(rank=3)[0].sections()
    found = [(name, array.dtype, array.shape) for name, array in sections.items()]
    assert found == low_rank_sections(20, 31, 3)
    assert sum(array.nbytes for array in sections.values()) == 3 * (20 + 31 + 2)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"factors": np.zeros((3, 50), np.int8)}, r"shape \(3, 50\), expected \(3, 51\)"),
        ({"scales": np.array([1, np.nan, 1], np.float16)}, "not finite"),
        ({"scales": np.array([1, -1, 1], np.float16)}, "not finite and positive"),
    ],
)
def test_damage_is_named(changes, problem):
    import re

    sound, _ = low_rank()
    assert sound.problems(20, 31) == []
    damaged = LowRank(**{"factors": sound.factors, "scales": sound.scales} | changes)
    (found,) = damaged.problems(20, 31)
    assert re.search(problem, found)


@pytest.mark.parametrize("rank", [0, 21])
def test_a_rank_that_no_such_matrix_has_is_damage(rank):
    of_rank = LowRank(np.zeros((rank, 51), np.int8), np.zeros(rank, np.float16))
    (found,) = of_rank.problems(20, 31)
    assert found == f"rank {rank} of a matrix of 20 x 31"


@pytest.mark.parametrize("asked", ["", "some", "-1", -1, 257, "1.5", True, "\u0663"])
def test_what_is_no_rank_is_refused(asked):
    with pytest.raises(RequestError, match="hint: choose a number from 0 to 256, or auto"):
        ranks_of(asked)
