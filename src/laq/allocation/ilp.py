"""The exact optimum over few units, by integer programming: what other allocators are checked against."""

from __future__ import annotations

from typing import ClassVar, Literal, final

import numpy as np
import numpy.typing as npt

from laq.allocation import Allocator
from laq.core.errors import RequestError

MAX_UNITS = 4096
"""Units up to which branch and bound ends in seconds to minutes; tiles are a hundred times as many."""

TIME_LIMIT_S = 120.0

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
            If there are too many units, no solution in time, or no scipy.
        """
        n_units = losses.shape[1]
        if n_units > MAX_UNITS:
            raise RequestError(
                f"ilp solves up to {MAX_UNITS} units exactly, not {n_units}",
                hint="use --unit tensor, or --allocator lagrange",
            )
        left = budget_bytes
        for _ in range(SOLVES):
            found = _solved(losses, costs, left)
            over = int(costs[found, np.arange(n_units)].sum()) - budget_bytes
            if over <= 0:
                return found
            left -= over  # the solver holds a sum to a relative tolerance, the budget is held to the byte
        return _cheapest(losses, costs)


def _cheapest(losses: npt.NDArray[np.float64], costs: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return np.asarray(np.where(np.isfinite(losses), costs.astype(np.float64), np.inf).argmin(0))


def _solved(
    losses: npt.NDArray[np.float64], costs: npt.NDArray[np.int64], budget_bytes: int
) -> npt.NDArray[np.int64]:
    """Return HiGHS's choice; it may exceed the budget by a rounding error."""
    try:
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import csr_matrix
    except ImportError as error:
        raise RequestError("ilp needs scipy", hint="pip install 'laq[ilp]'") from error
    candidates, units = np.nonzero(np.isfinite(losses))
    n, order = len(units), np.arange(len(units))
    values = losses[candidates, units]
    one_each = csr_matrix((np.ones(n), (units, order)), shape=(losses.shape[1], n))
    sizes = csr_matrix(costs[candidates, units][None].astype(np.float64) / max(budget_bytes, 1))
    found = milp(
        values / max(float(values.max(initial=0.0)), 1e-300),
        constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(sizes, -np.inf, 1)],
        integrality=np.ones(n),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": 0.0, "time_limit": TIME_LIMIT_S},
    )
    if found.x is None:
        fits = int(costs[_cheapest(losses, costs), np.arange(losses.shape[1])].sum()) == budget_bytes
        if fits:  # the cheapest is all there is, and rounding made it too large
            return _cheapest(losses, costs)
        raise RequestError(
            f"ilp found no solution in {TIME_LIMIT_S:.0f} seconds", hint="use --allocator lagrange"
        )
    weight = np.full(losses.shape, -1.0)
    weight[candidates, units] = found.x
    return np.asarray(weight.argmax(0))
