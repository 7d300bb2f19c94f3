"""What is taken from a weight before its tiles are rounded, whatever kind of correction it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from laq.core.correction import Amount, Correction, Kind
from laq.core.importance import Importance
from laq.core.permutation import IndexArray
from laq.quantizers.common.low_rank import first_correction, group_costs
from laq.quantizers.common.outliers import first_outliers, outlier_scores


@dataclass(frozen=True, slots=True)
class Corrected:
    """A weight as corrections look at it.

    Parameters
    ----------
    values : float32 [n_rows, n_columns]
        In the source's order.
    importance : Importance
        What its errors cost.
    column_weights : float32 [padded_columns]
        What a quantizer says of its columns, in the order of tiles.
    group_size : int
        Columns that share a scale.
    columns : uint16 or uint32 [n_columns], or None
        The order of columns.
    """

    values: torch.Tensor
    importance: Importance
    column_weights: torch.Tensor
    group_size: int
    columns: IndexArray | None


def first_corrections(subject: Corrected, amounts: Sequence[Amount]) -> list[Correction]:
    """Return corrections of several amounts; those of one kind share the work, and agree with each alone."""
    values = subject.values
    ranks = [amount.n for amount in amounts if amount.kind is Kind.RANK]
    found: dict[Amount, Correction] = {}
    if ranks:
        costs = group_costs(subject.column_weights, subject.group_size, values.shape[1], subject.columns)
        widest = first_correction(values, subject.importance, costs, rank=max(ranks))
        found |= {Amount(Kind.RANK, rank): widest.truncated(rank) for rank in ranks}
    of_outliers = [amount for amount in amounts if amount.kind is Kind.OUTLIERS]
    if of_outliers:
        scores = outlier_scores(values, group_size=subject.group_size, columns=subject.columns)
        found |= {amount: first_outliers(values, scores, amount.n) for amount in of_outliers}
    return [found[amount] for amount in amounts]
