"""Every range of integers with rtn and gptq, equal bits everywhere and bits by tile: KL, seconds, bytes."""

from __future__ import annotations

import time

from common import linears, linears_only, measure, parser, run, save

from laq.ranges import RANGES

SETTINGS = (
    {"bpw": 4.2, "unit": "network"},  # 4 bits
    {"bpw": 4.2, "unit": "tile"},
    {"bpw": 3.2, "unit": "network"},  # 3 bits
    {"bpw": 3.2, "unit": "tile"},
)


def main() -> None:
    """Print one line a setting and write bench/results/ranges.json after each measurement."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--ranges", nargs="*", default=RANGES.names(), help="all by default")
    arguments.add_argument("--quantizers", nargs="*", default=["gptq", "rtn"])
    asked = arguments.parse_args()
    network, splits, stats = linears(asked.text, asked.work)
    rows = []
    for quantizer in asked.quantizers:
        for name in asked.ranges:
            start = time.perf_counter()
            curves = linears_only(measure(network, stats, quantizer=quantizer, range=name))
            seconds = round(time.perf_counter() - start, 1)
            print(f"{name}, measured in {seconds:.0f} s", flush=True)
            about = {"range": name, "measure_s": seconds}
            for setting in SETTINGS:
                on = ("selection", "test", "wide")
                found = run(network, stats, curves, splits, on=on, formats="integer", **setting)
                rows.append(about | found)
            save("ranges", rows, text=splits.source)


if __name__ == "__main__":
    main()
