"""What searches scales and rounds groups: the contract of the torch definition and of the native kernels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from laq.core.formats import CANDIDATES, Palette
from laq.core.scheme import ScaleFormat

EVERY_FORMAT = (True,) * len(CANDIDATES)


def asked_for(allowed: Sequence[bool], palettes: torch.Tensor | None) -> list[int]:
    """Return the candidates that errors are asked of."""
    return [
        i
        for i, (candidate, wanted) in enumerate(zip(CANDIDATES, allowed, strict=True))
        if wanted and (palettes is not None or not isinstance(candidate, Palette))
    ]


@dataclass(frozen=True, slots=True)
class RoundedGroup:
    """What rounding one group of columns gives.

    Parameters
    ----------
    codes : uint8 [group_size, rows]
        Unsigned codes.
    scales : int16 (log steps) or float16 [rows]
        As stored.
    zero_points : float32 [rows]
        See `laq.core.qtensor`.
    errors : float32 [group_size, rows]
        Rounding errors over the factor's diagonal; empty without a factor.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    zero_points: torch.Tensor
    errors: torch.Tensor


@dataclass(frozen=True, slots=True)
class FixedScales:
    """Scales that were chosen before any group is rounded, at every format that is used.

    Parameters
    ----------
    stored : int16 (log steps) or float16 [n_candidates, rows or 1]
        As stored; one for all rows where the whole weight shares it.
    zero_points : float32 [n_candidates, rows or 1]
        See `laq.core.qtensor`.
    """

    stored: torch.Tensor
    zero_points: torch.Tensor

    def of_rows(self, rows: slice) -> FixedScales:
        """Return those of some rows."""
        if self.stored.shape[1] == 1:
            return self
        return FixedScales(self.stored[:, rows], self.zero_points[:, rows])


@dataclass(frozen=True, slots=True)
class Columns:
    """Columns of weights, and what a search of their scales rests on.

    Parameters
    ----------
    matrix : float32 [columns, rows]
        Whole tiles.
    weights : float32 [columns]
        What a squared error in each column costs.
    floor : float32 [rows]
        See `laq.ranges.common.grid.scale_floor`.
    scale_format : ScaleFormat
        How scales are stored.
    palettes : uint8 [row blocks or 1, `laq.core.formats.table.PALETTE_BYTES`], or None
        Learned entries.
    fixed : FixedScales or None
        What `Engine.fixed` returned for these rows.
    """

    matrix: torch.Tensor
    weights: torch.Tensor
    floor: torch.Tensor
    scale_format: ScaleFormat
    palettes: torch.Tensor | None = None
    fixed: FixedScales | None = None

    def part(self, columns: slice) -> Columns:
        """Return some of the columns; floor, palettes and fixed scales are those of all."""
        return replace(self, matrix=self.matrix[columns], weights=self.weights[columns])


def stored_zeros(shape: tuple[int, ...] | int, scale_format: ScaleFormat) -> torch.Tensor:
    """Return zeros in the type in which engines give scales: log steps or float16."""
    return torch.zeros(shape, dtype=torch.int16 if scale_format.is_log else torch.float16)


class Engine(ABC):
    """All engines give the same bits, whatever the number of threads."""

    @abstractmethod
    def errors(
        self, columns: Columns, *, group_size: int, allowed: Sequence[bool] = EVERY_FORMAT
    ) -> torch.Tensor:
        """Return the least weighted squared error of every group at every candidate format.

        columns : whole groups        allowed : [n_candidates], which formats are asked for
        Returns float32 [n_candidates, n_groups, rows]; infinite where a format is not asked for, or is a
        palette and there are none
        """

    @abstractmethod
    def round(self, columns: Columns, choices: torch.Tensor, *, factor: torch.Tensor | None) -> RoundedGroup:
        """Search the scales of one group of columns and round it.

        columns : of one group        choices : [row blocks], uint8, candidate format of every tile
        factor : [group_size, group_size], float32, how errors spread; None without feedback
        """

    def fixed(
        self,
        matrix: torch.Tensor,
        column_weights: torch.Tensor,
        choices: torch.Tensor,
        *,
        scale_format: ScaleFormat,
        rows: torch.Tensor | None = None,
    ) -> FixedScales | None:
        """Choose the scales that serve more than a tile; None if there are none.

        matrix : [columns, rows], float32        column_weights : [columns], float32
        choices : uint8, the candidate formats that are used
        rows : [rows], float32, what a squared error in each row costs, as of the columns; alike if not given
        """
        del matrix, column_weights, choices, scale_format, rows
        return None
