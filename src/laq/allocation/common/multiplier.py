"""One price per byte for all units, bisected to meet a budget; what is left is spent greedily."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

BISECTIONS = 64


def spend(
    losses: npt.NDArray[np.float64], costs: npt.NDArray[np.int64], budget_bytes: int
) -> npt.NDArray[np.int64]:
    """Return the candidate of each unit by least loss + price x bytes; see `laq.allocation.Allocator`."""
    low, high = _price_bounds(losses, costs)
    for _ in range(BISECTIONS):
        middle = np.sqrt(low * high)
        if _bytes(_at_price(losses, costs, middle), costs) > budget_bytes:
            low = middle
        else:
            high = middle
    choice = _at_price(losses, costs, high)
    if _bytes(choice, costs) > budget_bytes:
        choice = cheapest(losses, costs)
    return _fill(choice, losses, costs, budget_bytes)


def _price_bounds(losses: npt.NDArray[np.float64], costs: npt.NDArray[np.int64]) -> tuple[float, float]:
    finite = losses[np.isfinite(losses)]
    largest = max(float(finite.max(initial=0.0)), 1e-300)
    positive = costs[costs > 0]
    return largest * 1e-24 / float(positive.max(initial=1)), largest * 1e6 / float(positive.min(initial=1))


def _at_price(
    losses: npt.NDArray[np.float64], costs: npt.NDArray[np.int64], price: float
) -> npt.NDArray[np.int64]:
    return np.asarray((losses + price * costs).argmin(0))


def cheapest(losses: npt.NDArray[np.float64], costs: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the cheapest allowed candidate of each unit, of equally cheap ones the best."""
    least = np.where(np.isfinite(losses), costs.astype(np.float64), np.inf)
    return np.asarray(np.where(least == least.min(0), losses, np.inf).argmin(0))


def _bytes(choice: npt.NDArray[np.int64], costs: npt.NDArray[np.int64]) -> int:
    return int(costs[choice, np.arange(len(choice))].sum())


def _fill(
    choice: npt.NDArray[np.int64],
    losses: npt.NDArray[np.float64],
    costs: npt.NDArray[np.int64],
    budget_bytes: int,
) -> npt.NDArray[np.int64]:
    """Spend what is left: best gain per byte first, each unit once a round, until nothing fits."""
    choice, units = choice.copy(), np.arange(len(choice))
    left = budget_bytes - _bytes(choice, costs)
    while True:
        extra = costs - costs[choice, units]
        gain = losses[choice, units] - losses
        rate = np.where((extra > 0) & (extra <= left) & (gain > 0), gain / np.maximum(extra, 1), 0.0)
        best = rate.argmax(0)
        order = np.argsort(-rate[best, units], kind="stable")
        order = order[rate[best[order], order] > 0]
        if not len(order):
            return choice
        spent = np.cumsum(extra[best[order], order])
        taken = order[spent <= left]
        if not len(taken):
            taken = order[:1]
        choice[taken] = best[taken]
        left -= int(extra[best[taken], taken].sum())
