"""--low-rank from measuring to running."""

import json

import pytest


def test_a_measurement_with_ranks_makes_a_plan_and_an_archive_that_runs(laq_well, tiny_llama, tmp_path):
    measured, folder = tmp_path / "measured", tmp_path / "out"
    options = ("--tokens", "512", "--low-rank", "auto")
    laq_well("measure", tiny_llama, "-o", measured, *options)
    laq_well("plan", measured, "--bpw", "10")
    options = (*options, "--bpw", "10", "--measured", measured, "--no-compare")
    laq_well("quantize", tiny_llama, "-o", folder, *options)
    laq_well("verify", folder)
    assert laq_well("run", folder, "--prompt", "a", "--tokens", "3").stdout


def test_every_linear_gets_the_rank_that_is_asked_for(laq_well, tiny_llama, tmp_path):
    folder = tmp_path / "out"
    options = ("--tokens", "512", "--low-rank", "2", "--bpw", "10", "--no-compare")
    laq_well("quantize", tiny_llama, "-o", folder, *options)
    content = json.loads((folder / "laq.json").read_text())
    assert content["version"] == 3
    ranks = {weight["kind"]: weight.get("rank", 0) for weight in content["weights"]}
    assert ranks == {"tied": 0, "linear": 2}
    assert content["plan"]["size_bytes"] >= sum(file.stat().st_size for file in folder.iterdir())


@pytest.mark.parametrize("command", ["measure", "quantize"])
def test_what_is_no_rank_is_refused(laq, refused, tmp_path, command):
    limits = ("--bpw", "4") if command == "quantize" else ()
    done = laq(command, tmp_path / "absent", "-o", tmp_path / "out", *limits, "--low-rank", "much")
    refused(done, "a correction of rank 'much'")
    assert "hint: choose a number from 0 to 256, or auto" in done.stderr
