"""Methods that pick codes and scales for a matrix.

How to add one: write `NAME.py` in this folder with one final class deriving from `Quantizer`, and one test.
The file name is the registry key: `laq methods`, the command line and the contract tests find it by itself.
Other packages register theirs under the entry point group `laq.quantizers`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch

from laq.core.groups import TILE_ROWS
from laq.core.registry import Registry
from laq.core.scale_units import ScalePer
from laq.core.scheme import ScaleFormat
from laq.quantizers.common.engine import Engine, FixedScales
from laq.quantizers.common.engines import engine_of
from laq.ranges import RANGES, Range
from laq.ranges.mse import Mse


@dataclass(frozen=True, slots=True)
class Codes:
    """What a quantizer returns; columns first, because columns are processed in order.

    Parameters
    ----------
    codes : uint8 [columns, rows]
        Unsigned codes; zero where a tile is absent.
    scales : int16 (eighths of an octave) or float16 [groups, rows]
        One scale a group.
    zero_points : float32 [groups, rows]
        The point on the scale of codes that stands for zero; see `laq.core.qtensor.QTensor`.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    zero_points: torch.Tensor


@dataclass(frozen=True, slots=True)
class Feedback:
    """What a method derives from a hessian, once for all weights that share it.

    Parameters
    ----------
    column_weights : float32 [columns]
        What a squared rounding error in each column costs under this method.
    factor : float32 [columns, columns], or None
        How an error spreads over later columns; None without error feedback.
    hessian : float32 [columns, columns], or None
        The hessian itself, for methods that lower its quadratic form; None for those that do not.
    palettes : uint8 [row blocks or 1, `laq.core.formats.table.PALETTE_BYTES`], or None
        Learned entries of the weight, where tiles may use them; see `laq.quantizers.common.palettes`.
    fixed : FixedScales or None
        Scales of whole weights, where they are shared.
    """

    column_weights: torch.Tensor
    factor: torch.Tensor | None
    hessian: torch.Tensor | None = None
    palettes: torch.Tensor | None = None
    fixed: FixedScales | None = None

    def of_blocks(self, blocks: slice) -> Feedback:
        """Return the same for some row blocks of the weight."""
        rows = slice(TILE_ROWS * blocks.start, TILE_ROWS * blocks.stop)
        fixed = None if self.fixed is None else self.fixed.of_rows(rows)
        if self.palettes is None or len(self.palettes) == 1:
            return replace(self, fixed=fixed)
        return replace(self, palettes=self.palettes[blocks], fixed=fixed)

    def with_fixed(
        self, engine: Engine, weight: torch.Tensor, choices: torch.Tensor, scale_format: ScaleFormat
    ) -> Feedback:
        """Return the same with the scales that an engine chooses before rounding; those there are stay.

        weight : float32 [columns, rows]        choices : uint8, candidate formats
        """
        if self.fixed is not None:
            return self
        return replace(
            self, fixed=engine.fixed(weight, self.column_weights, choices, scale_format=scale_format)
        )


class Quantizer(ABC):
    """Contract of a method; widths may differ by tile, so one call serves a whole matrix.

    Parameters
    ----------
    range : Range, optional
        How scales and zero points of integers are chosen; `mse` if not given.
    scale_per : ScalePer
        What a scale serves.
    """

    status: ClassVar[Literal["stable", "experimental"]]
    summary: ClassVar[str]

    def __init__(self, range: Range | None = None, scale_per: ScalePer = ScalePer.GROUP) -> None:
        self._range = Mse() if range is None else range
        self.scale_per = scale_per

    @property
    def engine(self) -> Engine:
        """What searches and rounds groups with the range given; methods and measurement use it alike."""
        return engine_of(self._range, self.scale_per)

    @abstractmethod
    def prepare(self, hessian: torch.Tensor) -> Feedback:
        """Return what the method needs of a hessian, float32 [columns, columns].

        Raises CalibrationError if the hessian cannot be used.
        """

    @abstractmethod
    def quantize(
        self, weight: torch.Tensor, feedback: Feedback, choices: torch.Tensor, *, scale_format: ScaleFormat
    ) -> Codes:
        """Choose codes, scales and zero points.

        weight : [columns, rows], float32, in the order of processing, padded to whole groups
        feedback : what `prepare` returned for the columns in the same order
        choices : [groups, row blocks], uint8, candidate format of every tile
        """


QUANTIZERS: Registry[Quantizer] = Registry("quantizer", "laq.quantizers", Quantizer)  # type: ignore[type-abstract]  # the ABC is only the bound


def quantizer_of(name: str, range_name: str, scale_per: ScalePer = ScalePer.GROUP) -> Quantizer:
    """Return a quantizer with a range, both by name, and what a scale serves.

    Raises
    ------
    RequestError
        If there is no such method; names those there are.
    """
    return QUANTIZERS.get(name)(RANGES.get(range_name)(), scale_per)
