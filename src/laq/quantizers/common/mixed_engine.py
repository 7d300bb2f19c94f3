"""Integers by one engine, trellises by another."""

from __future__ import annotations

from typing import final

import torch

from laq.core.formats import CANDIDATES, Trellis
from laq.core.groups import TILE_ROWS
from laq.core.scheme import ScaleFormat
from laq.quantizers.common.engine import Engine, RoundedGroup

IS_TRELLIS = torch.tensor([isinstance(candidate, Trellis) for candidate in CANDIDATES])
ABSENT = 0


@final
class MixedEngine(Engine):
    """Ranges that no native kernel knows, beside the native search of paths.

    Parameters
    ----------
    integers : Engine
        Predicts errors of all formats, and rounds integers.
    trellises : Engine
        Rounds tiles of a trellis: their scales do not depend on the range of integers.
    """

    def __init__(self, integers: Engine, trellises: Engine) -> None:
        self._integers, self._trellises = integers, trellises

    def errors(
        self,
        matrix: torch.Tensor,
        column_weights: torch.Tensor,
        *,
        group_size: int,
        floor: torch.Tensor,
        scale_format: ScaleFormat,
    ) -> torch.Tensor:
        """See `Engine.errors`."""
        return self._integers.errors(
            matrix, column_weights, group_size=group_size, floor=floor, scale_format=scale_format
        )

    def round(
        self,
        block: torch.Tensor,
        choices: torch.Tensor,
        column_weights: torch.Tensor,
        *,
        floor: torch.Tensor,
        factor: torch.Tensor | None,
        scale_format: ScaleFormat,
    ) -> RoundedGroup:
        """See `Engine.round`."""
        is_trellis = IS_TRELLIS[choices.long()]
        rounded, other = (
            engine.round(
                block,
                choices.where(mine, ABSENT),
                column_weights,
                floor=floor,
                factor=factor,
                scale_format=scale_format,
            )
            for engine, mine in ((self._integers, ~is_trellis), (self._trellises, is_trellis))
        )
        rows = is_trellis.repeat_interleave(TILE_ROWS)
        return RoundedGroup(
            codes=torch.where(rows, other.codes, rounded.codes),
            scales=torch.where(rows, other.scales, rounded.scales),
            zero_points=torch.where(rows, other.zero_points, rounded.zero_points),
            errors=rounded.errors if factor is None else torch.where(rows, other.errors, rounded.errors),
        )
