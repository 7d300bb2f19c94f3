"""KL predicted by curves, as they are and with gains from mixes, against KL on other sequences of the text.

Mixes run on every third of the sequences between the selection and the test split, KL is taken on the others.
"""

from __future__ import annotations

import time

import numpy as np
from common import interleaved, linears, linears_only, measure, parser, save, without_orders

from laq.core.target import Unit
from laq.sensitivity.common.gain_fit import rank_correlation
from laq.sensitivity.common.mixes import gains_of, run_mixes
from laq.steps import allocate, apply_all, records

N_MIXES = 24
N_SEQUENCES = 24
BUDGETS = {
    "tile": (2.5, 3.0, 4.0, 6.0),
    "row": (2.7, 3.5, 5.0),
    "tensor": (2.5, 3.2, 4.5),
    "network": (3.3, 4.3),
}
"""Bits per weight, as bench/common.py counts them."""

WITHOUT_GAINS = (("tile", 3.0), ("tensor", 3.2))
"""Where the plan that curves without gains choose is measured too."""


def main() -> None:
    """Print one line a budget and write bench/results/prediction.json."""
    arguments = parser(__doc__ or "").parse_args()
    network, splits, stats = linears(arguments.text, arguments.work)
    plain = measure(network, stats)
    start = time.perf_counter()
    sequences = interleaved(network, arguments.text, n=N_SEQUENCES)
    others = [one for index, one in enumerate(sequences) if index % 3]
    runs = run_mixes(plain, network, stats, sequences[::3], n_mixes=N_MIXES)
    with_gains = plain.with_gains(gains_of(runs))
    np.savez(arguments.work / "mixes.npz", losses=runs.losses, kl_nats=runs.kl_nats, classes=runs.classes)
    seconds = time.perf_counter() - start
    gains = with_gains.gains
    print(f"{seconds:.0f} s", gains, flush=True)
    rows: list[dict] = []
    for unit, budgets in BUDGETS.items():
        before, after = (without_orders(linears_only(each), Unit(unit)) for each in (plain, with_gains))
        for bpw in budgets:
            size = int(bpw * after.n_params / 8)
            plan = allocate(after, size=size, unit=unit)
            own = allocate(before, size=size, unit=unit)
            results = apply_all(network, [plan, own] if (unit, bpw) in WITHOUT_GAINS else [plan], stats)
            models = {
                name: (result.model, result.plan.size_bytes)
                for name, result in zip(("gains", "plain"), results, strict=False)
            }
            found = records(network, models, others, split="others")
            row = {
                "unit": unit,
                "bpw": round(plan.bpw, 3),
                "kl_nats": found["gains"].kl_nats,
                "kl_stderr_nats": found["gains"].kl_stderr_nats,
                "predicted": plan.predicted_loss_nats,
                "predicted_over_kl": plan.predicted_loss_nats / found["gains"].kl_nats,
                "sum_of_curves": _sum(plain, plan),
            }
            row["curves_over_kl"] = row["sum_of_curves"] / row["kl_nats"]
            if "plain" in found:
                row["kl_of_plan_without_gains"] = found["plain"].kl_nats
            rows.append(row)
            print(row, flush=True)
            about = gains.to_json() | {"n_mixes": N_MIXES, "mixes_s": round(seconds, 1)} | _summary(rows)
            save("prediction", rows, text=splits.source, gains=about)
    print(_summary(rows))


def _sum(plain, plan) -> float:
    """Loss of a plan by the curves without gains."""
    return sum(
        float(np.take_along_axis(own.loss_nats, weight.choices[None].astype(int), 0).sum())
        for own, weight in zip(plain.weights, plan.weights, strict=True)
    )


def _summary(rows: list[dict]) -> dict:
    """Median and worst factor between predicted and measured, and rank correlation."""
    result = {}
    kl = np.array([row["kl_nats"] for row in rows])
    for key in ("predicted", "sum_of_curves"):
        predicted = np.array([row[key] for row in rows])
        factors = np.exp(np.abs(np.log(predicted / kl)))
        result[key] = {
            "median_factor": float(np.median(factors)),
            "worst_factor": float(factors.max()),
            "within_20_percent": int((np.abs(predicted / kl - 1) <= 0.2).sum()),
            "rank_correlation": rank_correlation(predicted, kl),
        }
    return result


if __name__ == "__main__":
    main()
