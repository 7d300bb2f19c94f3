"""The exact optimum over few units, by integer programming: what other allocators are checked against."""

from __future__ import annotations

from importlib.util import find_spec
from typing import ClassVar, Literal, final

import numpy as np
import numpy.typing as npt

from laq.allocation import Allocator
from laq.allocation.common.multiplier import spend
from laq.core.errors import RequestError

MAX_UNITS = 4096
"""Units up to which branch and bound ends in seconds to minutes; tiles are a hundred times as many."""

TIME_LIMIT_S = 120.0

OBJECTIVE = 1e3
"""What Lagrange's solution is scaled to: HiGHS stops within 1e-6 of the optimum."""

SOLVES = 8
"""Times the budget is lowered by what a solution exceeds it."""


@final
class Ilp(Allocator):
    """Multiple-choice knapsack, solved by HiGHS: one candidate a unit, least sum of losses within the budget.

    References
    ----------
    Kellerer, Pferschy, Pisinger, Knapsack Problems (2004), chapter 11; Huangfu and Hall, Mathematical
    Programming Computation 10 (2018) 119.
    """

    status: ClassVar[Literal["stable", "experimental"]] = "stable"
    summary: ClassVar[str] = f"exact optimum by integer programming (scipy), for up to {MAX_UNITS} units"

    def choose(
        self, losses: npt.NDArray[np.float64], costs: npt.NDArray[np.int64], budget_bytes: int
    ) -> npt.NDArray[np.int64]:
        """Return the candidate of each unit; see `Allocator.choose`.

        Raises
        ------
        RequestError
            If there are too many units, no proven optimum in time, or no scipy.
        """
        self.check(losses.shape[1])
        best = spend(losses, costs, budget_bytes)
        units = np.arange(losses.shape[1])
        known = float(losses[best, units].sum())
        # nothing better takes a candidate that alone loses more; what is left is of one scale for the solver
        useful = np.where(losses <= known, losses, np.inf)
        left = budget_bytes
        for _ in range(SOLVES if known > 0 else 0):
            found = _solved(useful, costs, left, known)
            if found is None:
                break
            over = int(costs[found, units].sum()) - budget_bytes
            if over <= 0:
                return found if losses[found, units].sum() < known else best
            left -= over  # the solver holds sums to a tolerance, a budget is held to the byte
        return best

    @classmethod
    def check(cls, n_units: int) -> None:
        """Raise RequestError for too many units, or without scipy."""
        if n_units > MAX_UNITS:
            raise RequestError(
                f"ilp solves up to {MAX_UNITS} units exactly, not {n_units}",
                hint="use --unit tensor, or --allocator lagrange",
            )
        if find_spec("scipy") is None:
            raise RequestError("ilp needs scipy", hint="pip install 'laq[ilp]'")


def _solved(
    losses: npt.NDArray[np.float64], costs: npt.NDArray[np.int64], budget_bytes: int, scale: float
) -> npt.NDArray[np.int64] | None:
    """Return HiGHS's choice, None if nothing fits; it may exceed the budget by a rounding error.

    Losses are divided by `scale`, and bytes counted from the cheapest plan on, in their common unit: the
    solver's tolerances are absolute.

    Raises
    ------
    RequestError
        If it did not end in time.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_matrix

    candidates, units = np.nonzero(np.isfinite(losses))
    n = len(units)
    least = np.where(np.isfinite(losses), costs, np.iinfo(np.int64).max).min(0)
    extra = costs[candidates, units] - least[units]
    step = max(1, int(np.gcd.reduce(extra)))
    room = (budget_bytes - int(least.sum())) // step
    if room < 0:
        return None
    one_each = csr_matrix((np.ones(n), (units, np.arange(n))), shape=(losses.shape[1], n))
    found = milp(
        losses[candidates, units] / scale * OBJECTIVE,
        constraints=[
            LinearConstraint(one_each, 1, 1),
            LinearConstraint(csr_matrix((extra // step)[None].astype(np.float64)), -np.inf, room),
        ],
        integrality=np.ones(n),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": 0.0, "time_limit": TIME_LIMIT_S},
    )
    if found.status != 0:
        raise RequestError(
            f"ilp found no proven optimum in {TIME_LIMIT_S:.0f} seconds ({found.message})",
            hint="use --allocator lagrange",
        )
    weight = np.full(losses.shape, -1.0)
    weight[candidates, units] = found.x
    return np.asarray(weight.argmax(0))
