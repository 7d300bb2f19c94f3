"""Linears only: all blocks rounded at once, and each for what the rounded ones before it return."""

from __future__ import annotations

from common import linears, linears_only, measure, parser, run, save

SETTINGS = ((2.4, "all"), (3.2, "all"), (3.2, "integer"), (4.2, "all"))


def main() -> None:
    """Print one line a setting and write bench/results/sequential.json."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--sequences", type=int, default=16, help="calibration sequences of 512 tokens")
    options = arguments.parse_args()
    network, splits, stats = linears(options.text, options.work, n_calibration=options.sequences)
    curves = linears_only(measure(network, stats))
    rows = []
    for bpw, formats in SETTINGS:
        for sequential in (False, True):
            row = run(
                network, stats, curves, splits, bpw=bpw, unit="tile", formats=formats, sequential=sequential
            )
            rows.append(row)
            save("sequential", rows, text=splits.source, n_calibration=options.sequences)


if __name__ == "__main__":
    main()
