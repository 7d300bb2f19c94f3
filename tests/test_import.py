"""Start-up is fast, and the public names are the pinned ones."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

HEAVY = ("accelerate", "torch", "transformers")
N_TRIES = 5

RUN_CLI = """
import sys
sys.argv = ["laq", "--help"]
from laq.cli import main
try:
    code = main()
except SystemExit as stop:
    code = stop.code
"""
NAME_HEAVY = f"print('loaded:', *sorted(set(sys.modules) & set({HEAVY!r})))"


def _run(code: str) -> tuple[float, str]:
    """Run code in a fresh interpreter; return the seconds it took and its last line of output."""
    # Workers and coverage reach child interpreters through these and would be timed with laq.
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COV_"))}
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    time_s = time.perf_counter() - start
    assert done.returncode == 0, done.stderr
    return time_s, (done.stdout.splitlines() or [""])[-1]


def _best_time_s(code: str) -> float:
    return min(_run(code)[0] for _ in range(N_TRIES))


def test_import_takes_less_than_300_ms_beyond_the_interpreter():
    assert _best_time_s("import laq") - _best_time_s("pass") < 0.3


def test_import_loads_no_heavy_package():
    assert _run(f"import laq, sys; {NAME_HEAVY}")[1] == "loaded:"


def test_heavy_package_would_be_noticed():
    pytest.importorskip("torch")
    assert _run(f"import torch, sys; {NAME_HEAVY}")[1] == "loaded: torch"


def test_help_takes_less_than_800_ms():
    assert _best_time_s(f"{RUN_CLI}\nassert code in (0, None), code") < 0.8


def test_help_loads_no_heavy_package():
    assert _run(f"{RUN_CLI}\n{NAME_HEAVY}")[1] == "loaded:"


def test_public_names_are_the_pinned_ones():
    import laq

    pinned = (Path(__file__).parent / "public_api.txt").read_text(encoding="utf-8").split()
    assert pinned == sorted(set(pinned)), "public_api.txt: one name a line, sorted"
    assert sorted(laq.__all__) == pinned


def test_every_public_name_can_be_reached():
    import laq

    assert [name for name in laq.__all__ if not hasattr(laq, name)] == []
    assert set(laq.__all__) <= set(dir(laq))
