"""The exact optimum on problems small enough to try everything; refusals."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laq.allocation import ilp
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
    monkeypatch.setattr(ilp, "find_spec", lambda _: None)
    with pytest.raises(RequestError, match=r"needs scipy\nhint: pip install 'laq\[ilp\]'"):
        Ilp().choose(np.ones((2, 3)), np.ones((2, 3), np.int64), 9)


def test_no_proven_optimum_in_time_is_told(monkeypatch):
    monkeypatch.setattr(ilp, "TIME_LIMIT_S", 0.0)
    generator = np.random.default_rng(0)
    losses, costs = generator.exponential(size=(6, 400)), generator.integers(0, 10**6, (6, 400))
    with pytest.raises(RequestError, match="no proven optimum in 0 seconds"):
        Ilp().choose(losses, costs, int(costs.min(0).sum() * 1.5))


@pytest.mark.parametrize("bits", [3.4, 7.4, 9.1])
def test_candidates_a_million_times_worse_do_not_blunt_the_solver(bits):
    generator = np.random.default_rng(3)
    widths = np.array([1, 2, 3, 4, 5, 6, 8, 10])
    sizes = generator.integers(10**5, 10**7, 60)
    losses = np.exp(3 * generator.normal(size=60)) * 4.0 ** -widths[:, None]
    losses[0] *= 1e6
    costs = widths[:, None] * sizes
    budget = int(bits * sizes.sum())
    choices = [one.choose(losses, costs, budget) for one in (Ilp(), Lagrange())]
    assert total(costs, choices[0]) <= budget
    assert total(losses, choices[0]) <= total(losses, choices[1])


def test_a_budget_just_above_the_cheapest_is_met_to_the_byte():
    for seed in range(10):
        generator = np.random.default_rng(seed)
        costs = np.sort(generator.integers(10**7, 10**8, (4, 40)), 0)
        losses = np.exp(generator.normal(size=40)) * 4.0 ** -np.arange(4)[:, None]
        budget = int(costs[0].sum()) + int(generator.integers(0, 400))
        assert total(costs, Ilp().choose(losses, costs, budget)) <= budget
