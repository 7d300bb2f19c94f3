"""Linears at the default settings, on test sequences that nothing else in bench/ uses; any budgets."""

from __future__ import annotations

from common import cached_stats, fixed_splits, linears_only, measure, parser, rescaled_network, run, save


def main() -> None:
    """Print one line a budget and write bench/results/quality.json."""
    arguments = parser(__doc__ or "").parse_args()
    network = rescaled_network().keeping("embed_tokens")
    splits = fixed_splits(network, arguments.text, n_calibration=64)
    stats = cached_stats(network, splits, arguments.work)
    curves = linears_only(measure(network, stats))
    rows = [
        run(network, stats, curves, splits, bpw=bpw, unit=unit, on=("selection", "test", "fresh"))
        for bpw in (2.4, 3.2, 4.2)
        for unit in ("tile",)
    ]
    save("quality", rows, text=splits.source)


if __name__ == "__main__":
    main()
