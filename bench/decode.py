"""Tokens per second of SmolLM2-135M: an archive against the same network in torch, and against a GGUF."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from common import save, smollm2_path

from laq import load
from laq.benchmark import network_writer, reading_contender, same_threads
from laq.evaluation.llama_cpp import gguf_writer
from laq.evaluation.speed import text_speeds
from laq.kernels import native
from laq.networks import load_network
from laq.runtime.replace import resident_bytes

N_PROMPT, N_NEW = 256, 48


def main() -> None:
    """Print one line a network and write bench/results/decode.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("archive", type=Path, help="what `make demo` wrote")
    parser.add_argument("--gguf", type=Path, help="a file that llama.cpp runs; needs llama-cpp-python")
    parser.add_argument("--rounds", type=int, default=4)
    arguments = parser.parse_args()
    networks = {
        "torch fp32": load_network(smollm2_path()).module,
        "torch bf16": load_network(smollm2_path()).module.to(torch.bfloat16),
        "laq": load(arguments.archive),
        "laq bf16": load(arguments.archive).to(torch.bfloat16),
    }
    lengths = {"n_prompt": N_PROMPT, "n_new": N_NEW}
    with same_threads() as threads:
        writers = [
            network_writer(name, module, **lengths, repeats="laq" in name)
            for name, module in networks.items()
        ]
        if arguments.gguf is not None:
            writers.append(gguf_writer(arguments.gguf, threads=threads, **lengths))
        speeds, read_bytes_per_s = text_speeds(
            writers, reading_contender(), n_prompt=N_PROMPT, rounds=arguments.rounds
        )
    archive_bytes = sum(file.stat().st_size for file in arguments.archive.iterdir())
    resident = {name: resident_bytes(module) for name, module in networks.items()}
    rows = [
        {
            "network": speed.name,
            "decode_tokens_per_s": speed.decode_tokens_per_s,
            "prefill_tokens_per_s": speed.prefill_tokens_per_s,
            "mb_per_token": speed.bytes_per_token / 1e6,
            "share_of_read": speed.share_of_read,
            "remark": speed.remark or None,
            "resident_mb": resident[speed.name] / 1e6 if speed.name in resident else None,
            "resident_over_archive": resident[speed.name] / archive_bytes if "laq" in speed.name else None,
        }
        for speed in speeds
    ]
    for row in rows:
        print(row, flush=True)
    save("decode", rows, tier=native.status().tier, read_gb_per_s=read_bytes_per_s / 1e9)


if __name__ == "__main__":
    main()
