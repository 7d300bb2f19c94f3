"""Squared error over variance of random weights in groups of 64, by format and by how scales are stored."""

from __future__ import annotations

import numpy as np
import torch
from common import parser, save

from laq.core.formats import CANDIDATES, formats_of
from laq.core.groups import TILE_ROWS
from laq.core.scheme import ScaleFormat, Scheme
from laq.quantizers import Feedback, quantizer_of
from laq.quantizers.common.dequantize import dequantize_columns

GROUP, ROWS = 64, 32768
ALLOWED = formats_of("integer,trellis,nf4,fp4,ternary,residual_binary")
SCALES = (ScaleFormat.LOG8, ScaleFormat.E8M0)


def samples() -> dict[str, torch.Tensor]:
    """Weights [columns, rows] of unit variance."""
    generator = np.random.default_rng(0)
    drawn = {
        "normal": generator.standard_normal((GROUP, ROWS)),
        "Student t5": generator.standard_t(5, (GROUP, ROWS)) / np.sqrt(5 / 3),
    }
    return {name: torch.from_numpy(values.astype(np.float32)) for name, values in drawn.items()}


def left(matrix: torch.Tensor, choice: int, scales: ScaleFormat) -> float:
    """Mean squared error of weights of unit variance, rounded to nearest."""
    quantizer = quantizer_of("rtn", "mse")
    choices = torch.full((1, ROWS // TILE_ROWS), choice, dtype=torch.uint8)
    codes = quantizer.quantize(matrix, Feedback(torch.ones(GROUP), None), choices, scale_format=scales)
    return float((dequantize_columns(codes, choices, scales) - matrix).square().mean())


def main() -> None:
    """Print one line a format and write bench/results/squared_errors.json."""
    parser(__doc__ or "").parse_args()
    drawn, rows = samples(), []
    for index, candidate in enumerate(CANDIDATES):
        if not ALLOWED[index] or not candidate.code_bits:
            continue
        tile_bytes = Scheme(candidate, GROUP, ScaleFormat.LOG8).tile_bytes
        row: dict[str, object] = {
            "format": candidate.name,
            "bits with log8": 8 * tile_bytes / (TILE_ROWS * GROUP),
        }
        for name, matrix in drawn.items():
            for scales in SCALES:
                row[f"{name}, {scales.value}"] = left(matrix, index, scales)
        rows.append(row)
        print(row)
    save("squared_errors", rows)


if __name__ == "__main__":
    main()
