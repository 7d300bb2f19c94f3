"""Every method alone, at about 4 and 3 bits, uniform and by tile; linears: KL, seconds, bytes.

Each row changes one thing of `rtn` or `gptq` on integers with scales of four bits. Rows that are in
bench/results/methods.json already are kept, so that the table can be made in pieces.
"""

from __future__ import annotations

import json
import time
from typing import Any

from common import RESULTS, linears, linears_only, parser, save, without_orders

from laq.core.errors import LaqError
from laq.core.target import Unit
from laq.steps import allocate, apply, measure, records

BUDGETS = {"4 bits": 4.25, "3 bits": 3.25}
"""Bits per weight, scales and zero points counted."""

INTEGERS = {"formats": "integer"}
RTN = {"quantizer": "rtn", **INTEGERS}
CASES: dict[str, dict[str, Any]] = {
    "rtn": RTN,
    "gptq": INTEGERS,
    "default: gptq, all formats": {},
    **{f"quantizer {name}": {"quantizer": name, **INTEGERS} for name in ("descent", "autoround", "adaround")},
    **{
        f"rtn, range {name}": {"range": name, **RTN}
        for name in ("absmax", "zero_point", "percentile", "hqq", "learned")
    },
    **{
        f"gptq, format {name}": {"formats": name}
        for name in ("trellis", "palette", "nf4", "fp4", "product", "residual_binary", "ternary", "binary")
    },
    **{f"gptq, scales {name}": {"scale_format": name, **INTEGERS} for name in ("log8", "float16", "e8m0")},
    "gptq, format mxfp4": {"formats": "mxfp4"},
    **{
        f"rtn, scale per {name}": {"scale_per": name, "scale_format": "float16", **RTN}
        for name in ("tile", "channel", "tensor")
    },
    **{f"gptq, groups of {size}": {"group_size": size, **INTEGERS} for size in (32, 128, "auto")},
    **{
        f"rtn, transform {name}": {"transform": name, **RTN}
        for name in ("awq", "equalization", "column_norm")
    },
    **{
        f"gptq, transform {name}": {"transform": name, **INTEGERS}
        for name in ("awq", "equalization", "column_norm")
    },
    "gptq, low rank auto": {"low_rank": "auto", **INTEGERS},
    "gptq, outliers auto": {"outliers": "auto", **INTEGERS},
    "gptq, sequential": INTEGERS,
}


def main() -> None:
    """Print one line a row and write bench/results/methods.json."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--only", nargs="+", help="words, of which a case must hold one")
    options = arguments.parse_args()
    path = RESULTS / "methods.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    network, splits, stats = linears(options.text, options.work)
    for case, settings in CASES.items():
        if options.only and not any(word in case for word in options.only):
            continue
        wanted = [
            (unit, label)
            for unit in ("network", "tile")
            for label in BUDGETS
            if not any((row["method"], row["unit"], row["bits"]) == (case, unit, label) for row in rows)
        ]
        if not wanted:
            continue
        start = time.perf_counter()
        curves = linears_only(measure(network, stats, **settings))
        measure_s = time.perf_counter() - start
        for unit, label in wanted:
            own = without_orders(curves, Unit(unit))
            row: dict[str, Any] = {
                "method": case,
                "unit": unit,
                "bits": label,
                "measure_s": round(measure_s, 1),
            }
            start = time.perf_counter()
            try:
                plan = allocate(
                    own,
                    bpw=BUDGETS[label],
                    unit=unit,
                    formats=settings.get("formats", "all"),
                    floor=unit == "tile",
                )
                batches = splits.calibration if "sequential" in case else ()
                result = apply(network, plan, stats, sequential=batches)
            except LaqError as error:
                print(case, unit, label, str(error).splitlines()[0], flush=True)
                continue
            row |= {"bpw": round(plan.bpw, 3), "size_bytes": plan.size_bytes}
            row["quantize_s"] = round(time.perf_counter() - start, 1)
            found = records(network, {"": (result.model, plan.size_bytes)}, splits.test, split="test")[""]
            row |= {"kl_nats": found.kl_nats, "top1_agreement": found.top1_agreement}
            rows.append(row)
            print(row, flush=True)
            save("methods", rows, text=splits.source)


if __name__ == "__main__":
    main()
