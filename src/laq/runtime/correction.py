"""A correction of low rank as a module: two thin products beside a packed linear."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from laq.core.low_rank import LowRank
from laq.runtime.arena import Memory


class Correction(nn.Module):
    """Adds (inputs b') a' with b and a in 8 bits; they are expanded when they are needed.

    Parameters
    ----------
    low_rank : LowRank
        Checked factors.
    n_rows : int
        Rows of the matrix.
    memory : Memory
        Where the factors go.
    """

    factors: torch.Tensor
    scales: torch.Tensor

    def __init__(self, low_rank: LowRank, n_rows: int, *, memory: Memory) -> None:
        super().__init__()
        self.n_rows = n_rows
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
