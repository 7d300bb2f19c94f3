"""Time and peak memory of each step on SmolLM2-135M; start-up times; `laq plan` alone."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from common import parser, save, smollm2_path

from laq.calibration.data import CALIBRATION_TOKENS, GRADIENT_TOKENS
from laq.core.curve import Curves
from laq.steps import allocate, apply, calibrate, measure, open_network, records, splits_of


def main() -> None:
    """Print one line a step and write bench/results/cost.json."""
    parser(__doc__ or "").parse_args()
    rows = []

    def step(name: str, work: Callable[[], object]) -> object:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew
        start = time.perf_counter()
        value = work()
        row = {
            "step": name,
            "seconds": round(time.perf_counter() - start, 2),
            "peak_gb": round(_peak_gb(), 2),
        }
        rows.append(row)
        print(f"{name:44s} {row['seconds']:8.2f} s   peak {row['peak_gb']:.2f} GB", flush=True)
        return value

    network = step("load", lambda: open_network(smollm2_path()))
    splits = step("tokenize, split", lambda: splits_of(network, None))
    tokens = f"{CALIBRATION_TOKENS} tokens, {GRADIENT_TOKENS} backward"
    stats = step(f"calibrate ({tokens})", lambda: calibrate(network, splits))
    curves = step("measure", lambda: measure(network, stats))
    plan = step("allocate", lambda: allocate(curves, bpw=4.0))
    result = step("quantize and pack", lambda: apply(network, plan, stats))
    with tempfile.TemporaryDirectory() as folder:
        step("save, reopen, compare", lambda: result.save(Path(folder) / "out"))
        models = {"": (result.model, plan.size_bytes)}
        step("evaluate (2560 tokens)", lambda: records(network, models, splits.test, split="test"))
        curves.save(Path(folder) / "curves")
        Curves.open(Path(folder) / "curves")
        rows += [_command(name, command) for name, command in _commands(Path(folder))]
    save("cost", rows)


def _commands(folder: Path) -> list[tuple[str, list[str]]]:
    laq = [sys.executable, "-m", "laq.cli"]
    return [
        ("bare interpreter", [sys.executable, "-c", "pass"]),
        ("import laq", [sys.executable, "-c", "import laq"]),
        ("laq --help", [*laq, "--help"]),
        ("laq plan", [*laq, "plan", str(folder), "--bpw", "3.5"]),
    ]


def _command(name: str, command: list[str]) -> dict[str, object]:
    times = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    print(f"{name:44s} {median(times):8.3f} s   (median of 5)", flush=True)
    return {"step": name, "seconds": round(median(times), 3), "peak_gb": None}


def _peak_gb() -> float:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")) / 1e9


if __name__ == "__main__":
    main()
