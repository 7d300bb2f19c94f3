"""How many samples should a layer's mean count for? Linears at 2.4 and 3.2 bits, selection split."""

from __future__ import annotations

from common import linears, linears_only, measure, parser, run, save

from laq.core import importance


def main() -> None:
    """Print one line a setting and write bench/results/shrinkage.json."""
    arguments = parser(__doc__ or "").parse_args()
    network, splits, stats = linears(arguments.text, arguments.work)
    rows = []
    original = importance.PRIOR_SAMPLES
    for prior in (0.01, 1.0, 8.0, 32.0):
        importance.PRIOR_SAMPLES = prior
        curves = linears_only(measure(network, stats))
        for bpw in (2.4, 3.2):
            row = run(network, stats, curves, splits, bpw=bpw, unit="tile", on=("selection", "test"))
            rows.append({"prior_samples": prior, **row})
    importance.PRIOR_SAMPLES = original
    save("shrinkage", rows, text=splits.source)


if __name__ == "__main__":
    main()
