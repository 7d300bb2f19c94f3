"""Families of number formats alone and together, uniform and by tile; linears."""

from __future__ import annotations

import time
from dataclasses import replace

from common import linears, linears_only, measure, parser, run, save

from laq.core.curve import Curves
from laq.core.formats.table import PALETTE_BYTES

FAMILIES = "integer,trellis,palette,nf4,fp4,ternary,residual_binary"
UNIFORM_ROOM = 0.2
"""Bits that scales and zero points may take beside the codes of a uniform plan."""

BUDGETS = (3.2, 2.4, 4.2)
CASES = (
    *(("tile", formats, bpw) for bpw in BUDGETS for formats in ("integer", "integer,palette", "palette")),
    *(("network", formats, 4 + UNIFORM_ROOM) for formats in ("integer", "palette", "nf4", "fp4", "trellis")),
    *(("network", formats, 3 + UNIFORM_ROOM) for formats in ("integer", "palette", "trellis")),
    *(
        ("network", formats, 2 + UNIFORM_ROOM)
        for formats in ("integer", "palette", "trellis", "ternary", "residual_binary")
    ),
    *(("tile", formats, bpw) for bpw in BUDGETS for formats in ("trellis", "all", "all,palette")),
    ("tile", "integer,ternary", 2.4),
)
"""Unit, families, bits per weight."""


def priced(curves: Curves, formats: str) -> Curves:
    """Learned entries are stored with every weight."""
    learned = PALETTE_BYTES * len(curves.weights) if "palette" in formats else 0
    return replace(curves, fixed_bytes=curves.fixed_bytes + learned)


def main() -> None:
    """Print one line a case and write bench/results/formats.json."""
    arguments = parser(__doc__ or "").parse_args()
    network, splits, stats = linears(arguments.text, arguments.work, n_calibration=16)
    start = time.perf_counter()
    curves = linears_only(measure(network, stats, formats=FAMILIES))
    print(f"measured {FAMILIES} in {time.perf_counter() - start:.0f} s", flush=True)
    rows = []
    for unit, formats, bpw in CASES:
        own = priced(curves, formats)
        options = {"formats": formats, "floor": unit == "tile"}
        rows.append(run(network, stats, own, splits, bpw=bpw, unit=unit, on=("test", "wide"), **options))
        save("formats", rows, text=splits.source)


if __name__ == "__main__":
    main()
