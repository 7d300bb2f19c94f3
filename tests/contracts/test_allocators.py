"""What every allocator promises, checked the day its file appears."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laq.allocation import ALLOCATORS, Allocator
from laq.core.formats import CANDIDATES, Integer
from laq.core.scheme import ScaleFormat, Scheme

NAMES = ALLOCATORS.names()
INTEGERS = [candidate for candidate in CANDIDATES if isinstance(candidate, Integer)]
TILE_BYTES = np.array([Scheme(c, 64, ScaleFormat.LOG8).tile_bytes for c in INTEGERS], np.int64)


@st.composite
def problems(draw):
    """Losses that need not fall, some not allowed (never the widest); costs by size of unit; any budget."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    n_units = draw(st.integers(1, 30))
    scale = 10.0 ** generator.uniform(-12, 3, n_units)
    steepness = draw(st.sampled_from([0.0, 1.0, 2.0]))
    losses = scale * generator.exponential(size=(len(INTEGERS), n_units))
    losses *= np.exp2(-steepness * np.arange(len(INTEGERS)))[:, None]
    losses[:-1][generator.random((len(INTEGERS) - 1, n_units)) < draw(st.sampled_from([0.0, 0.3]))] = np.inf
    if draw(st.booleans()):
        losses[generator.random(losses.shape) < 0.2] = 0.0
    sizes = generator.integers(1, draw(st.sampled_from([2, 1000])), n_units)
    costs = TILE_BYTES[:, None] * sizes
    smallest = int(np.where(np.isfinite(losses), costs, 1 << 60).min(0).sum())
    budget = smallest + int(draw(st.floats(0, 1.2)) * (costs[-1].sum() - smallest))
    order = generator.permutation(len(INTEGERS))  # candidates do not come by rising cost
    return losses[order], costs[order], budget


def chosen(matrix, choice):
    return matrix[choice, np.arange(len(choice))]


@pytest.mark.parametrize("name", NAMES)
@given(problem=problems())
def test_never_over_budget_and_never_a_format_that_is_not_allowed(name, problem):
    losses, costs, budget = problem
    choice = ALLOCATORS.get(name)().choose(losses, costs, budget)
    assert choice.shape == (costs.shape[1],)
    assert chosen(costs, choice).sum() <= budget
    assert np.isfinite(chosen(losses, choice)).all()


@pytest.mark.parametrize("name", NAMES)
@given(problem=problems())
def test_same_problem_same_choice_and_arguments_are_left_alone(name, problem):
    losses, costs, budget = problem
    before = losses.copy(), costs.copy()
    first, second = (ALLOCATORS.get(name)().choose(losses, costs, budget) for _ in range(2))
    assert np.array_equal(first, second)
    assert np.array_equal(before[0], losses)
    assert np.array_equal(before[1], costs)


@pytest.mark.parametrize("name", NAMES)
def test_budget_for_the_cheapest_is_met_exactly(name):
    costs = np.repeat(TILE_BYTES[:, None], 5, 1)
    losses = np.exp2(-np.arange(9.0))[:, None] * np.ones(5)
    losses[:3] = np.inf
    choice = ALLOCATORS.get(name)().choose(losses, costs, int(costs[3].sum()))
    assert choice.tolist() == [3] * 5


@pytest.mark.parametrize("name", NAMES)
def test_room_for_the_widest_everywhere_is_used(name):
    costs = np.repeat(TILE_BYTES[:, None], 7, 1)
    losses = np.exp2(-np.arange(9.0))[:, None] * np.ones(7)
    choice = ALLOCATORS.get(name)().choose(losses, costs, int(costs[-1].sum()))
    assert choice.tolist() == [8] * 7


@pytest.mark.parametrize("name", NAMES)
def test_every_allocator_says_what_it_is(name):
    method = ALLOCATORS.get(name)
    assert issubclass(method, Allocator)
    assert method.status in ("stable", "experimental")
    assert method.summary


@pytest.mark.parametrize("name", NAMES)
def test_smallest_problems_hold_to_the_contract(name):
    """The smallest problems: three formats, two units, every order of losses, every other budget."""
    allocator, costs = ALLOCATORS.get(name)(), np.array([[0, 0], [2, 3], [5, 5]], np.int64)
    for values in itertools.product([0.0, 1.0, np.inf], repeat=4):
        losses = np.array([values[:2], values[2:], [0.5, 0.5]])
        smallest = int(np.where(np.isfinite(losses), costs, 99).min(0).sum())
        for budget in range(smallest, 12, 2):
            choice = allocator.choose(losses, costs, budget)
            assert chosen(costs, choice).sum() <= budget
            assert np.isfinite(chosen(losses, choice)).all()
