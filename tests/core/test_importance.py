"""Estimates are shrunk towards their mean by their support; several uses add up."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laq.core.errors import CalibrationError
from laq.core.importance import importance_of, shrink, shrink_matrix
from laq.core.stats import Moments, Stats, Use


def vectors_of(n, size, seed=0):
    return np.random.default_rng(seed).standard_normal((n, size)) * np.arange(1, size + 1)


def matrix_moments(n, size, seed=0):
    v = vectors_of(n, size, seed)
    return Moments((v.T @ v / n).astype(np.float32), (v**4).mean(0).astype(np.float32), n)


def square_moments(n, size, seed=0):
    v = vectors_of(n, size, seed)
    return Moments((v**2).mean(0).astype(np.float32), (v**4).mean(0).astype(np.float32), n)


@given(n=st.integers(1, 200), size=st.integers(1, 8), prior=st.floats(0.01, 1000), seed=st.integers(0, 99))
def test_shrunk_values_lie_between_the_estimate_and_the_mean(n, size, prior, seed):
    moments = square_moments(n, size, seed)
    second, mean = moments.diagonal.astype(np.float64), float(moments.diagonal.astype(np.float64).mean())
    shrunk = shrink(moments, prior)
    slack = 1e-6 * mean
    assert (shrunk >= np.minimum(second, mean) - slack).all()
    assert (shrunk <= np.maximum(second, mean) + slack).all()


def test_no_prior_changes_nothing():
    moments = square_moments(50, 4)
    np.testing.assert_allclose(shrink(moments, 0.0), moments.diagonal)


def test_endless_prior_leaves_the_mean():
    moments = square_moments(50, 4)
    np.testing.assert_allclose(shrink(moments, 1e15), moments.diagonal.mean(), rtol=1e-5)


def test_more_samples_shrink_less():
    few, many = square_moments(10, 4), square_moments(10, 4)
    many = Moments(many.second, many.fourth, 10_000)
    spread = [float(np.ptp(shrink(moments, 8.0))) for moments in (few, many)]
    assert spread[0] < spread[1]


def test_unseen_element_takes_the_mean():
    assert shrink(Moments(np.float32([4, 0]), np.float32([16, 0]), 100), 1.0)[1] == pytest.approx(2)


@given(n=st.integers(1, 20), size=st.integers(1, 8), prior=st.floats(0.01, 1000), seed=st.integers(0, 99))
def test_shrunk_matrix_is_positive_definite_with_the_shrunk_diagonal(n, size, prior, seed):
    moments = matrix_moments(n, size, seed)
    shrunk = shrink_matrix(moments, prior)
    np.testing.assert_allclose(np.diagonal(shrunk), shrink(moments, prior), rtol=1e-5)
    np.testing.assert_allclose(shrunk, shrunk.T, rtol=1e-12)
    assert np.linalg.eigvalsh(shrunk).min() > 0


def test_sign_of_correlations_is_kept():
    moments = matrix_moments(100, 5)
    assert np.array_equal(np.sign(shrink_matrix(moments, 8.0)), np.sign(moments.second))


def test_single_use_gives_the_shrunk_moments():
    columns, rows = matrix_moments(50, 4), square_moments(50, 3)
    stats = Stats({"c": columns, "r": rows}, {"w": (Use("c", "r"),)}, 50, "")
    importance = importance_of(stats, "w", prior_samples=2.0)
    np.testing.assert_allclose(importance.hessian, shrink_matrix(columns, 2.0), rtol=1e-6)
    np.testing.assert_allclose(importance.rows, shrink(rows, 2.0), rtol=1e-6)
    np.testing.assert_allclose(importance.row_support, rows.support)
    np.testing.assert_allclose(importance.column_support, columns.support)


def test_two_uses_keep_the_total_loss_of_independent_errors():
    moments = {"c": matrix_moments(50, 4), "r": square_moments(50, 3)}
    moments |= {"d": matrix_moments(70, 4, 1), "s": square_moments(70, 3, 1)}
    stats = Stats(moments, {"w": (Use("c", "r"), Use("d", "s"))}, 50, "")
    both = importance_of(stats, "w", prior_samples=0.0)
    parts = [(moments["c"], moments["r"]), (moments["d"], moments["s"])]
    expected = sum(float(c.diagonal.sum()) * float(r.diagonal.sum()) for c, r in parts)
    assert float(np.trace(both.hessian)) * float(both.rows.sum()) == pytest.approx(expected, rel=1e-5)


def test_use_that_was_never_seen_is_refused():
    with pytest.raises(CalibrationError, match="w: calibration saw no use"):
        importance_of(Stats({}, {}, 0, ""), "w")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_statistics_that_are_not_finite_are_refused(value):
    second = np.eye(4, dtype=np.float32)
    second[0, 0] = value
    moments = {"c": Moments(second, np.ones(4, np.float32), 5), "r": square_moments(50, 3)}
    with np.errstate(all="ignore"), pytest.raises(CalibrationError, match=r"w: .*not finite"):
        importance_of(Stats(moments, {"w": (Use("c", "r"),)}, 50, ""), "w")
