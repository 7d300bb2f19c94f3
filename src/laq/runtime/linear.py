"""A linear layer over a packed weight."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from laq.core.groups import TILE_ROWS
from laq.runtime.packed import DECODE_ELEMENTS, PackedWeight


class PackedLinear(nn.Module):
    """y = x W' + b; W is decoded a few row blocks at a time.

    Parameters
    ----------
    packed : PackedWeight
        The weight; may be shared with a `PackedEmbedding`.
    bias : Tensor or None
        float [out_features].
    """

    def __init__(self, packed: PackedWeight, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.packed = packed
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=False)

    @property
    def in_features(self) -> int:
        """Columns of the weight."""
        return self.packed.n_columns

    @property
    def out_features(self) -> int:
        """Rows of the weight."""
        return self.packed.n_rows

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return float [..., out_features] for float [..., in_features], in the input's type."""
        packed, grid = self.packed, self.packed.grid
        gathered = inputs if packed.column_index is None else inputs[..., packed.column_index.long()]
        if grid.padded_columns != grid.n_columns:
            gathered = functional.pad(gathered, (0, grid.padded_columns - grid.n_columns))
        step = max(1, DECODE_ELEMENTS // (TILE_ROWS * grid.padded_columns))
        blocks = torch.arange(grid.n_row_blocks, device=inputs.device)
        parts = [gathered @ packed.decode(some).to(inputs.dtype).T for some in blocks.split(step)]
        stored = torch.cat(parts, -1) if len(parts) > 1 else parts[0]
        outputs = (
            stored[..., : grid.n_rows] if packed.row_index is None else stored[..., packed.row_index.long()]
        )
        return outputs if self.bias is None else outputs + self.bias.to(outputs.dtype)

    def extra_repr(self) -> str:
        """Return the sizes, for printing."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        )
