"""Integers by one engine, all other formats by another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch

from laq.core.formats import CANDIDATES, Integer
from laq.core.groups import TILE_ROWS
from laq.core.scheme import ScaleFormat
from laq.quantizers.common.engine import EVERY_FORMAT, Engine, FixedScales, RoundedGroup

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
        """See `Engine.errors`."""
        assert fixed is None
        return self._integers.errors(
            matrix,
            column_weights,
            group_size=group_size,
            floor=floor,
            scale_format=scale_format,
            allowed=allowed,
            palettes=palettes,
        )

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
        """See `Engine.round`."""
        assert fixed is None
        is_other = ~IS_INTEGER[choices.long()]
        rounded, other = (
            engine.round(
                block,
                choices.where(mine, ABSENT),
                column_weights,
                floor=floor,
                factor=factor,
                scale_format=scale_format,
                palettes=palettes,
            )
            for engine, mine in ((self._integers, ~is_other), (self._others, is_other))
        )
        rows = is_other.repeat_interleave(TILE_ROWS)
        return RoundedGroup(
            codes=torch.where(rows, other.codes, rounded.codes),
            scales=torch.where(rows, other.scales, rounded.scales),
            zero_points=torch.where(rows, other.zero_points, rounded.zero_points),
            errors=rounded.errors if factor is None else torch.where(rows, other.errors, rounded.errors),
        )
