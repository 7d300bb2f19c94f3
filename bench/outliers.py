"""Linears with outliers stored by themselves, and with group sizes of their own, at the same bytes."""

from __future__ import annotations

import time

from common import linears, linears_only, measure, parser, run, save

SETTINGS = (
    {},
    {"outliers": "auto"},
    {"group_size": "auto"},
    {"outliers": "auto", "group_size": "auto"},
    {"outliers": 0.003},
)


def main() -> None:
    """Print one line a setting and write bench/results/outliers.json."""
    arguments = parser(__doc__ or "").parse_args()
    network, splits, stats = linears(arguments.text, arguments.work)
    rows = []
    for options in SETTINGS:
        start = time.perf_counter()
        curves = linears_only(measure(network, stats, **options))
        seconds = round(time.perf_counter() - start, 1)
        for bpw in (2.4, 3.2, 4.2):
            row = run(network, stats, curves, splits, bpw=bpw, unit="tile", on=("selection", "test"))
            rows.append({"outliers": 0, "group_size": 64, **options, **row, "measure_s": seconds})
            save("outliers", rows, text=splits.source)


if __name__ == "__main__":
    main()
