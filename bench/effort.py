"""Linears with what `--effort max` adds: all the text that is left for calibration, then distillation."""

from __future__ import annotations

import time
from pathlib import Path

from common import linears, linears_only, measure, parser, save

from laq.allocation.common import allocate
from laq.core.effort import EFFORTS
from laq.core.target import Unit
from laq.distillation import Distillation, distill
from laq.runtime.result import Result
from laq.steps import apply_all, records

BUDGETS = (2.4, 3.2, 4.2)
N_CALIBRATION = 128
"""Sequences of 512 tokens; a quarter runs backward."""

SPLITS = ("selection", "test", "fresh")


def main() -> None:
    """Print one line a budget, before and after distillation, and write bench/results/effort.json."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--bpw", nargs="+", type=float, default=BUDGETS, help="bits per weight")
    arguments.add_argument("--steps", type=int, default=EFFORTS["max"].n_steps, help="steps of distillation")
    options = arguments.parse_args()
    network, splits, stats = linears(options.text, options.work, n_calibration=N_CALIBRATION)
    curves = linears_only(measure(network, stats))
    rows: list[dict] = []
    for bpw in options.bpw:
        plan = allocate(curves, int(bpw * curves.n_params / 8), unit=Unit.TILE)
        (before,) = apply_all(network, [plan], stats)
        start = time.perf_counter()
        settings = Distillation(options.steps)
        state = Path(options.work) / f"distillation-{bpw}"
        made = distill(network, network, before.packed, splits.calibration, settings, checkpoint=state)
        seconds = time.perf_counter() - start
        results = {"before": before, "distilled": Result(made, plan, before.packed)}
        models = {name: (result.model, plan.size_bytes) for name, result in results.items()}
        found = {split: records(network, models, getattr(splits, split), split=split) for split in SPLITS}
        for name in results:
            kl = {f"kl_{split}_nats": found[split][name].kl_nats for split in SPLITS}
            rows.append(
                {
                    "bpw": round(plan.bpw, 4),
                    "which": name,
                    "steps": options.steps if name == "distilled" else 0,
                    **kl,
                    "kl_fresh_stderr_nats": found["fresh"][name].kl_stderr_nats,
                    "perplexity": found["test"][name].perplexity,
                    "top1_agreement": found["test"][name].top1_agreement,
                    "distill_s": round(seconds) if name == "distilled" else 0,
                }
            )
            print(rows[-1], flush=True)
        save("effort", rows, text=splits.source, n_calibration=N_CALIBRATION)


if __name__ == "__main__":
    main()
