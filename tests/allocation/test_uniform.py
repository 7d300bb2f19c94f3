"""The baseline knows no unit's loss: one format everywhere, left-over bytes spread evenly."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from laq.allocation.uniform import Uniform

COSTS = np.repeat(np.array([0, 10, 20, 20, 40, 80], np.int64)[:, None], 20, 1)


@given(seed=st.integers(0, 2**32), budget=st.integers(0, 2000))
def test_only_the_sum_of_losses_matters(seed, budget):
    generator = np.random.default_rng(seed)
    one = generator.exponential(size=COSTS.shape)
    other = generator.permuted(one, axis=1)
    assert np.array_equal(Uniform().choose(one, COSTS, budget), Uniform().choose(other, COSTS, budget))


@given(budget=st.integers(0, 1600))
def test_at_most_two_neighbouring_formats_are_used_and_bytes_are_spent(budget):
    choice = Uniform().choose(np.zeros(COSTS.shape), COSTS, budget)
    assert np.ptp(choice) <= 1
    left = budget - int(COSTS[choice, np.arange(20)].sum())
    assert left >= 0
    raised = min(int(choice.min()) + 1, 5)
    assert left < max(int(COSTS[raised, 0] - COSTS[raised - 1, 0]), 1) or choice.min() == 5


def test_wider_units_are_spread_evenly():
    choice = Uniform().choose(np.zeros(COSTS.shape), COSTS, 20 * 20 + 10 * 20)
    assert sorted(choice.tolist()) == [3] * 10 + [4] * 10
    assert 4 <= int((choice[:10] == 4).sum()) <= 6


def test_formats_that_some_unit_may_not_take_are_skipped():
    losses = np.zeros(COSTS.shape)
    losses[1, 7] = np.inf
    assert set(Uniform().choose(losses, COSTS, 20 * 10).tolist()) == {0, 2}


def test_a_format_that_another_beats_at_fewer_bytes_is_left_out():
    losses = np.array([9, 5, 1, 2, 3, 0.5])[:, None] * np.ones(20)
    choice = Uniform().choose(losses, COSTS, 20 * 60)
    assert set(choice.tolist()) == {2, 5}
