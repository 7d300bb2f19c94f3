"""Tokens per second of SmolLM2-135M: an archive of 4.0 bits per weight against the same network in torch."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from common import save, smollm2_path

from laq import load
from laq.kernels import native
from laq.networks import load_network
from laq.runtime.generate import generate
from laq.runtime.replace import resident_bytes

N_PROMPT, N_NEW = 256, 48


def decode_seconds(module: torch.nn.Module, ids: torch.Tensor) -> Iterator[float]:
    """Yield the seconds of each new token, the first left out: it reads the prompt."""
    last = time.perf_counter()
    for index, _ in enumerate(generate(module, ids, max_new_tokens=N_NEW)):
        now = time.perf_counter()
        if index:
            yield now - last
        last = now


@torch.no_grad()
def prefill_seconds(module: torch.nn.Module, ids: torch.Tensor) -> float:
    """Seconds to read the prompt."""
    start = time.perf_counter()
    module(input_ids=ids, logits_to_keep=1)
    return time.perf_counter() - start


def main() -> None:
    """Print one line a network and write bench/results/decode.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("archive", type=Path, help="what `make demo` wrote")
    parser.add_argument("--rounds", type=int, default=4)
    arguments = parser.parse_args()
    float32 = load_network(smollm2_path()).module
    networks = {
        "torch fp32": float32,
        "torch bf16": load_network(smollm2_path()).module.to(torch.bfloat16),
        "laq": load(arguments.archive),
        "laq bf16": load(arguments.archive).to(torch.bfloat16),
    }
    ids = torch.randint(0, 40_000, (1, N_PROMPT), generator=torch.Generator().manual_seed(0))
    decode: dict[str, list[float]] = {name: [] for name in networks}
    prefill: dict[str, list[float]] = {name: [] for name in networks}
    for _ in range(arguments.rounds):  # in turns, so that all see the same machine
        for name, module in networks.items():
            prefill[name].append(prefill_seconds(module, ids))
            decode[name] += decode_seconds(module, ids)
    archive_bytes = sum(file.stat().st_size for file in arguments.archive.iterdir())
    rows = [
        {
            "network": name,
            "decode_tokens_per_s": 1 / statistics.median(decode[name]),
            "prefill_tokens_per_s": N_PROMPT / statistics.median(prefill[name]),
            "resident_mb": resident_bytes(module) / 1e6,
            "resident_over_archive": resident_bytes(module) / archive_bytes if "laq" in name else None,
        }
        for name, module in networks.items()
    ]
    for row in rows:
        print(row, flush=True)
    library = native.library()
    save("decode", rows, tier="" if library is None else library.tier)


if __name__ == "__main__":
    main()
