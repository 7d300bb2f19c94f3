"""The exact optimum on problems small enough to try everything; refusals."""

import itertools
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laq.allocation.ilp import MAX_UNITS, Ilp
from laq.allocation.lagrange import Lagrange
from laq.core.errors import RequestError


def total(matrix, choice):
    return matrix[choice, np.arange(len(choice))].sum()


@given(seed=st.integers(0, 2**32), n_units=st.integers(1, 5))
def test_nothing_that_fits_has_a_smaller_loss(seed, n_units):
    generator = np.random.default_rng(seed)
    losses, costs = generator.exponential(size=(4, n_units)), generator.integers(0, 50, (4, n_units))
    losses[generator.random(losses.shape) < 0.2] = np.inf
    losses[3] = generator.exponential(size=n_units)
    smallest = int(np.where(np.isfinite(losses), costs, 99).min(0).sum())
    budget = smallest + int(generator.integers(0, 60))
    every = itertools.product(range(4), repeat=n_units)
    least = min(total(losses, one) for one in map(np.array, every) if total(costs, one) <= budget)
    found = Ilp().choose(losses, costs, budget)
    assert total(costs, found) <= budget
    assert total(losses, found) <= least * (1 + 1e-6) + 1e-9


def test_lagrange_comes_within_a_tenth_of_a_percent_over_many_units():
    generator = np.random.default_rng(0)
    sizes = generator.integers(100, 2000, 200)
    costs = np.array([2, 3, 4, 5, 6, 8])[:, None] * sizes
    losses = sizes * np.exp(generator.normal(size=200)) * 4.0 ** -np.array([2, 3, 4, 5, 6, 8])[:, None]
    budget = int(3.4 * sizes.sum())
    best, found = (total(losses, one.choose(losses, costs, budget)) for one in (Ilp(), Lagrange()))
    assert best <= found <= 1.001 * best


def test_too_many_units_are_refused():
    losses = np.ones((2, MAX_UNITS + 1))
    with pytest.raises(RequestError, match="up to 4096 units exactly, not 4097\nhint: use --unit tensor"):
        Ilp().choose(losses, losses.astype(np.int64), 10**6)


def test_without_scipy_the_way_out_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(RequestError, match=r"needs scipy\nhint: pip install 'laq\[ilp\]'"):
        Ilp().choose(np.ones((2, 3)), np.ones((2, 3), np.int64), 9)
