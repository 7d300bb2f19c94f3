"""Integers by one engine, all other formats by another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch

from laq.core.formats import CANDIDATES, Integer
from laq.core.groups import TILE_ROWS
from laq.quantizers.common.engine import EVERY_FORMAT, Columns, Engine, RoundedGroup

IS_INTEGER = torch.tensor([isinstance(candidate, Integer) for candidate in CANDIDATES])
ABSENT = 0


@final
class MixedEngine(Engine):
    """Ranges that no native kernel knows, beside the native search of everything else.

    Parameters
    ----------
    integers : Engine
        Predicts errors of all formats, and rounds integers.
    others : Engine
        Rounds all other tiles: their scales do not depend on the range of integers.
    """

    def __init__(self, integers: Engine, others: Engine) -> None:
        self._integers, self._others = integers, others

    def errors(
        self, columns: Columns, *, group_size: int, allowed: Sequence[bool] = EVERY_FORMAT
    ) -> torch.Tensor:
        """See `Engine.errors`."""
        return self._integers.errors(columns, group_size=group_size, allowed=allowed)

    def round(self, columns: Columns, choices: torch.Tensor, *, factor: torch.Tensor | None) -> RoundedGroup:
        """See `Engine.round`."""
        is_other = ~IS_INTEGER[choices.long()]
        rounded, other = (
            engine.round(columns, choices.where(mine, ABSENT), factor=factor)
            for engine, mine in ((self._integers, ~is_other), (self._others, is_other))
        )
        rows = is_other.repeat_interleave(TILE_ROWS)
        return RoundedGroup(
            codes=torch.where(rows, other.codes, rounded.codes),
            scales=torch.where(rows, other.scales, rounded.scales),
            zero_points=torch.where(rows, other.zero_points, rounded.zero_points),
            errors=rounded.errors if factor is None else torch.where(rows, other.errors, rounded.errors),
        )
