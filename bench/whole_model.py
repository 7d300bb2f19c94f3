"""Whole network, all of the folder counted, integers alone, calibrated on as many tokens as by default."""

from __future__ import annotations

from dataclasses import replace

from common import cached_stats, fixed_splits, measure, parser, rescaled_network, run, save


def main() -> None:
    """Print one line a budget and write bench/results/whole_model.json."""
    arguments = parser(__doc__ or "").parse_args()
    network = rescaled_network()
    splits = fixed_splits(network, arguments.text, n_calibration=64)
    stats = cached_stats(network, splits, arguments.work)
    curves = replace(measure(network, stats), original_bytes=1 << 40)
    rows = []
    for bpw in (2.5, 3.0, 3.5, 4.0, 5.0, 6.0):
        rows.append(
            run(network, stats, curves, splits, formats="integer", bpw=bpw, unit="tile", on=("test", "wide"))
        )
        if bpw in (3.0, 4.0, 5.0):
            options = {"unit": "tensor", "allocator": "uniform"}
            rows.append(
                run(
                    network, stats, curves, splits, formats="integer", bpw=bpw, on=("test", "wide"), **options
                )
            )
    save("whole_model", rows, text=splits.source)


if __name__ == "__main__":
    main()
