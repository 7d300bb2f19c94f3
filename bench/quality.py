"""Linears at the default settings, on test sequences that nothing else in bench/ uses; any budgets."""

from __future__ import annotations

from common import linears, linears_only, measure, parser, run, save


def main() -> None:
    """Print one line a budget and write bench/results/quality.json."""
    arguments = parser(__doc__ or "").parse_args()
    network, splits, stats = linears(arguments.text, arguments.work, n_calibration=64)
    curves = linears_only(measure(network, stats))
    rows = [
        run(network, stats, curves, splits, bpw=bpw, unit=unit, on=("selection", "test", "fresh"))
        for bpw in (2.4, 3.2, 4.2)
        for unit in ("tile",)
    ]
    save("quality", rows, text=splits.source)


if __name__ == "__main__":
    main()
