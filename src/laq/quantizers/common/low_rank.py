"""Corrections of low rank: what of a weight a few products hold, so that its tiles need not.

Both steps are the best of their rank in their metric (Eckart and Young). The first uses the one by which
curves price a rounding error, G_i times the mean of c_j over a group, whose columns share the size of their
errors: so least is left for the tiles. The second, once the tiles are rounded, uses the loss itself, with all
of H.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from laq.core.correction import Correction
from laq.core.importance import Importance
from laq.core.low_rank import LowRank
from laq.core.permutation import IndexArray
from laq.quantizers.common.sorting import in_source_order

DAMPING = 0.01
"""Share of the mean diagonal that is added to H, as in gptq: it has a root whatever the tokens were."""

LEAST = 1e-6
"""Of the mean importance: rows and columns below it count as much."""


def group_costs(
    column_weights: torch.Tensor, group_size: int, n_columns: int, columns: IndexArray | None
) -> torch.Tensor:
    """Return what the errors of a column's group cost on average; float32 [n_columns] in the source's order.

    column_weights : float32 [padded_columns], in the order of tiles, as a quantizer prepared them
    """
    means = column_weights.view(-1, group_size).mean(1).repeat_interleave(group_size)
    return in_source_order(means, n_columns, columns)


def first_correction(
    weight: torch.Tensor, importance: Importance, costs: torch.Tensor, *, rank: int
) -> LowRank:
    """Return what is taken from a weight before its tiles are rounded.

    Parameters
    ----------
    weight : float32 [n_rows, n_columns]
        In the source's order.
    importance : Importance
        Its rows are the metric of rows.
    costs : float32 [n_columns]
        See `group_costs`.
    rank : int
        Number of products.
    """
    rows, columns = _row_root(importance), _at_least(costs).sqrt().double()
    left, right = _truncated(rows * weight.double() * columns, rank)
    return _rounded(left / rows, right / columns)


def last_correction(
    error: torch.Tensor, importance: Importance, first: LowRank, *, root: torch.Tensor
) -> LowRank:
    """Return the correction of rounded tiles: the best of the same rank for them, if rounding leaves it so.

    Parameters
    ----------
    error : float32 [n_rows, n_columns]
        The weight less its rounded tiles.
    importance : Importance
        What an error costs.
    first : LowRank
        What was taken from the weight before.
    root : float64 [n_columns, n_columns]
        See `hessian_root`.
    """
    rows = _row_root(importance)
    left, right = _truncated(rows * (error.double() @ root), first.rank)
    columns = torch.linalg.solve_triangular(root, right, upper=False, left=False)
    again = _rounded(left / rows, columns)
    losses = [weighted_error(error, importance, each) for each in (first, again)]
    return again if losses[1] < losses[0] else first


def minus(matrix: torch.Tensor, correction: Correction) -> torch.Tensor:
    """Return what a correction leaves of a matrix; float32 [n_rows, n_columns]."""
    return matrix.float() - torch.from_numpy(correction.dequantize(*matrix.shape))


def weighted_error(error: torch.Tensor, importance: Importance, low_rank: LowRank) -> float:
    """Return the loss of what a correction leaves of an error, in nats per token."""
    left = minus(error, low_rank)
    by_row = ((left @ torch.from_numpy(importance.hessian)) * left).sum(1)
    return 0.5 * float(torch.from_numpy(importance.rows) @ by_row)


def hessian_root(hessian: npt.NDArray[np.float32]) -> torch.Tensor:
    """Return the lower Cholesky factor L of the damped hessian, L L' = H; float64 [n, n]."""
    damped = torch.from_numpy(hessian).double()
    damped = damped + torch.eye(len(damped)) * (DAMPING * damped.diagonal().mean().clamp(min=1e-30))
    root: torch.Tensor = torch.linalg.cholesky(damped)
    return root


def _truncated(matrix: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the best factors of a rank, [n_rows, rank] and [rank, n_columns]; strongest product first."""
    is_tall = len(matrix) > matrix.shape[1]
    gram = matrix.T @ matrix if is_tall else matrix @ matrix.T
    leading = torch.linalg.eigh(gram).eigenvectors[:, -rank:].flip(1)
    return (matrix @ leading, leading.T.contiguous()) if is_tall else (leading, leading.T @ matrix)


def _rounded(rows: torch.Tensor, columns: torch.Tensor) -> LowRank:
    return LowRank.of(rows.float().numpy(), columns.float().numpy())


def _row_root(importance: Importance) -> torch.Tensor:
    """Return G^(1/2) as a column; float64 [n_rows, 1]."""
    return _at_least(torch.from_numpy(importance.rows)).sqrt().double()[:, None]


def _at_least(values: torch.Tensor) -> torch.Tensor:
    return values.clamp(min=max(LEAST * float(values.mean()), 1e-30))
