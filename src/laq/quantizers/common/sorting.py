"""Matrices in the order of their tiles: rows and columns by falling importance, padded."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from laq.core.groups import TileGrid
from laq.core.importance import Importance
from laq.core.permutation import IndexArray, descending


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
    rows: IndexArray | None,
    columns: IndexArray | None,
) -> SortedWeight:
    """Permute and pad a weight [n_rows, n_columns] and its importance."""
    row_index = slice(None) if rows is None else torch.from_numpy(rows.astype(np.int64))
    column_index = _column_index(grid, columns)
    matrix = torch.zeros(grid.padded_columns, grid.padded_rows)
    matrix[: grid.n_columns, : grid.n_rows] = weight.float()[row_index][:, column_index].T
    row_weights = torch.zeros(grid.padded_rows)
    row_weights[: grid.n_rows] = torch.from_numpy(importance.rows)[row_index]
    return SortedWeight(grid, matrix, sorted_hessian(importance, grid, columns), row_weights, rows)


def sorted_hessian(importance: Importance, grid: TileGrid, columns: IndexArray | None) -> torch.Tensor:
    """Permute and pad a hessian; padding columns are independent of all others."""
    source = torch.from_numpy(importance.hessian)
    index = _column_index(grid, columns)
    hessian = torch.eye(grid.padded_columns) * source.diagonal().mean()
    hessian[: grid.n_columns, : grid.n_columns] = source[index][:, index]
    return hessian


def _column_index(grid: TileGrid, columns: IndexArray | None) -> torch.Tensor:
    order = np.arange(grid.n_columns) if columns is None else columns.astype(np.int64)
    return torch.from_numpy(order)
