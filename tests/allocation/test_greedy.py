"""Greedy buys the best gain per byte first."""

import numpy as np

from laq.allocation.greedy import Greedy


def test_the_best_gain_per_byte_is_bought_first():
    costs = np.array([[0, 0], [10, 10]])
    losses = np.array([[5.0, 3.0], [0.0, 0.0]])
    assert Greedy().choose(losses, costs, 10).tolist() == [1, 0]
    assert Greedy().choose(losses, costs, 20).tolist() == [1, 1]


def test_what_does_not_fit_is_passed_over_for_what_does():
    costs = np.array([[0, 0], [30, 10]])
    losses = np.array([[90.0, 3.0], [0.0, 0.0]])
    assert Greedy().choose(losses, costs, 20).tolist() == [0, 1]


def test_a_poor_step_before_a_good_one_is_jumped_over():
    costs = np.array([[0], [10], [20]])
    losses = np.array([[8.0], [7.9], [0.0]])
    assert Greedy().choose(losses, costs, 20).tolist() == [2]


def test_the_best_step_alone_may_lose_which_is_why_this_is_a_baseline():
    """The better rate is taken first and leaves no room for the larger gain."""
    costs = np.array([[0, 0], [10, 30]])
    losses = np.array([[5.0, 9.0], [0.0, 0.0]])
    assert Greedy().choose(losses, costs, 30).tolist() == [1, 0]


def test_of_equally_cheap_candidates_the_best_is_taken():
    assert Greedy().choose(np.array([[5.0], [1.0]]), np.array([[10], [10]]), 10).tolist() == [1]
