import json
import os
import subprocess
import sys
import time

import pytest

from laq.core.formats import FAMILIES
from laq.core.plan import Plan


def test_plan_is_within_the_budget_and_can_be_opened_again(laq_well, measured, tmp_path):
    file = tmp_path / "plan.json"
    content = laq_well("plan", measured, "--size", "160KB", "-o", file, "--json").content
    plan = Plan.open(file)
    assert content["size_bytes"] == plan.size_bytes <= 160_000
    assert content["bpw"] == plan.bpw
    assert content["file"] == str(file)


def test_histograms_count_every_tile_once(laq_well, measured):
    content = laq_well("plan", measured, "--size", "160KB", "--json").content
    n_tiles = sum(content["tiles"].values())
    assert n_tiles == 128
    for groups in (content["roles"], content["depth"]):
        assert sum(sum(one["tiles"].values()) for one in groups.values()) == n_tiles
    assert list(content["depth"]) == ["first third", "middle third", "outside blocks"]


def test_text_shows_formats_depth_and_roles(laq_well, measured):
    done = laq_well("plan", measured, "--bpw", "9")
    for word in (
        "bits per weight",
        "tiles by format",
        "by depth",
        "by role",
        "down_proj",
        "0.148 MB allowed",
    ):
        assert word in done.stdout


def test_permuted_control_predicts_a_larger_loss(laq_well, measured):
    budget = ("--size", "150KB", "--json")
    plain = laq_well("plan", measured, *budget).content
    control = laq_well("plan", measured, *budget, "--control", "permuted").content
    assert control["predicted_loss_nats"] > plain["predicted_loss_nats"]


def test_below_two_bits_is_used_where_nothing_else_fits(laq_well, measuring):
    folder, done = measuring
    content = laq_well("plan", folder, "--size", done.content["smallest_bytes"] + 500, "--json").content
    assert set(content["tiles"]) & {"absent", "int1", "ternary"}


def test_budget_out_of_range_tells_the_range(laq, refused, measured):
    refused(laq("plan", measured, "--bpw", "0.5"), "out of range", "possible")


@pytest.mark.parametrize("limits", [(), ("--bpw", "9", "--size", "1MB")])
def test_exactly_one_limit_is_asked_for(laq, refused, measured, limits):
    refused(laq("plan", measured, *limits), "--bpw and --size")


def test_folder_without_a_measurement_is_refused(laq, refused, tmp_path):
    refused(laq("plan", tmp_path, "--bpw", "4"), "curves")


def test_a_fresh_process_takes_less_than_five_seconds_and_no_torch(measured):
    code = (
        "import sys; from laq.cli import app\n"
        f"sys.argv = ['laq', 'plan', {str(measured)!r}, '--bpw', '9', '--json']\n"
        "try: app()\n"
        "finally: print(sorted({'torch', 'transformers'} & set(sys.modules)), file=sys.stderr)"
    )
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ)
    assert time.perf_counter() - start < 5
    assert done.stderr.strip() == "[]"
    assert json.loads(done.stdout)["n_params"] == 131_392


def test_a_file_that_is_no_plan_is_not_overwritten(laq, laq_well, refused, measured, tmp_path):
    file = tmp_path / "plan.json"
    file.write_text("precious")
    refused(laq("plan", measured, "--bpw", "10", "-o", file), "is not a plan")
    assert file.read_text() == "precious"
    file.unlink()
    for bpw in ("10", "11"):
        laq_well("plan", measured, "--bpw", bpw, "-o", file)
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


def test_allocator_can_be_chosen(laq, laq_well, refused, measured):
    options = ("plan", measured, "--bpw", "18", "--unit", "tensor", "--json")
    found = {
        name: laq_well(*options, "--allocator", name).content["predicted_loss_nats"]
        for name in ("ilp", "lagrange", "greedy", "uniform")
    }
    for name in ("lagrange", "greedy", "uniform"):
        assert found["ilp"] <= found[name] * (1 + 1e-9)
    refused(laq("plan", measured, "--bpw", "18", "--allocator", "magic"), "unknown allocator")


def test_help_names_the_formats_there_are(laq):
    shown = " ".join(laq("plan", "--help").stdout.replace("│", " ").split())
    assert f"may take: {', '.join(FAMILIES)};" in shown


def test_unknown_formats_are_refused_before_anything_is_read(laq, refused):
    refused(laq("plan", "nowhere", "--bpw", "4", "--format", "integer,float"), "unknown formats 'float'")
