"""Outliers are what stretches a group's scale, in the order of its columns."""

import numpy as np
import pytest
import torch

from laq.core.correction import Amount, Kind
from laq.core.importance import Importance
from laq.core.outliers import Outliers
from laq.quantizers.common.correction import Corrected, first_corrections
from laq.quantizers.common.low_rank import minus
from laq.quantizers.common.outliers import first_outliers, outlier_scores

SHAPE = (48, 200)


def heavy(seed=0, n=30):
    """Normal values of unlike rows, some far beyond the others of their row, and where those are."""
    generator = np.random.default_rng(seed)
    matrix = generator.standard_normal(SHAPE)
    places = np.sort(generator.choice(matrix.size, n, replace=False))
    matrix.ravel()[places] = generator.choice([-12, 12], n)
    matrix *= 10.0 ** generator.uniform(-0.8, 0.8, (SHAPE[0], 1))
    return torch.from_numpy(matrix.astype(np.float32)), places


def test_what_is_far_beyond_its_group_is_taken_whatever_its_size():
    matrix, places = heavy()
    scores = outlier_scores(matrix, group_size=64, columns=None)
    positions, _ = first_outliers(matrix, scores, len(places)).elements()
    assert len(np.intersect1d(positions, places)) >= len(places) - 3


def test_groups_follow_the_order_of_columns():
    matrix = torch.ones(1, 128)
    matrix[:, ::2] = 30  # in an order of their own each group is even
    order = np.r_[np.arange(0, 128, 2), np.arange(1, 128, 2)].astype(np.uint16)
    assert torch.allclose(outlier_scores(matrix, group_size=64, columns=order), torch.ones(1, 128))
    mixed = outlier_scores(matrix, group_size=64, columns=None)
    assert mixed[0, 0] == pytest.approx(900 / 450.5)


def test_a_padded_group_is_not_thought_smaller():
    scores = outlier_scores(torch.ones(2, 70), group_size=64, columns=None)
    assert torch.allclose(scores, torch.ones(2, 70))


@pytest.mark.parametrize("seed", range(3))
def test_what_is_left_of_a_weight_has_a_smaller_range_in_its_groups(seed):
    matrix, places = heavy(seed)
    outliers = first_outliers(matrix, outlier_scores(matrix, group_size=64, columns=None), len(places))
    left = minus(matrix, outliers)
    assert outlier_scores(left, group_size=64, columns=None).max() < 25
    assert outlier_scores(matrix, group_size=64, columns=None).max() > 40


def test_several_amounts_are_what_each_is_alone():
    matrix, _ = heavy()
    generator = np.random.default_rng(0)
    rows, support = generator.uniform(1, 2, SHAPE[0]).astype(np.float32), np.full(SHAPE[1], 1e6)
    importance = Importance(np.eye(SHAPE[1], dtype=np.float32), rows, support[: SHAPE[0]], support)
    subject = Corrected(matrix, importance, torch.ones(256), 64, None)
    amounts = [
        Amount(Kind.OUTLIERS, 30),
        Amount(Kind.RANK, 1),
        Amount(Kind.OUTLIERS, 7),
        Amount(Kind.RANK, 3),
    ]
    for amount, found in zip(amounts, first_corrections(subject, amounts), strict=True):
        (alone,) = first_corrections(subject, [amount])
        assert isinstance(found, Outliers) == (amount.kind is Kind.OUTLIERS)
        assert np.allclose(found.dequantize(*SHAPE), alone.dequantize(*SHAPE), rtol=1e-5, atol=1e-6)


def test_what_cannot_be_told_from_zero_is_not_taken():
    matrix = torch.full((2, 64), 1e-3)
    matrix[0, 5] = 0.1  # far beyond its group, and far below the largest
    matrix[1] = torch.linspace(5, 10, 64)
    scores = outlier_scores(matrix, group_size=64, columns=None)
    assert scores[0].max() == 0
    assert scores[1].min() > 0
