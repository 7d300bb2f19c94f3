"""Which weights are outliers: those furthest beyond their group, which stretch its scale for all others.

What a group loses grows with the mean of w^2, and a plan gives tiles bits until one more buys the same
everywhere. So what counts is by what share the group's own loss falls, however important it is: scores
weighted by importance save fewer bytes (bench/NOTES.md).
"""

from __future__ import annotations

import numpy as np
import torch

from laq.core.outliers import NOTHING, Outliers
from laq.core.permutation import IndexArray

REACH = 2.0**NOTHING / 2
"""How far below the largest weight an outlier may be: smaller ones could not be told from zero."""


def outlier_scores(weight: torch.Tensor, *, group_size: int, columns: IndexArray | None) -> torch.Tensor:
    """Return w^2 over its mean in the group, zero beyond `REACH`; float32 [n_rows, n_columns].

    In the source's order.

    Parameters
    ----------
    weight : float32 [n_rows, n_columns]
        In the source's order.
    group_size : int
        Columns of a group.
    columns : uint16 or uint32 [n_columns], or None
        The order in which they follow each other.
    """
    squared, n_columns = weight.float().square(), weight.shape[1]
    group = torch.arange(n_columns) // group_size
    if columns is not None:
        ordered, group = group, torch.empty_like(group)
        group[torch.from_numpy(columns.astype(np.int64))] = ordered
    counts = torch.bincount(group)
    means = torch.zeros(len(weight), len(counts)).index_add_(1, group, squared) / counts
    scores = squared / means.clamp(min=1e-30)[:, group]
    return torch.where(squared * REACH**2 >= squared.amax(), scores, 0)


def first_outliers(weight: torch.Tensor, scores: torch.Tensor, n: int) -> Outliers:
    """Return the `n` weights of highest score."""
    positions = scores.flatten().topk(n).indices.sort().values
    values = weight.float().flatten()[positions]
    return Outliers.of(positions.numpy(), values.numpy(), weight.numel())
