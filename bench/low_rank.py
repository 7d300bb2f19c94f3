"""Linears with corrections of low rank beside their tiles, at the bytes of those without."""

from __future__ import annotations

from common import linears, linears_only, measure, parser, run, save

RANKS = (0, "auto", 4, 8, 16)


def main() -> None:
    """Print one line a setting and write bench/results/low_rank.json."""
    arguments = parser(__doc__ or "").parse_args()
    network, splits, stats = linears(arguments.text, arguments.work)
    rows = []
    for low_rank in RANKS:
        curves = linears_only(measure(network, stats, low_rank=low_rank))
        for bpw in (2.4, 3.2, 4.2):
            row = run(network, stats, curves, splits, bpw=bpw, unit="tile", on=("selection", "test"))
            rows.append({"low_rank": low_rank, **row})
            save("low_rank", rows, text=splits.source)


if __name__ == "__main__":
    main()
