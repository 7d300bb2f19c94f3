"""What eight bits in float (e4m3) would leave of the linears, against eight and six bits in integers."""

from __future__ import annotations

import torch
from common import parser, rescaled_network, save

GROUP = 64
SHRINKS = torch.linspace(0.25, 1.0, 61)
"""Scales tried, as shares of the one at which the largest element is the largest code."""


def e4m3(values: torch.Tensor) -> torch.Tensor:
    """Round to e4m3; 448 is its largest number."""
    return values.clamp(-448, 448).to(torch.float8_e4m3fn).float()


def integers(n_bits: int):
    """Round to symmetric integers."""
    largest = 2 ** (n_bits - 1) - 1
    return lambda values: values.round().clamp(-largest, largest)


FORMATS = {
    "fp8": (e4m3, 448.0),
    "int8": (integers(8), 127.0),
    "int7": (integers(7), 63.0),
    "int6": (integers(6), 31.0),
}


def main() -> None:
    """Print one line a format and write bench/results/fp8.json."""
    parser(__doc__ or "").parse_args()
    network = rescaled_network().keeping("embed_tokens")
    errors = dict.fromkeys(FORMATS, 0.0)
    total = 0.0
    for weight in network.weights[::7]:
        groups = network.weight(weight.name).reshape(-1, GROUP)
        total += float(groups.square().sum())
        for name, (rounded, largest) in FORMATS.items():
            full = groups.abs().amax(1, keepdim=True).clamp(min=1e-12) / largest
            tried = torch.stack(
                [(rounded(groups / (full * s)) * full * s - groups).square().sum(1) for s in SHRINKS]
            )
            errors[name] += float(tried.amin(0).sum())
    rows = [{"format": name, "error_over_energy": error / total} for name, error in errors.items()]
    for row in rows:
        print(row)
    save("fp8", rows)


if __name__ == "__main__":
    main()
