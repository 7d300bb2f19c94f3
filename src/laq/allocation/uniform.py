"""The baseline: every unit alike, whatever its loss; left-over bytes raise units evenly spread in order."""

from __future__ import annotations

from typing import ClassVar, Literal, final

import numpy as np
import numpy.typing as npt

from laq.allocation import Allocator


@final
class Uniform(Allocator):
    """The widest format that fits everywhere; then the next one for as many units as bytes allow.

    Which units are raised does not depend on their losses: they are spread evenly through the network.
    """

    status: ClassVar[Literal["stable", "experimental"]] = "stable"
    summary: ClassVar[str] = "same width everywhere, left-over bytes spread evenly; looks at no loss"

    def choose(
        self, losses: npt.NDArray[np.float64], costs: npt.NDArray[np.int64], budget_bytes: int
    ) -> npt.NDArray[np.int64]:
        """Return the candidate of each unit; see `Allocator.choose`."""
        n_candidates, n_units = costs.shape
        allowed = np.asarray(np.isfinite(losses).all(1))
        fits = [c for c in range(n_candidates) if allowed[c] and int(costs[c].sum()) <= budget_bytes]
        if not fits:
            cheapest = np.where(np.isfinite(losses), costs.astype(np.float64), np.inf).argmin(0)
            return np.asarray(cheapest)
        base = max(fits)
        wider = [c for c in range(base + 1, n_candidates) if allowed[c]]
        choice = np.full(n_units, base, np.int64)
        if wider:
            left = budget_bytes - int(costs[base].sum())
            for unit in _spread(n_units):
                extra = int(costs[wider[0], unit] - costs[base, unit])
                if extra <= left:
                    choice[unit] = wider[0]
                    left -= extra
        return choice


def _spread(n: int) -> npt.NDArray[np.int64]:
    """Return 0 .. n - 1 so that every prefix is spread evenly (golden-ratio sequence)."""
    return np.argsort((np.arange(n) * 0.6180339887498949) % 1.0, kind="stable")
