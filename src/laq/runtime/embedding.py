"""An embedding over a packed weight."""

from __future__ import annotations

import torch
from torch import nn

from laq.core.groups import TILE_ROWS
from laq.runtime.packed import PackedWeight


class PackedEmbedding(nn.Module):
    """Looks up rows; only the row blocks that hold them are decoded.

    Parameters
    ----------
    packed : PackedWeight
        The weight; may be shared with a `PackedLinear`.
    dtype : torch.dtype
        Type of the result.
    scale : float
        What every row is multiplied by (some networks scale their embeddings).
    """

    _typed: torch.Tensor

    def __init__(self, packed: PackedWeight, *, dtype: torch.dtype, scale: float = 1.0) -> None:
        super().__init__()
        self.packed, self.scale = packed, scale
        self.register_buffer("_typed", torch.empty(0, dtype=dtype), persistent=False)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the result; casting the module changes it, as it does for a dense embedding."""
        return self._typed.dtype

    @property
    def num_embeddings(self) -> int:
        """Rows of the weight."""
        return self.packed.n_rows

    @property
    def embedding_dim(self) -> int:
        """Columns of the weight."""
        return self.packed.n_columns

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return [..., embedding_dim] for integer ids [...].

        Raises
        ------
        IndexError
            If an id is outside of the vocabulary, as in `nn.Embedding`.
        """
        packed = self.packed
        if ids.numel() and (int(ids.min()) < 0 or int(ids.max()) >= packed.n_rows):
            raise IndexError(
                f"ids from {int(ids.min())} to {int(ids.max())}, the vocabulary has {packed.n_rows}"
            )
        rows = ids.flatten() if packed.row_index is None else packed.row_index[ids.flatten()].long()
        blocks, position = torch.unique(rows // TILE_ROWS, return_inverse=True)
        stored = packed.decode(blocks)[position * TILE_ROWS + rows % TILE_ROWS][:, : packed.n_columns]
        result = torch.empty_like(stored)
        if packed.column_index is None:
            result = stored
        else:
            result[:, packed.column_index.long()] = stored
        result = result.to(self.dtype)
        if self.scale != 1.0:
            result = result * torch.tensor(self.scale, dtype=self.dtype, device=result.device)
        return result.view(*ids.shape, packed.n_columns)

    def extra_repr(self) -> str:
        """Return the sizes, for printing."""
        return f"{self.num_embeddings}, {self.embedding_dim}"
