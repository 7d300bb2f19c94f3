"""From curves and a budget to a plan: one allocator a file, no torch.

How to add one: write `NAME.py` in this folder with one final class deriving from `Allocator`, and one test.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from laq.core.registry import Registry


class Allocator(ABC):
    """Contract of a method that spends bytes on units."""

    status: ClassVar[Literal["stable", "experimental"]]
    summary: ClassVar[str]

    @classmethod
    def check(cls, n_units: int) -> None:
        """Raise RequestError, before anything slow happens, if the method cannot handle so many units."""
        del n_units

    @abstractmethod
    def choose(
        self, losses: npt.NDArray[np.float64], costs: npt.NDArray[np.int64], budget_bytes: int
    ) -> npt.NDArray[np.int64]:
        """Return the candidate of each unit; [n_units].

        losses : [n_candidates, n_units], nats, infinite where not allowed
        costs : [n_candidates, n_units], bytes
        budget_bytes : int, at least the sum of the cheapest allowed candidates

        The sum of the chosen costs never exceeds the budget.
        """


ALLOCATORS: Registry[Allocator] = Registry("allocator", "laq.allocation", Allocator)  # type: ignore[type-abstract]  # the ABC is only the bound
