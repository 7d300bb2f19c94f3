"""Metrics against the KL of 60 weights swapped alone, and the plans that they make of equal bytes."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
from common import calibration_side, linears, linears_only, measure, parser, save, without_orders

from laq.core.formats import CANDIDATES, TRELLISES
from laq.core.scheme import ScaleFormat
from laq.core.target import Unit
from laq.evaluation.divergence import compare
from laq.networks.swapped import Swapped
from laq.sensitivity import Subject
from laq.sensitivity.common.gain_fit import rank_correlation
from laq.sensitivity.common.swaps import quantized_alone, shortened
from laq.steps import allocate, apply_all, records

N_UNITS = 60
BITS = 3
BPW = 3.2
SWAP_TOKENS, METRIC_TOKENS = 256, 128
ORDER = ("fisher", "hessian", "weight_error", "first_order", "kl_swap", "aaai18")
"""Slow ones last: rows are written as they come."""


def main() -> None:
    """Print one line a metric and write bench/results/sensitivity.json."""
    arguments = parser(__doc__ or "").parse_args()
    whole, splits, stats = linears(arguments.text, arguments.work)
    picked = np.random.default_rng(0).choice(len(whole.weights), N_UNITS, replace=False)
    others = [weight.name for index, weight in enumerate(whole.weights) if index not in set(picked.tolist())]
    network = whole.keeping("^(" + "|".join(others).replace(".", r"\.") + ")$")
    held_out = calibration_side(whole, arguments.text, n=2)
    subject = Subject(network, stats, "gptq", 64, ScaleFormat.LOG8, tuple(shortened(held_out, METRIC_TOKENS)))
    truth, rows = None, []
    for name in ORDER:
        start = time.perf_counter()
        curves = measure(network, stats, sensitivity=name, batches=subject.batches)
        seconds = time.perf_counter() - start
        if truth is None:
            truth = _swapped(subject, curves, shortened(held_out[1:], SWAP_TOKENS))
        choice = CANDIDATES.index(TRELLISES[BITS])
        sums = np.array([weight.loss_nats[choice].sum(dtype=np.float64) for weight in curves.weights])
        row = {
            "sensitivity": name,
            "n_units": N_UNITS,
            "spearman": rank_correlation(sums, truth),
            "sum_over_kl": float(sums.sum() / truth.sum()),
            "measure_s": round(seconds, 1),
            **_plan_quality(network, stats, curves, splits),
        }
        rows.append(row)
        print(row, flush=True)
        save("sensitivity", rows, text=splits.source)


def _swapped(subject, curves, batches) -> np.ndarray:
    """KL of each weight at 3 bits in a trellis, the original elsewhere; [n_units]."""
    (values,) = quantized_alone(subject, curves, [CANDIDATES.index(TRELLISES[BITS])])
    module = subject.network.module
    modules = [Swapped(module, {weight.name: values[weight.name]}) for weight in curves.weights]
    return np.array([each.kl_nats for each in compare(module, modules, batches, label="swapping")])


def _plan_quality(network, stats, curves, splits) -> dict:
    """KL of one format a tensor at equal bytes, on 4 sequences that chose nothing; other weights in float."""
    own = without_orders(linears_only(replace(curves, gains=None)), Unit.TENSOR)
    plan = allocate(own, size=int(BPW * own.n_params / 8), unit="tensor")
    (result,) = apply_all(network, [plan], stats)
    found = records(network, {"": (result.model, plan.size_bytes)}, splits.wide[::5], split="wide")[""]
    return {"bpw": round(plan.bpw, 3), "kl_nats": found.kl_nats, "kl_stderr_nats": found.kl_stderr_nats}


if __name__ == "__main__":
    main()
