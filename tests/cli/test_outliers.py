"""--outliers and --group-size auto from measuring to running."""

import json

import pytest


def test_a_measurement_of_several_ways_makes_a_plan_and_an_archive_that_runs(laq_well, tiny_llama, tmp_path):
    measured, folder, file = tmp_path / "measured", tmp_path / "out", tmp_path / "plan.json"
    options = ("--tokens", "512", "--outliers", "auto", "--group-size", "auto")
    laq_well("measure", tiny_llama, "-o", measured, *options)
    laq_well("plan", measured, "--bpw", "10", "-o", file)
    laq_well("inspect", file)
    options = (*options, "--bpw", "10", "--measured", measured, "--no-compare")
    laq_well("quantize", tiny_llama, "-o", folder, *options)
    laq_well("verify", folder)
    laq_well("inspect", folder)
    assert laq_well("run", folder, "--prompt", "a", "--tokens", "3").stdout


def test_every_linear_gets_the_share_that_is_asked_for(laq_well, tiny_llama, tmp_path):
    folder = tmp_path / "out"
    options = ("--tokens", "512", "--outliers", "0.01", "--bpw", "10", "--no-compare")
    laq_well("quantize", tiny_llama, "-o", folder, *options)
    content = json.loads((folder / "laq.json").read_text())
    assert content["version"] == 4
    for weight in content["weights"]:
        rows, columns = weight["shape"]
        share = round(0.01 * rows * columns) if weight["kind"] == "linear" else 0
        assert weight.get("outliers", 0) == share
    assert content["provenance"]["outliers"] == "0.01"
    assert content["plan"]["size_bytes"] >= sum(file.stat().st_size for file in folder.iterdir())
    laq_well("verify", folder)


@pytest.mark.parametrize("command", ["measure", "quantize"])
@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--outliers", "much"), "outliers 'much'"),
        (("--outliers", "0.01", "--low-rank", "2"), "beside the same tiles"),
    ],
)
def test_what_cannot_be_is_refused(laq, refused, tmp_path, command, options, problem):
    limits = ("--bpw", "4") if command == "quantize" else ()
    done = laq(command, tmp_path / "absent", "-o", tmp_path / "out", *limits, *options)
    refused(done, problem)
    assert "hint: choose" in done.stderr
