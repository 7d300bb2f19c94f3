"""The baseline: every unit alike, whatever its own loss; left-over bytes raise units evenly spread."""

from __future__ import annotations

from typing import ClassVar, Literal, final

import numpy as np
import numpy.typing as npt

from laq.allocation import Allocator


@final
class Uniform(Allocator):
    """The format of most bytes that fits everywhere; then the next one for as many units as bytes allow.

    Formats that another one beats at no more bytes, summed over all units, are left out. Which units are
    raised does not depend on their losses: they are spread evenly through the network.
    """

    status: ClassVar[Literal["stable", "experimental"]] = "stable"
    summary: ClassVar[str] = "same format everywhere, left-over bytes spread evenly; looks at no unit's loss"

    def choose(
        self, losses: npt.NDArray[np.float64], costs: npt.NDArray[np.int64], budget_bytes: int
    ) -> npt.NDArray[np.int64]:
        """Return the candidate of each unit; see `Allocator.choose`."""
        ladder = _ladder(losses, costs)
        fits = [c for c in ladder if int(costs[c].sum()) <= budget_bytes]
        if not fits:
            cheapest = np.where(np.isfinite(losses), costs.astype(np.float64), np.inf).argmin(0)
            return np.asarray(cheapest)
        base, n_units = fits[-1], costs.shape[1]
        choice = np.full(n_units, base, np.int64)
        for wider in ladder[len(fits) :][:1]:
            left = budget_bytes - int(costs[base].sum())
            for unit in _spread(n_units):
                extra = int(costs[wider, unit] - costs[base, unit])
                if extra <= left:
                    choice[unit] = wider
                    left -= extra
        return choice


def _ladder(losses: npt.NDArray[np.float64], costs: npt.NDArray[np.int64]) -> list[int]:
    """Return formats that every unit may take and no other beats, by rising bytes."""
    total_bytes, total_losses = costs.sum(1), losses.sum(1)
    ladder: list[int] = []
    for candidate in np.lexsort((total_losses, total_bytes)).tolist():
        below = [total_losses[c] for c in ladder]
        if np.isfinite(total_losses[candidate]) and total_losses[candidate] <= min(below, default=np.inf):
            ladder.append(candidate)
    return ladder


def _spread(n: int) -> npt.NDArray[np.int64]:
    """Return 0 .. n - 1 so that every prefix is spread evenly (golden-ratio sequence)."""
    return np.argsort((np.arange(n) * 0.6180339887498949) % 1.0, kind="stable")
