"""What a quantizer derives from the hessian of an input, once for all weights that read it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from laq.core.groups import TileGrid
from laq.core.importance import Importance
from laq.core.permutation import IndexArray
from laq.quantizers import Feedback, Quantizer
from laq.quantizers.common.sorting import sorted_hessian


@dataclass(frozen=True, slots=True)
class Prepared:
    """A hessian in the order of columns, float32 [padded_columns, padded_columns], and what came of it."""

    hessian: torch.Tensor
    feedback: Feedback


class PreparedInput:
    """An input's hessian at every width that grids pad it to: group sizes of its weights may differ.

    Parameters
    ----------
    quantizer : Quantizer
        Method that prepares.
    importance : Importance
        Of one of the weights; only its hessian counts.
    columns : uint16 or uint32 [n_columns], or None
        The shared order of columns.
    """

    def __init__(self, quantizer: Quantizer, importance: Importance, columns: IndexArray | None) -> None:
        self.quantizer, self.columns = quantizer, columns
        self._importance = importance
        self._found: dict[int, Prepared] = {}

    def of(self, grid: TileGrid) -> Prepared:
        """Return what fits a grid."""
        if grid.padded_columns not in self._found:
            hessian = sorted_hessian(self._importance, grid, self.columns)
            self._found[grid.padded_columns] = Prepared(hessian, self.quantizer.prepare(hessian))
        return self._found[grid.padded_columns]
