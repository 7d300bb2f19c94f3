"""How each weight is stored: its correction, group size or product code, whichever buys most."""

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
    losses : float64 [n_formats, n_units]
        Nats per token, infinite where a format is not allowed.
    costs : int64 [n_formats, n_units]
        Bytes.
    fixed_bytes : int
        Bytes of the weight besides its tiles, such as those of a correction.
    """

    weight: WeightCurves
    losses: npt.NDArray[np.float64]
    costs: npt.NDArray[np.int64]
    fixed_bytes: int

    def smallest(self) -> float:
        """Return the fewest bytes; infinite if a tile has no format."""
        least = np.where(np.isfinite(self.losses), self.costs, np.inf).min(0)
        return self.fixed_bytes + float(least.sum())

    def at(self, price: float) -> tuple[float, int]:
        """Return loss + price x bytes of the best formats at a price, in nats, and their bytes."""
        best = (self.losses + price * self.costs).argmin(0)[None]
        size = self.fixed_bytes + int(np.take_along_axis(self.costs, best, 0).sum())
        return float(np.take_along_axis(self.losses, best, 0).sum()) + price * size, size


def _by_name(curves: Curves, option: Callable[[WeightCurves], Option]) -> dict[str, list[Option]]:
    """All ways of each weight, in the network's order."""
    found = {weight.name: [option(weight)] for weight in curves.weights}
    for weight in curves.alternatives:
        found[weight.name].append(option(weight))
    return found


def smallest_options(curves: Curves, *, option: Callable[[WeightCurves], Option]) -> Curves:
    """Return the way of fewest bytes for each weight; for the arguments see `with_options`."""
    if not curves.alternatives:
        return curves
    found = [min(options, key=Option.smallest) for options in _by_name(curves, option).values()]
    return replace(curves, weights=tuple(one.weight for one in found), alternatives=())


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
    by_name = _by_name(curves, option)

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
