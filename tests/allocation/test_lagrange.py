"""One price per byte is optimal where it should be, and close to optimal everywhere."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laq.allocation.lagrange import Lagrange


def brute_force(losses, costs, budget):
    """Least total loss within the budget."""
    n_candidates, n_units = losses.shape
    best = np.inf
    for choice in itertools.product(range(n_candidates), repeat=n_units):
        index = (list(choice), range(n_units))
        if costs[index].sum() <= budget:
            best = min(best, float(losses[index].sum()))
    return best


def total(matrix, choice):
    return float(matrix[choice, np.arange(len(choice))].sum())


def convex_problem(seed, n_units=4):
    """Falling convex losses over evenly rising costs."""
    generator = np.random.default_rng(seed)
    gains = -np.sort(-generator.exponential(size=(4, n_units)), axis=0) * 10.0 ** generator.uniform(
        -2, 2, n_units
    )
    losses = np.concatenate([gains[::-1].cumsum(0)[::-1], np.zeros((1, n_units))])
    return losses, np.arange(5)[:, None] * np.full(n_units, 7, np.int64)


@given(seed=st.integers(0, 2**32), steps=st.integers(0, 16))
def test_convex_curves_of_equal_steps_are_solved_exactly(seed, steps):
    losses, costs = convex_problem(seed)
    choice = Lagrange().choose(losses, costs, 7 * steps)
    assert total(losses, choice) == pytest.approx(brute_force(losses, costs, 7 * steps), rel=1e-9, abs=1e-12)


@given(seed=st.integers(0, 2**32), price=st.floats(1e-3, 1e3))
def test_budgets_that_a_price_meets_are_solved_exactly(seed, price):
    generator = np.random.default_rng(seed)
    losses = generator.exponential(size=(4, 4)) * 10.0 ** generator.uniform(-2, 2, 4)
    costs = np.sort(generator.integers(1, 50, (4, 4)), axis=0)
    budget = int(total(costs, (losses + price * costs).argmin(0)))
    choice = Lagrange().choose(losses, costs, budget)
    assert total(losses, choice) == pytest.approx(brute_force(losses, costs, budget), rel=1e-9, abs=1e-12)


@given(seed=st.integers(0, 2**32), share=st.floats(0, 1))
def test_gap_to_the_optimum_is_at_most_one_unit(seed, share):
    generator = np.random.default_rng(seed)
    losses = generator.exponential(size=(4, 5)) * np.exp2(-2 * np.arange(4))[:, None]
    costs = np.sort(generator.integers(1, 50, (4, 5)), axis=0)
    smallest, largest = int(costs.min(0).sum()), int(costs.max(0).sum())
    budget = smallest + int(share * (largest - smallest))
    choice = Lagrange().choose(losses, costs, budget)
    gap = total(losses, choice) - brute_force(losses, costs, budget)
    assert gap >= -1e-12
    assert gap <= float(np.ptp(losses, axis=0).max()) + 1e-12


def test_many_units_come_within_a_thousandth_of_the_lower_bound():
    generator = np.random.default_rng(0)
    sensitivity = 10.0 ** generator.normal(size=2000)
    losses = sensitivity * np.exp2(-2.0 * np.arange(1, 9))[:, None]
    costs = np.arange(1, 9)[:, None] * np.full(2000, 128, np.int64)
    budget = 4 * 128 * 2000 + 61
    choice = Lagrange().choose(losses, costs, budget)
    # any price bounds the optimum from below: sum of least loss + price x bytes, less price x budget
    bounds = [(losses + price * costs).min(0).sum() - price * budget for price in np.geomspace(1e-9, 1, 400)]
    assert total(losses, choice) <= 1.001 * max(bounds)
    assert budget - total(costs, choice) < 128


def test_more_bytes_never_lose():
    losses, costs = convex_problem(3, n_units=8)
    found = [total(losses, Lagrange().choose(losses, costs, budget)) for budget in range(7 * 32 + 1)]
    assert found == sorted(found, reverse=True)
    assert found[-1] == 0


def test_sensitive_units_get_more():
    sensitivity = np.array([100.0, 1.0, 0.01])
    losses = sensitivity * np.exp2(-2.0 * np.arange(9))[:, None]
    costs = np.arange(9)[:, None] * np.ones(3, np.int64)
    choice = Lagrange().choose(losses, costs, 12)
    assert choice.tolist() == sorted(choice.tolist(), reverse=True)
    assert choice[0] > choice[2]
    assert choice.sum() == 12


def test_losses_of_zero_take_the_cheapest():
    costs = np.arange(1, 5)[:, None] * np.ones(3, np.int64)
    assert Lagrange().choose(np.zeros((4, 3)), costs, 12).tolist() == [0, 0, 0]
