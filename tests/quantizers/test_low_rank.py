"""Corrections are the best of their rank in their metric, and adding rank never costs."""

import numpy as np
import pytest
import torch

from laq.core.importance import Importance
from laq.core.low_rank import LowRank
from laq.quantizers.common.low_rank import (
    first_correction,
    hessian_root,
    last_correction,
    minus,
    weighted_error,
)

SHAPE = (24, 40)


def importance(seed=0, shape=SHAPE):
    generator = np.random.default_rng(seed)
    inputs = generator.standard_normal((400, shape[1])) @ generator.standard_normal((shape[1], shape[1]))
    hessian = (inputs.T @ inputs / 400).astype(np.float32)
    rows = generator.uniform(0.1, 10, shape[0]).astype(np.float32)
    return Importance(hessian, rows, np.full(shape[0], 1e6), np.full(shape[1], 1e6))


def matrix(seed=0, shape=SHAPE):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def priced(error, importance, column_weights):
    rows = torch.from_numpy(importance.rows)
    return float((rows[:, None] * error.square() * column_weights).sum())


def test_no_product_of_rank_one_is_better_than_the_first_one():
    shape = (3, 4)
    weight, found, columns = matrix(shape=shape), importance(shape=shape), torch.tensor([1.0, 4.0, 0.5, 2.0])
    best = priced(minus(weight, first_correction(weight, found, columns, rank=1)), found, columns)
    angles = np.linspace(0, np.pi, 61)
    directions = [
        (np.cos(a), np.sin(a) * np.cos(b), np.sin(a) * np.sin(b)) for a in angles for b in 2 * angles
    ]
    rows = torch.from_numpy(found.rows)
    least = np.inf
    for direction in torch.tensor(directions, dtype=torch.float32):  # every a; the best b is a mean
        b = (rows * direction) @ weight / (rows * direction.square()).sum()
        least = min(least, priced(weight - torch.outer(direction, b), found, columns))
    assert best == pytest.approx(least, rel=0.01)
    assert best < least * 1.002  # 8 bits cost next to nothing


def test_the_last_correction_is_the_best_in_the_loss_itself():
    error, found = matrix(1), importance(1)
    nothing = LowRank(np.zeros((4, sum(SHAPE)), np.int8), np.ones(4, np.float16))
    root = hessian_root(found.hessian)
    left = weighted_error(error, found, last_correction(error, found, nothing, root=root))
    weighted = torch.from_numpy(found.rows).sqrt()[:, None] * (error @ root.float())
    singular = torch.linalg.svdvals(weighted)
    assert left == pytest.approx(0.5 * float(singular[4:].square().sum()), rel=0.03)


@pytest.mark.parametrize("seed", range(4))
def test_more_rank_never_leaves_more(seed):
    weight, found = matrix(seed), importance(seed)
    columns = torch.linspace(5, 0.1, SHAPE[1])
    widest = first_correction(weight, found, columns, rank=10)
    losses = [priced(minus(weight, widest.truncated(rank)), found, columns) for rank in range(11)]
    assert (np.diff(losses) < 0).all()


def test_a_first_correction_that_fits_better_is_kept():
    found = importance()
    exact = first_correction(matrix(), found, torch.ones(SHAPE[1]), rank=2)
    error = torch.from_numpy(exact.dequantize(*SHAPE))
    assert last_correction(error, found, exact, root=hessian_root(found.hessian)) is exact


def test_rows_and_columns_without_importance_leave_numbers():
    found = importance()
    blind = Importance(found.hessian, found.rows * 0, found.row_support, found.column_support)
    correction = first_correction(matrix(), blind, torch.zeros(SHAPE[1]), rank=3)
    assert np.isfinite(correction.dequantize(*SHAPE)).all()


def test_the_same_weight_has_the_same_correction():
    first, second = (first_correction(matrix(), importance(), torch.ones(SHAPE[1]), rank=3) for _ in range(2))
    assert np.array_equal(first.factors, second.factors)
    assert np.array_equal(first.scales, second.scales)
