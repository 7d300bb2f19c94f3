"""Transforms before quantization: linears of the rescaled network at equal bytes; chosen on `selection`."""

from __future__ import annotations

import time

from common import linears, linears_only, parser, run, save

from laq.core.scheme import stored_as
from laq.measuring import Measuring, measure_transformed, transform_network
from laq.transforms import TRANSFORMS, transforms_of

BPWS = (2.4, 3.2, 4.2)


def main() -> None:
    """Print one line a budget and write bench/results/transforms.json."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--transforms", nargs="*", default=["", *TRANSFORMS.names(), "column_norm,awq"])
    arguments.add_argument("--quantizers", nargs="*", default=["gptq", "rtn"])
    arguments.add_argument("--formats", nargs="*", default=["all", "integer"])
    arguments.add_argument("--bpw", nargs="*", type=float, default=BPWS)
    asked = arguments.parse_args()
    network, splits, stats = linears(asked.text, asked.work, n_calibration=64)
    rows = []
    for quantizer in asked.quantizers:
        for text in asked.transforms:
            start = time.perf_counter()
            measuring = Measuring(quantizer, "mse", stored_as("all"), transforms_of(text))
            made = transform_network(network, stats, measuring)
            seconds = round(time.perf_counter() - start, 1)
            curves = linears_only(measure_transformed(network, made, measuring))
            for formats in asked.formats:
                for bpw in asked.bpw:
                    # the transformed network computes the same: it stands for the original in `run`
                    row = run(made.network, made.stats, curves, splits, bpw=bpw, unit="tile", formats=formats)
                    rows.append({"transform": text or "none", **row, "transform_s": seconds})
                    save("transforms", rows, text=splits.source)


if __name__ == "__main__":
    main()
