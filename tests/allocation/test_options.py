"""Ranks are chosen where their bytes buy more than tiles would, and are counted."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laq.allocation.common import allocate, size_range
from laq.core.correction import Amount, Kind
from laq.core.curve import Curves, WeightCurves
from laq.core.formats import CANDIDATES
from laq.core.groups import TileGrid
from laq.core.scheme import ScaleFormat
from laq.core.target import Unit
from laq.io.archive import correction_bytes

SHAPE = (512, 640)
LEVELS = np.array([candidate.n_levels for candidate in CANDIDATES], float)


def curves_of(factors, *, seed=0):
    """Weights whose loss falls to `factors[rank]` of what it is without a correction."""
    generator, grid = np.random.default_rng(seed), TileGrid(*SHAPE, 64)
    weights, alternatives = [], []
    for index, by_rank in enumerate(factors):
        losses = 10.0 ** generator.normal(-4, 1, (grid.n_row_blocks, grid.n_groups))
        plain = (losses / LEVELS[:, None, None] ** 2).astype(np.float32)
        weights.append(WeightCurves(f"w{index}", grid, plain, None, ""))
        for rank, factor in by_rank.items():
            scaled = (plain * factor).astype(np.float32)
            alternatives.append(WeightCurves(f"w{index}", grid, scaled, None, "", Amount(Kind.RANK, rank)))
    n = len(factors) * SHAPE[0] * SHAPE[1]
    whole = Curves(tuple(weights), {}, ScaleFormat.LOG8, "rtn", 5000, 4 * n, n, "s", "d")
    return replace(whole, alternatives=tuple(alternatives), low_rank="auto")


def budget_of(curves, bpw):
    return max(int(bpw * curves.n_params / 8), size_range(curves, unit=Unit.TILE, floor=True)[0])


@pytest.mark.parametrize("unit", Unit)
def test_a_correction_that_halves_the_loss_is_taken_and_one_that_does_nothing_is_not(unit):
    curves = curves_of([{4: 0.5}, {4: 1.0}, {4: 2.0}])
    plan = allocate(curves, budget_of(curves, 3.5), unit=unit)
    assert [weight.amount for weight in plan.weights] == [Amount(Kind.RANK, 4), None, None]
    assert plan.size_bytes <= plan.budget_bytes


@given(
    seed=st.integers(0, 100), bpw=st.floats(2.2, 6), gains=st.lists(st.floats(0.7, 1), min_size=4, max_size=4)
)
def test_choosing_never_predicts_more_than_going_without(seed, bpw, gains):
    first, second, third, fourth = gains
    curves = curves_of([{1: first, 4: first * second}, {2: third, 8: third * fourth}], seed=seed)
    budget = budget_of(curves, bpw)
    chosen, without = (allocate(one, budget) for one in (curves, replace(curves, alternatives=())))
    assert chosen.predicted_loss_nats <= without.predicted_loss_nats * 1.001
    assert chosen.size_bytes <= budget


def test_the_choice_is_near_the_best_of_all_combinations():
    curves = curves_of([{1: 0.97, 4: 0.93}, {1: 0.99, 4: 0.8}, {1: 0.95, 4: 0.94}])
    budget = budget_of(curves, 3.2)
    found = allocate(curves, budget).predicted_loss_nats
    options = {w.name: [w, *(a for a in curves.alternatives if a.name == w.name)] for w in curves.weights}
    every = [
        allocate(replace(curves, weights=combination, alternatives=()), budget).predicted_loss_nats
        for combination in product(*options.values())
    ]
    assert len(every) == 27
    assert found <= min(every) * 1.002


def test_the_bytes_of_a_correction_are_those_of_its_sections_and_headers():
    (curves,) = [curves_of([{4: 0.1}])]
    plan = allocate(curves, budget_of(curves, 3.5))
    bare = replace(plan.weights[0], amount=None)
    log = ScaleFormat.LOG8
    data = plan.weights[0].size_bytes(log) - bare.size_bytes(log)
    assert data == 4 * (sum(SHAPE) + 2)
    assert data < correction_bytes("w0", SHAPE, Amount(Kind.RANK, 4)) < data + 250
    assert plan.size_bytes == 5000 + 64 + bare.size_bytes(log) + correction_bytes(
        "w0", SHAPE, Amount(Kind.RANK, 4)
    )


def test_a_cheaper_budget_takes_less_rank():
    curves = curves_of([{1: 0.9, 16: 0.5}])
    amounts = [allocate(curves, budget_of(curves, bpw)).weights[0].amount for bpw in (2.2, 4, 8)]
    ranks = [amount.n if amount else 0 for amount in amounts]
    assert ranks == sorted(ranks)
