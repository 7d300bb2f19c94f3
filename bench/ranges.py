"""Every range of integers with gptq and rtn, equal bits everywhere and bits by tile: KL, seconds, bytes."""

from __future__ import annotations

import time
from dataclasses import replace

from common import linears, linears_only, measure, parser, run, save

from laq.ranges import RANGES


def main() -> None:
    """Print one line a setting and write bench/results/ranges.json after each of them.

    With equal bits everywhere nothing is chosen: one measurement serves all ranges.
    """
    arguments = parser(__doc__ or "")
    arguments.add_argument("--ranges", nargs="*", default=RANGES.names(), help="all by default")
    arguments.add_argument("--quantizers", nargs="*", default=["gptq", "rtn"])
    arguments.add_argument("--units", nargs="*", default=["network", "tile"])
    arguments.add_argument("--bpw", nargs="*", type=float, default=[4.2, 3.2])
    arguments.add_argument(
        "--on", nargs="*", default=["selection", "test", "wide"], help="splits, test among them"
    )
    asked = arguments.parse_args()
    network, splits, stats = linears(asked.text, asked.work)
    rows = []
    for quantizer in asked.quantizers:
        plain = linears_only(measure(network, stats, quantizer=quantizer))
        for unit in asked.units:
            for name in asked.ranges:
                start = time.perf_counter()
                if unit == "network":
                    curves = replace(plain, range=name)
                else:
                    curves = linears_only(measure(network, stats, quantizer=quantizer, range=name))
                seconds = round(time.perf_counter() - start, 1)
                for bpw in asked.bpw:
                    options = {"bpw": bpw, "unit": unit, "on": tuple(asked.on), "formats": "integer"}
                    found = run(network, stats, curves, splits, **options)
                    rows.append({"range": name, "measure_s": seconds} | found)
                    print(name, flush=True)
                    save("ranges", rows, text=splits.source)


if __name__ == "__main__":
    main()
