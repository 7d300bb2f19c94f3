"""How far is each allocator from the exact optimum over the tensors of a real network, and how slow?"""

from __future__ import annotations

import time

from common import linears, linears_only, measure, parser, save

from laq.allocation.common import allocate
from laq.core.errors import BudgetError
from laq.core.target import Unit

BUDGETS = (2.2, 2.4, 2.8, 3.2, 3.7, 4.2, 5.2, 6.2)


def main() -> None:
    """Print one line a budget and write bench/results/allocators.json."""
    arguments = parser(__doc__ or "").parse_args()
    network, splits, stats = linears(arguments.text, arguments.work)
    curves = linears_only(measure(network, stats))
    rows = []
    for bpw in BUDGETS:
        losses, seconds = {}, {}
        for name in ("ilp", "lagrange", "greedy", "uniform"):
            start = time.perf_counter()
            try:
                plan = allocate(curves, int(bpw * curves.n_params / 8), unit=Unit.TENSOR, allocator=name)
            except BudgetError:
                break
            losses[name], seconds[name] = plan.predicted_loss_nats, time.perf_counter() - start
        else:
            row = {"bpw": bpw, "n_units": len(curves.weights), "ilp_nats": losses["ilp"]}
            row |= {f"{name}_gap_percent": 100 * (losses[name] / losses["ilp"] - 1) for name in losses}
            del row["ilp_gap_percent"]
            rows.append(row | {f"{name}_s": round(seconds[name], 3) for name in seconds})
            print(rows[-1], flush=True)
    save("allocators", rows, text=splits.source)


if __name__ == "__main__":
    main()
