"""Linears only, integers only, at equal bits: units of decision, quantizers, and the permuted control."""

from __future__ import annotations

from common import linears, linears_only, measure, parser, run, save


def main() -> None:
    """Print one line a setting and write bench/results/ladder.json."""
    arguments = parser(__doc__ or "").parse_args()
    network, splits, stats = linears(arguments.text, arguments.work)
    rows: list[dict] = []
    gptq = linears_only(measure(network, stats, quantizer="gptq"))
    for bpw in (2.4, 3.2, 4.2):
        for unit in ("tile", "tensor"):
            rows.append(run(network, stats, gptq, splits, formats="integer", bpw=bpw, unit=unit))
    for unit in ("row", "network"):
        rows.append(run(network, stats, gptq, splits, formats="integer", bpw=3.2, unit=unit))
    rows.append(run(network, stats, gptq, splits, formats="integer", bpw=4.2, unit="network"))
    for bpw in (3.2, 4.2):
        rows.append(
            run(network, stats, gptq, splits, formats="integer", bpw=bpw, unit="tile", control="permuted")
        )
    rtn = linears_only(measure(network, stats, quantizer="rtn"))
    for unit in ("tile", "row", "tensor", "network"):
        rows.append(run(network, stats, rtn, splits, formats="integer", bpw=3.2, unit=unit))
    save("ladder", rows, text=splits.source)


if __name__ == "__main__":
    main()
