"""Matrices in the order of their tiles: rows and columns by falling importance, padded."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from laq.core.groups import TileGrid
from laq.core.importance import Importance
from laq.core.permutation import IndexArray, descending

SORTED_ROWS = 256
"""Rows permuted at a time: they stay in the second-level cache between the steps."""


@dataclass(frozen=True, slots=True)
class SortedWeight:
    """A weight in the order of its tiles, columns first, padded with zeros; and what its errors cost.

    Parameters
    ----------
    grid : TileGrid
        Shape and group size.
    matrix : float32 [padded_columns, padded_rows]
        The weight.
    hessian : float32 [padded_columns, padded_columns]
        Second moments in the same order; padding columns have the mean diagonal.
    rows : float32 [padded_rows]
        Row importance, zero for padding.
    row_permutation : uint16 or uint32 [n_rows], or None
        Source row of each sorted row.
    """

    grid: TileGrid
    matrix: torch.Tensor
    hessian: torch.Tensor
    rows: torch.Tensor
    row_permutation: IndexArray | None

    def real_rows(self) -> torch.Tensor:
        """Return one for every row, zero for padding; float32 [padded_rows]."""
        return (torch.arange(self.grid.padded_rows) < self.grid.n_rows).float()


def column_order(importance: Importance) -> IndexArray:
    """Return columns by falling second moment of their input; [n_columns]."""
    return descending(np.diagonal(importance.hessian))


def row_order(weight: torch.Tensor, importance: Importance) -> IndexArray:
    """Return rows by falling weighted energy G_i sum_j H_jj w_ij^2; weight is [n_rows, n_columns]."""
    diagonal = torch.from_numpy(np.ascontiguousarray(np.diagonal(importance.hessian)))
    energy = weight.float().square() @ diagonal
    return descending(importance.rows * energy.numpy())


def sort_weight(
    weight: torch.Tensor,
    importance: Importance,
    grid: TileGrid,
    *,
    hessian: torch.Tensor,
    rows: IndexArray | None,
    columns: IndexArray | None,
) -> SortedWeight:
    """Permute and pad a weight [n_rows, n_columns] and its importance; `hessian` is sorted already."""
    row_index, column_index = _index(grid.n_rows, rows), _index(grid.n_columns, columns)
    matrix = torch.zeros(grid.padded_columns, grid.padded_rows)
    for start in range(0, grid.n_rows, SORTED_ROWS):
        stop = min(start + SORTED_ROWS, grid.n_rows)
        columns_first = weight[row_index[start:stop]].float().T.contiguous()
        matrix[: grid.n_columns, start:stop] = columns_first[column_index]
    row_weights = torch.zeros(grid.padded_rows)
    row_weights[: grid.n_rows] = torch.from_numpy(importance.rows)[row_index]
    return SortedWeight(grid, matrix, hessian, row_weights, rows)


def sorted_hessian(importance: Importance, grid: TileGrid, columns: IndexArray | None) -> torch.Tensor:
    """Permute and pad a hessian; padding columns are independent of all others."""
    source = torch.from_numpy(importance.hessian)
    index = _index(grid.n_columns, columns)
    hessian = torch.eye(grid.padded_columns) * source.diagonal().mean()
    hessian[: grid.n_columns, : grid.n_columns] = source[index][:, index]
    return hessian


def in_source_order(values: torch.Tensor, n_columns: int, columns: IndexArray | None) -> torch.Tensor:
    """Undo the order and padding of a value of each column; [padded_columns] to [n_columns]."""
    result = torch.empty(n_columns, dtype=values.dtype)
    result[_index(n_columns, columns)] = values[:n_columns]
    return result


def _index(n: int, order: IndexArray | None) -> torch.Tensor:
    return torch.arange(n) if order is None else torch.from_numpy(order.astype(np.int64))
