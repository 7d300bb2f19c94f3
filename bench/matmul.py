"""One packed matrix by 1 to 512 inputs, weights streamed from memory, against other runtimes."""

from __future__ import annotations

import argparse

import torch
from common import save

from laq.benchmark import product_contenders, same_threads
from laq.evaluation.speed import product_speeds
from laq.kernels import native

SQUARE = (4096, 4096)
SETTINGS = {
    SQUARE: (1, 4, 16, 128, 512),
    (576, 1536): (1,),
    (1536, 576): (1,),
    (4096, 11008): (1,),
    (11008, 4096): (1,),
    (16, 4096): (1,),
    (4096, 4090): (1,),
}
"""Numbers of inputs for each shape."""


def measure(shape: tuple[int, int], numbers: tuple[int, ...], threads: int, seconds: float) -> list[dict]:
    """Return one row a contender and number of inputs."""
    contenders, reading, missing = product_contenders(shape, threads=threads)
    for name, install in missing.items():
        print(f"without {name}: {install}")
    rows = []
    for n in numbers:
        found = product_speeds(contenders, reading, torch.randn(n, shape[1]), seconds=seconds)
        of_four = next(speed.time_s for speed in found if speed.name == "laq 4 bit")
        rows += [
            {
                "shape": f"{shape[0]} x {shape[1]}",
                "n_inputs": n,
                "what": speed.name,
                "us": speed.time_s * 1e6,
                "gb_per_s": speed.weight_bytes / speed.time_s / 1e9,
                "share_of_read": speed.share_of_read,
                "times_laq_4_bit": speed.time_s / of_four,
            }
            for speed in found
        ]
    return rows


def main() -> None:
    """Print one line a measurement and write bench/results/matmul.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=1.5, help="time for each contender")
    arguments = parser.parse_args()
    rows = []
    with same_threads() as threads:
        for shape, numbers in SETTINGS.items():
            found = measure(shape, numbers, threads, arguments.seconds)
            for row in found:
                print(
                    f"{row['shape']:>13s} x {row['n_inputs']:<4d} {row['what']:18s} {row['us']:10.1f} us "
                    f"{row['gb_per_s']:6.1f} GB/s {row['share_of_read']:5.2f} read "
                    f"{row['times_laq_4_bit']:6.2f}",
                    flush=True,
                )
            rows += found
        save("matmul", rows, tier=native.status().tier, threads=threads)


if __name__ == "__main__":
    main()
