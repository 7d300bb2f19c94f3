"""An embedding over a packed weight."""

from __future__ import annotations

import torch
from torch import nn

from laq.core.groups import TILE_ROWS
from laq.runtime import operators  # noqa: F401 - registers torch.ops.laq
from laq.runtime.calls import TYPES, call_rows, has_kernels, is_recorded
from laq.runtime.packed import PackedWeight, index_of


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
    row_index: torch.Tensor | None

    def __init__(self, packed: PackedWeight, *, dtype: torch.dtype, scale: float = 1.0) -> None:
        super().__init__()
        assert packed.correction is None  # plans and readers give linears alone a correction
        self.packed, self.scale = packed, scale
        permutation = packed.row_permutation
        where = None if permutation is None else torch.argsort(index_of(permutation)).int()
        self.register_buffer("row_index", where)
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
        result = self._rows(ids)
        if self.scale != 1.0:
            result = result * torch.tensor(self.scale, dtype=self.dtype, device=result.device)
        return result

    def _rows(self, ids: torch.Tensor) -> torch.Tensor:
        packed = self.packed
        if ids.device.type != "cpu" or self.dtype not in TYPES or not has_kernels():
            return self._decoded(ids)
        if not is_recorded():
            return call_rows(packed.matrix(), ids, self.row_index, self.dtype)
        sizes = packed.n_rows, packed.n_columns, packed.grid.group_size
        operator = torch.ops.laq.rows
        result: torch.Tensor = operator(ids, self.row_index, self.dtype, *packed.sections(), *sizes)
        return result

    def _decoded(self, ids: torch.Tensor) -> torch.Tensor:
        packed = self.packed
        if ids.numel() and (int(ids.min()) < 0 or int(ids.max()) >= packed.n_rows):
            raise IndexError(
                f"ids from {int(ids.min())} to {int(ids.max())}, the vocabulary has {packed.n_rows}"
            )
        flat = ids.flatten().long()
        rows = flat if self.row_index is None else self.row_index[flat].long()
        blocks, position = torch.unique(rows // TILE_ROWS, return_inverse=True)
        stored = packed.decode(blocks)[position * TILE_ROWS + rows % TILE_ROWS][:, : packed.n_columns]
        result = torch.empty_like(stored)
        if packed.column_permutation is None:
            result = stored
        else:
            result[:, index_of(packed.column_permutation)] = stored
        return result.to(self.dtype).view(*ids.shape, packed.n_columns)

    def extra_repr(self) -> str:
        """Return the sizes, for printing."""
        return f"{self.num_embeddings}, {self.embedding_dim}"
