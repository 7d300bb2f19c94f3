"""Corrections as modules beside a packed linear: two thin products, or one of few elements."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from laq.core.correction import Correction as Stored
from laq.core.groups import TileGrid
from laq.core.low_rank import LowRank
from laq.core.outliers import Outliers
from laq.core.permutation import index_dtype
from laq.runtime.arena import Memory
from laq.runtime.calls import call_outliers, can_run, is_recorded

PRODUCTS_AT_ONCE = 1 << 22
"""Products of outliers that torch holds at a time, 16 MB of float32; the native kernels hold none."""


class LowRankCorrection(nn.Module):
    """Adds (inputs b') a' with b and a in 8 bits; they are expanded when they are needed.

    Parameters
    ----------
    low_rank : LowRank
        Checked factors.
    grid : TileGrid
        Shape of the matrix.
    memory : Memory
        Where the factors go.
    """

    factors: torch.Tensor
    scales: torch.Tensor

    def __init__(self, low_rank: LowRank, grid: TileGrid, *, memory: Memory) -> None:
        super().__init__()
        self.n_rows = grid.n_rows
        self.register_buffer("factors", torch.from_numpy(memory.place(low_rank.factors)))
        # float16 as its bits: casting a model converts floating-point buffers
        self.register_buffer("scales", torch.from_numpy(memory.place(low_rank.scales).view(np.int16)))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return float [..., n_rows] for float [..., n_columns], in the input's type."""
        columns, rows = self._expanded(inputs.dtype)
        return functional.linear(functional.linear(inputs, columns), rows.T)

    def dequantize(self) -> torch.Tensor:
        """Return the matrix; float32 [n_rows, n_columns]."""
        columns, rows = self._expanded(torch.float32)
        return rows.T @ columns

    def _expanded(self, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Factors of columns [rank, n_columns] and of rows [rank, n_rows]."""
        values = self.factors.to(dtype) * self.scales.view(torch.float16).to(dtype)[:, None]
        return values[:, self.n_rows :], values[:, : self.n_rows]


class OutlierCorrection(nn.Module):
    """Adds the products of few elements, which lie row by row: 4 bytes each, and 4 a row.

    Parameters
    ----------
    outliers : Outliers
        Checked.
    grid : TileGrid
        Shape of the matrix.
    memory : Memory
        Where the elements go.
    """

    starts: torch.Tensor
    columns: torch.Tensor
    values: torch.Tensor

    def __init__(self, outliers: Outliers, grid: TileGrid, *, memory: Memory) -> None:
        super().__init__()
        self.n_rows, self.n_columns = grid.n_rows, grid.n_columns
        positions, values = outliers.elements()
        starts = np.searchsorted(positions, np.arange(self.n_rows + 1) * self.n_columns)
        columns = (positions % self.n_columns).astype(index_dtype(self.n_columns))
        self.register_buffer("starts", torch.from_numpy(memory.place(starts.astype(np.int32))))
        signed = np.dtype(f"i{columns.itemsize}")
        self.register_buffer("columns", torch.from_numpy(memory.place(columns).view(signed)))
        # bfloat16 as its bits, which are the upper half of a float32
        bits = (values.view(np.uint32) >> 16).astype(np.uint16)
        self.register_buffer("values", torch.from_numpy(memory.place(bits).view(np.int16)))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return float [..., n_rows] for float [..., n_columns], in the input's type."""
        if can_run(inputs):
            call = torch.ops.laq.outliers if is_recorded() else call_outliers
            result: torch.Tensor = call(inputs, self.starts, self.columns, self.values)
            return result
        rows, columns, values = self._elements()
        flat = inputs.reshape(-1, self.n_columns)
        step = max(1, PRODUCTS_AT_ONCE // len(values))
        parts = [
            flat.new_zeros(len(some), self.n_rows).index_add(
                1, rows, some[:, columns] * values.to(some.dtype)
            )
            for some in flat.split(step)
        ]
        return torch.cat(parts).view(*inputs.shape[:-1], self.n_rows)

    def dequantize(self) -> torch.Tensor:
        """Return the matrix; float32 [n_rows, n_columns]."""
        rows, columns, values = self._elements()
        matrix = torch.zeros(self.n_rows, self.n_columns, device=values.device)
        matrix[rows, columns] = values
        return matrix

    def _elements(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Row and column, int64, and value, float32, of every element."""
        n = len(self.values)
        places = torch.arange(self.n_rows, device=self.starts.device)
        rows = torch.repeat_interleave(places, self.starts.diff(), output_size=n)
        columns = self.columns.long() & (0xFFFF if self.columns.dtype == torch.int16 else 0xFFFFFFFF)
        return rows, columns, self.values.view(torch.bfloat16).float()


Correction = LowRankCorrection | OutlierCorrection
"""What a linear adds to the product with its tiles."""


def correction_of(stored: Stored, grid: TileGrid, *, memory: Memory) -> Correction:
    """Return the module of a stored correction."""
    if isinstance(stored, LowRank):
        return LowRankCorrection(stored, grid, memory=memory)
    return OutlierCorrection(stored, grid, memory=memory)
