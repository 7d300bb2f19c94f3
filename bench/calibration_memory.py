"""Memory that calibration needs beside the weights, on layers as wide as a 7B model's (random weights)."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import torch
from common import parser, save
from transformers import LlamaConfig, LlamaForCausalLM

from laq.calibration.collect import calibrate
from laq.calibration.data import token_batch
from laq.networks import describe


def main() -> None:
    """Calibrate two blocks of a 7B model's width and write bench/results/calibration_memory.json."""
    parser(__doc__ or "").parse_args()
    config = LlamaConfig(
        hidden_size=4096,
        intermediate_size=11008,
        num_attention_heads=32,
        num_hidden_layers=2,
        vocab_size=32000,
    )
    with torch.no_grad():
        network = describe(LlamaForCausalLM(config).to(torch.bfloat16).eval(), architecture="transformers")
    batches = [token_batch(torch.randint(32000, (512,))) for _ in range(4)]
    before = _anonymous_bytes()
    peak, done = [before], threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            peak[0] = max(peak[0], _anonymous_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    calibrate(network, batches)
    done.set()
    watcher.join()
    row = {
        "weights_gb": round(network.original_bytes / 1e9, 2),
        "resident_before_gb": round(before / 1e9, 2),
        "beside_weights_gb": round((peak[0] - before) / 1e9, 2),
        "n_tokens": 2048,
        "seconds": round(time.perf_counter() - start, 1),
    }
    print(row)
    save("calibration_memory", [row])


def _anonymous_bytes() -> int:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon"))


if __name__ == "__main__":
    main()
