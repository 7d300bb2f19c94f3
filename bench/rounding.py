"""Linears only, integers only: rounding methods side by side on the same plans, uniform and by tile."""

from __future__ import annotations

from dataclasses import replace

from common import linears, linears_only, measure, parser, run, save

SETTINGS = ((3.2, "network"), (3.2, "tile"), (4.2, "network"), (4.2, "tile"), (2.4, "tile"))
METHODS = ("rtn", "gptq", "descent", "adaround", "autoround")


def main() -> None:
    """Print one line a setting and write bench/results/rounding.json."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--methods", nargs="+", default=METHODS, help="quantizers, all if not given")
    options = arguments.parse_args()
    network, splits, stats = linears(options.text, options.work)
    # methods that start from gptq take its plans, so that only what they add differs; rtn takes its own
    measured = {
        name: linears_only(measure(network, stats, quantizer=name))
        for name in ("rtn", "gptq")
        if name == "gptq" or name in options.methods
    }
    rows: list[dict] = []
    for bpw, unit in SETTINGS:
        for name in options.methods:
            curves = replace(measured.get(name, measured["gptq"]), quantizer=name)
            rows.append(run(network, stats, curves, splits, formats="integer", bpw=bpw, unit=unit))
        save("rounding", rows, text=splits.source)


if __name__ == "__main__":
    main()
