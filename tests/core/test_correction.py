"""Which corrections a weight is measured with, and what files may say of them."""

import pytest

from laq.core.correction import Amount, Kind, amount_from_json, amounts_for, check_corrections
from laq.core.errors import RequestError

RANK_8, OUTLIERS = Amount(Kind.RANK, 8), Amount(Kind.OUTLIERS, 32)


def amounts(ranks=(0,), shares=(0,), *, kind="linear", shape=(32, 500)):
    return amounts_for(ranks, shares, kind=kind, shape=shape)


def test_small_weights_and_embeddings_have_none():
    assert amounts((8,)) == (RANK_8,)
    assert amounts((8,), shape=(31, 500)) == (None,)
    assert amounts((8,), kind="embedding", shape=(500, 500)) == (None,)
    assert amounts(shares=(0.002,)) == (OUTLIERS,)
    assert amounts(shares=(0.002,), shape=(4, 50)) == (None,)
    assert amounts(shares=(0.002,), kind="tied") == (None,)


def test_going_without_comes_first_and_nothing_twice():
    assert amounts((0, 8), (0, 0.002, 0.00201)) == (None, RANK_8, OUTLIERS)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, None),
        ({"name": "w", "rank": 8}, RANK_8),
        ({"outliers": 32}, OUTLIERS),
        ({"outliers": 16000}, Amount(Kind.OUTLIERS, 16000)),
    ],
)
def test_amounts_are_read_as_they_are_written(fields, expected):
    assert amount_from_json(fields, (32, 500)) == expected
    assert expected is None or amount_from_json(expected.to_json(), (32, 500)) == expected


@pytest.mark.parametrize(
    "fields",
    [
        {"rank": 33},
        {"rank": 0},
        {"rank": True},
        {"rank": "2"},
        {"outliers": 16001},
        {"outliers": -1},
        {"outliers": 1.0},
        {"rank": 2, "outliers": 3},
    ],
)
def test_amounts_that_no_such_weight_has_are_refused(fields):
    with pytest.raises(ValueError, match=r"rank|outliers|two corrections"):
        amount_from_json(fields, (32, 500))


@pytest.mark.parametrize(
    ("low_rank", "outliers", "any_at_all"),
    [(0, 0, False), ("0", "0.0", False), (2, 0, True), (0, 0.002, True), ("auto", "auto", True)],
)
def test_corrections_that_go_together(low_rank, outliers, any_at_all):
    assert check_corrections(low_rank, outliers) == any_at_all


@pytest.mark.parametrize(("low_rank", "outliers"), [(2, 0.002), ("auto", 0.002), (2, "auto")])
def test_two_corrections_of_one_weight_are_refused(low_rank, outliers):
    with pytest.raises(
        RequestError, match="beside the same tiles\nhint: choose one of them, or auto for both"
    ):
        check_corrections(low_rank, outliers)
