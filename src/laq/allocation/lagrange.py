"""One price per byte for all units: least loss + price x bytes, the price bisected to meet the budget."""

from __future__ import annotations

from typing import ClassVar, Literal, final

import numpy as np
import numpy.typing as npt

from laq.allocation import Allocator
from laq.allocation.common.multiplier import spend


@final
class Lagrange(Allocator):
    """Optimal on the convex hull of every unit's curve; what is left is spent greedily.

    References
    ----------
    Everett, Operations Research 11 (1963) 399: the solution at any price is optimal for the bytes it uses.
    """

    status: ClassVar[Literal["stable", "experimental"]] = "stable"
    summary: ClassVar[str] = "one Lagrange multiplier over all units, gap filled greedily"

    def choose(
        self, losses: npt.NDArray[np.float64], costs: npt.NDArray[np.int64], budget_bytes: int
    ) -> npt.NDArray[np.int64]:
        """Return the candidate of each unit; see `Allocator.choose`."""
        return spend(losses, costs, budget_bytes)
