"""A baseline: from the cheapest plan on, buy the step that gains most per byte until nothing more fits."""

from __future__ import annotations

import heapq
from typing import ClassVar, Literal, final

import numpy as np
import numpy.typing as npt

from laq.allocation import Allocator
from laq.allocation.common.multiplier import cheapest


@final
class Greedy(Allocator):
    """One step at a time, each the best of its unit by gain per byte; what does not fit is passed over.

    On convex curves it buys what a Lagrange multiplier would; elsewhere a step that looks poor may hide a
    good one behind it, which the best of all steps of a unit, not the next one alone, mostly sees.
    """

    status: ClassVar[Literal["stable", "experimental"]] = "stable"
    summary: ClassVar[str] = "best gain per byte, one step at a time from the cheapest plan; a baseline"

    def choose(
        self, losses: npt.NDArray[np.float64], costs: npt.NDArray[np.int64], budget_bytes: int
    ) -> npt.NDArray[np.int64]:
        """Return the candidate of each unit; see `Allocator.choose`."""
        choice = cheapest(losses, costs)
        left = budget_bytes - int(costs[choice, np.arange(len(choice))].sum())
        heap = [step for unit in range(len(choice)) if (step := _best(losses, costs, choice, unit, left))]
        heapq.heapify(heap)
        while heap:
            _, unit, candidate, extra = heapq.heappop(heap)
            if extra <= left:
                choice[unit] = candidate
                left -= extra
            following = _best(losses, costs, choice, unit, left)
            if following is not None:
                heapq.heappush(heap, following)
        return choice


def _best(
    losses: npt.NDArray[np.float64],
    costs: npt.NDArray[np.int64],
    choice: npt.NDArray[np.int64],
    unit: int,
    left: int,
) -> tuple[float, int, int, int] | None:
    """Return (- gain per byte, unit, candidate, bytes) of a unit's best step that fits."""
    now = choice[unit]
    gains, extra = losses[now, unit] - losses[:, unit], costs[:, unit] - costs[now, unit]
    rates = np.where((extra > 0) & (extra <= left) & (gains > 0), gains / np.maximum(extra, 1), 0.0)
    candidate = int(rates.argmax())
    return (
        (-float(rates[candidate]), unit, candidate, int(extra[candidate])) if rates[candidate] > 0 else None
    )
