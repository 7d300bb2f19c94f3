"""The command line on a real network, from the file to proof."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

BPW = 4.0
N_PARAMS = 134_515_008
MAX_RSS_BYTES = 4e9


def run_laq(*arguments: object) -> str:
    """Run a command in a process of its own; return what it printed."""
    command = [sys.executable, "-m", "laq.cli", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"NO_COLOR": "1"})
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def quantized(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """Return the archive at four bits per weight, and what `laq quantize --json` said."""
    folder = tmp_path_factory.mktemp("smollm2") / "out"
    return folder, json.loads(run_laq("quantize", smollm2_path, "-o", folder, "--bpw", BPW, "--json"))


def test_folder_uses_the_budget_and_stays_within_it(quantized):
    folder, content = quantized
    size_bytes = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    budget_bytes = int(BPW * N_PARAMS / 8)
    assert content["plan"]["budget_bytes"] == budget_bytes
    assert 0.995 * budget_bytes <= size_bytes <= budget_bytes


def test_quantizing_stays_below_four_gigabytes(quantized):
    del quantized
    # kilobytes on Linux, bytes on macOS
    unit = 1 if sys.platform == "darwin" else 1024
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit < MAX_RSS_BYTES


def test_winner_is_no_worse_than_uniform_where_it_was_chosen(quantized):
    comparisons = {one["label"]: one for one in quantized[1]["comparisons"]}
    kept = quantized[1]["verdict"].partition("kept ")[2].partition(":")[0]
    assert comparisons[kept]["selection"]["kl_nats"] <= comparisons["uniform"]["selection"]["kl_nats"]


def test_archive_verifies(quantized):
    assert json.loads(run_laq("verify", quantized[0], "--json"))["is_intact"]


def test_loss_on_the_test_split_is_small_and_the_one_that_was_told(quantized, smollm2_path):
    folder, content = quantized
    record = json.loads(run_laq("eval", folder, "--reference", smollm2_path, "--json"))
    assert 0 < record["kl_nats"] < 0.5
    assert record["kl_nats"] == pytest.approx(content["record"]["kl_nats"], rel=1e-4)
    assert record["size_bytes"] <= content["plan"]["budget_bytes"]
