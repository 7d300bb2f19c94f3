"""Scale formats on the command line: what was asked for is stored and run, or refused before loading."""

import json

import pytest

from laq.core.curve import Curves
from laq.core.scheme import ScaleFormat

OPTIONS = ("--tokens", "512", "--keep", "embed|mlp|layers.1", "--quantizer", "rtn")


def test_mxfp4_sets_scales_and_groups(laq_well, tiny_llama, tmp_path):
    folder = tmp_path / "out"
    made = ("--bpw", "31", *OPTIONS, "--format", "mxfp4", "--no-compare")
    laq_well("quantize", tiny_llama, "-o", folder, *made)
    content = json.loads((folder / "laq.json").read_text())
    assert (content["version"], content["scale_format"]) == (4, "e8m0")
    assert {weight["group_size"] for weight in content["weights"]} == {32}
    assert all(set(weight["tiles"]) <= {"absent", "fp4"} for weight in content["weights"])
    assert content["plan"]["size_bytes"] >= sum(file.stat().st_size for file in folder.iterdir())
    laq_well("verify", folder)
    assert laq_well("run", folder, "--prompt", "a", "--tokens", "3").stdout


def test_measured_powers_of_two_are_planned_as_mxfp4(laq, laq_well, refused, tiny_llama, tmp_path):
    scales = ("--scale-format", "e8m0", "--group-size", "32", "--format", "fp4,integer")
    laq_well("measure", tiny_llama, "-o", tmp_path / "m", *OPTIONS, *scales)
    assert Curves.open(tmp_path / "m" / "curves").scale_format is ScaleFormat.E8M0
    plan = laq_well("plan", tmp_path / "m", "--bpw", "31", "--format", "mxfp4", "--json").content
    assert plan["scale_format"] == "e8m0"
    laq_well("measure", tiny_llama, "-o", tmp_path / "other", *OPTIONS, "--format", "fp4")
    done = laq("plan", tmp_path / "other", "--bpw", "31", "--format", "mxfp4")
    refused(done, "mxfp4 has scales e8m0 in groups of 32", "log4 in groups of 64")


@pytest.mark.parametrize("command", ["quantize", "measure"])
@pytest.mark.parametrize(
    "options", [("--scale-format", "log8"), ("--group-size", "64"), ("--group-size", "auto")]
)
def test_other_scales_than_its_own_are_refused_before_loading(laq, refused, tmp_path, command, options):
    limit = ("--bpw", "4") if command == "quantize" else ()
    done = laq(command, tmp_path / "absent", "-o", tmp_path / "out", *limit, "--format", "mxfp4", *options)
    refused(done, "mxfp4 has scales e8m0 in groups of 32", options[1])
    words = " ".join(done.stderr.split())
    assert "--format fp4 --scale-format log8 | log4 | float16 | e8m0 --group-size 32 | 64 | 128" in words
    assert "--format mxfp4 --scale-format e8m0 --group-size 32" in words


def test_a_scale_per_channel_is_measured_planned_stored_and_run(laq, laq_well, refused, tiny_llama, tmp_path):
    shared = ("--scale-per", "channel", "--format", "integer")
    done = laq_well("measure", tiny_llama, "-o", tmp_path / "m", *OPTIONS, *shared, "--json")
    assert (done.content["scale_per"], done.content["scale_format"]) == ("channel", "log8")
    plan = laq_well("plan", tmp_path / "m", "--bpw", "31", "--unit", "row", "--format", "integer", "--json")
    assert plan.content["scale_per"] == "channel"
    refused(laq("plan", tmp_path / "m", "--bpw", "31", "--format", "integer"), "channel takes one format")
    wanted = ("quantize", tiny_llama, "-o", tmp_path / "out", "--bpw", "31", *OPTIONS, "--unit", "row")
    measured = ("--measured", tmp_path / "m", "--no-compare")
    refused(laq(*wanted, *measured, "--format", "integer"), "channel", "group")
    laq_well(*wanted, *measured, *shared)
    assert json.loads((tmp_path / "out" / "laq.json").read_text())["scale_per"] == "channel"
    laq_well("verify", tmp_path / "out")
    assert laq_well("run", tmp_path / "out", "--prompt", "a", "--tokens", "3").stdout


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--scale-per", "tile"), "--format integer | binary --scale-format log8 | float16 | e8m0"),
        (("--scale-per", "tile", "--format", "fp4"), "--format integer | binary"),
        (("--scale-per", "tile", "--format", "integer", "--scale-format", "log4"), "log8 | float16 | e8m0"),
        (
            ("--scale-per", "tile", "--format", "integer", "--range", "hqq"),
            "absmax | mse | zero_point",
        ),
        (("--scale-per", "tile", "--format", "integer", "--mixes", "8"), "without --mixes"),
        (("--scale-per", "tile", "--format", "integer", "--sensitivity", "kl_swap"), "fisher | hessian"),
        (("--scale-per", "channel", "--format", "integer"), "--unit row | tensor | network"),
        (("--scale-per", "tensor", "--format", "integer", "--unit", "row"), "--unit tensor | network"),
    ],
)
def test_what_cannot_share_scales_is_refused_with_what_can(laq, refused, tmp_path, options, words):
    done = laq("quantize", tmp_path / "absent", "-o", tmp_path / "out", "--bpw", "4", *options)
    refused(done)
    assert words in " ".join(done.stderr.split())
