"""What searches scales and rounds groups: the contract of the torch definition and of the native kernels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

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


class Engine(ABC):
    """All engines give the same bits, whatever the number of threads."""

    @abstractmethod
    def errors(  # noqa: PLR0913 - what a search rests on, by keyword
        self,
        matrix: torch.Tensor,
        column_weights: torch.Tensor,
        *,
        group_size: int,
        floor: torch.Tensor,
        scale_format: ScaleFormat,
        allowed: Sequence[bool] = EVERY_FORMAT,
        palettes: torch.Tensor | None = None,
        fixed: FixedScales | None = None,
    ) -> torch.Tensor:
        """Return the least weighted squared error of every group at every candidate format.

        allowed : [n_candidates], which formats are asked for
        palettes : uint8 [row blocks or 1, `laq.core.formats.table.PALETTE_BYTES`], learned entries
        matrix : [columns, rows], float32, whole tiles        column_weights : [columns], float32
        floor : [rows], float32, see `laq.ranges.common.grid.scale_floor`
        fixed : what `fixed` returned for this matrix
        Returns float32 [n_candidates, n_groups, rows]; infinite where a format is not asked for, or is a
        palette and there are none
        """

    @abstractmethod
    def round(  # noqa: PLR0913 - what rounding rests on, by keyword
        self,
        block: torch.Tensor,
        choices: torch.Tensor,
        column_weights: torch.Tensor,
        *,
        floor: torch.Tensor,
        factor: torch.Tensor | None,
        scale_format: ScaleFormat,
        palettes: torch.Tensor | None = None,
        fixed: FixedScales | None = None,
    ) -> RoundedGroup:
        """Search the scales of one group of columns and round it.

        block : [group_size, rows], float32        column_weights : [group_size], float32
        choices : [row blocks], uint8, candidate format of every tile
        factor : [group_size, group_size], float32, how errors spread; None without feedback
        palettes : uint8 [row blocks or 1, `laq.core.formats.table.PALETTE_BYTES`], learned entries
        fixed : what `fixed` returned for these rows
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
