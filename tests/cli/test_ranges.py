"""Ranges on the command line: measured, planned, quantized and recorded, or refused before the slow work."""

import json

import pytest

from laq.core.curve import Curves
from laq.ranges import RANGES

OPTIONS = ("--tokens", "512", "--keep", "embed|mlp|layers.1", "--quantizer", "rtn")
INTEGER = ("--format", "integer")


@pytest.fixture(scope="module")
def measured_with_hqq(laq_well, tiny_llama, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hqq")
    return folder, laq_well("measure", tiny_llama, "-o", folder, *OPTIONS, "--range", "hqq")


def test_measurement_records_its_range_and_says_what_comes_next(measured_with_hqq):
    folder, done = measured_with_hqq
    assert Curves.open(folder / "curves").range == "hqq"
    words = " ".join(done.stdout.split())  # long paths are wrapped
    assert "with rtn, range hqq" in words
    assert words.endswith("--bpw X --format integer")


def test_archive_says_how_it_was_made(laq_well, tiny_llama, measured_with_hqq, tmp_path):
    options = (*OPTIONS, *INTEGER, "--range", "hqq", "--measured", measured_with_hqq[0], "--no-compare")
    laq_well("quantize", tiny_llama, "-o", tmp_path / "out", "--bpw", "31", *options)
    assert json.loads((tmp_path / "out" / "laq.json").read_text())["plan"]["range"] == "hqq"
    shown = laq_well("inspect", tmp_path / "out", "--json").content
    assert shown["plan"]["range"] == "hqq"


def test_plan_keeps_the_range(laq_well, measured_with_hqq, tmp_path):
    file = tmp_path / "plan.json"
    content = laq_well("plan", measured_with_hqq[0], "--bpw", "31", *INTEGER, "-o", file, "--json").content
    assert content["range"] == json.loads(file.read_text())["range"] == "hqq"


def test_default_is_mse(measuring, quantizing):
    assert measuring[1].content["range"] == "mse"
    assert quantizing[1].content["plan"]["range"] == "mse"


def test_another_range_than_was_measured_is_refused(laq, refused, tiny_llama, measured_with_hqq, tmp_path):
    options = (*OPTIONS, *INTEGER, "--range", "absmax", "--measured", measured_with_hqq[0])
    done = laq("quantize", tiny_llama, "-o", tmp_path / "out", "--bpw", "31", *options)
    refused(done, "range", "hqq", "absmax")


@pytest.mark.parametrize("formats", ["all", "trellis"])
def test_trellises_with_another_range_are_refused_before_loading(laq, refused, tmp_path, formats):
    options = ("--bpw", "4", "--range", "hqq", "--format", formats)
    done = laq("quantize", tmp_path / "absent", "-o", tmp_path / "out", *options)
    refused(done, "hqq", formats)
    assert "--format integer" in done.stderr
    assert "--range mse" in done.stderr


def test_a_plan_with_trellises_from_another_range_is_refused(laq, refused, measured_with_hqq):
    done = laq("plan", measured_with_hqq[0], "--bpw", "31")
    refused(done, "hqq", "is for integers alone")
    assert "--format integer" in done.stderr


@pytest.mark.parametrize("command", [("quantize", "--bpw", "4"), ("measure",)])
def test_unknown_range_is_refused_with_the_list_before_loading(laq, refused, tmp_path, command):
    name, *limits = command
    done = laq(name, tmp_path / "absent", "-o", tmp_path / "out", *limits, "--range", "magic")
    refused(done, "unknown range 'magic'")
    for name in RANGES.names():
        assert name in done.stderr
