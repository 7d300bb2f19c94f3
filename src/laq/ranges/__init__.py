"""Ways to choose the scale and zero point of a group of integers.

How to add one: write `NAME.py` in this folder with one final class deriving from `Range`, and one test. The
file name is the registry key: `laq methods`, the command line and the contract tests find it by itself, and
every quantizer and the measurement take it. Other packages register theirs under the entry point group
`laq.ranges`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from laq.core.registry import Registry
from laq.core.scheme import ScaleFormat


@dataclass(frozen=True, slots=True)
class Grid:
    """Scale and zero point of each row of one group, and the weighted squared error they leave.

    Parameters
    ----------
    scales : float32 [rows]
        Decoded scales.
    stored : int16 (log steps) or float16 [rows]
        The same as stored.
    zero_points : float32 [rows]
        Whole numbers, or halves where codes are narrow; see `laq.core.qtensor`.
    error : float32 [rows]
        Sum over columns of weight x squared error.
    """

    scales: torch.Tensor
    stored: torch.Tensor
    zero_points: torch.Tensor
    error: torch.Tensor


class Range(ABC):
    """Contract of a method: each row of a group is looked at by itself, and a group of zeros stays zero."""

    status: ClassVar[Literal["stable", "experimental"]]
    summary: ClassVar[str]
    serves_units: ClassVar[bool] = False
    """Whether it may look at more than a group: at units of any length, or at the ends of a whole weight."""

    @abstractmethod
    def search(
        self,
        block: torch.Tensor,
        n_levels: int,
        column_weights: torch.Tensor,
        *,
        floor: torch.Tensor,
        scale_format: ScaleFormat,
    ) -> Grid:
        """Choose a scale that can be stored and a legal zero point for each row of a group.

        block : [group_size, rows], float32, left as it is
        n_levels : of an integer format, 2 or more
        column_weights : [group_size], float32, what a squared error in each column costs
        floor : [rows], float32, the smallest log step allowed, see `laq.ranges.common.grid.scale_floor`
        """


RANGES: Registry[Range] = Registry("range", "laq.ranges", Range)  # type: ignore[type-abstract]  # the ABC is only the bound
