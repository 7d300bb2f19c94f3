"""How each weight is stored: with a correction of some rank, or in a product code, where that buys most."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from laq.core.curve import Curves, WeightCurves

PRICE_STEPS = 20
"""Bisections of the price, over 80 octaves: to a ten-thousandth of one."""

LEAST_PRICE, HIGHEST_PRICE = 1e-18, 1e6


@dataclass(frozen=True, slots=True)
class Option:
    """A weight in one way of storing it, with the units of its tiles.

    Parameters
    ----------
    weight : WeightCurves
        Its curves then.
    losses : float64 [n_candidates, n_units]
        Nats per token, infinite where a format is not allowed.
    costs : int64 [n_candidates, n_units]
        Bytes.
    fixed_bytes : int
        Bytes of the weight besides its tiles, such as those of a correction.
    """

    weight: WeightCurves
    losses: npt.NDArray[np.float64]
    costs: npt.NDArray[np.int64]
    fixed_bytes: int

    def at(self, price: float) -> tuple[float, int]:
        """Return loss + price x bytes of the best formats at a price, in nats, and their bytes."""
        best = (self.losses + price * self.costs).argmin(0)[None]
        size = self.fixed_bytes + int(np.take_along_axis(self.costs, best, 0).sum())
        return float(np.take_along_axis(self.losses, best, 0).sum()) + price * size, size


def with_options(curves: Curves, left_bytes: int, *, option: Callable[[WeightCurves], Option]) -> Curves:
    """Return one way for each weight: of least loss + price x bytes, at the price of the budget.

    Parameters
    ----------
    curves : Curves
        With alternatives; returned as they are without.
    left_bytes : int
        Budget of all weights: bytes of the archive less what does not depend on their plans.
    option : callable
        Says what a weight takes in one way.
    """
    if not curves.alternatives:
        return curves
    by_name: dict[str, list[Option]] = {weight.name: [option(weight)] for weight in curves.weights}
    for weight in curves.alternatives:
        by_name[weight.name].append(option(weight))

    def chosen(price: float) -> tuple[list[WeightCurves], int]:
        weights, total = [], 0
        for options in by_name.values():
            found = [each.at(price) for each in options]
            best = min(range(len(found)), key=lambda index: found[index][0])
            weights.append(options[best].weight)
            total += found[best][1]
        return weights, total

    low, high = LEAST_PRICE, HIGHEST_PRICE
    for _ in range(PRICE_STEPS):
        middle = float(np.sqrt(low * high))
        low, high = (middle, high) if chosen(middle)[1] > left_bytes else (low, middle)
    return replace(curves, weights=tuple(chosen(high)[0]), alternatives=())
