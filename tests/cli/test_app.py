"""Start-up, version, help, and what reaches which stream."""

import json
import os
import subprocess
import sys

import laq

COMMANDS = (
    "quantize",
    "measure",
    "plan",
    "eval",
    "run",
    "bench",
    "inspect",
    "verify",
    "methods",
    "doctor",
    "demo",
)


def test_version_is_the_packages(laq_well):
    assert laq_well("--version").stdout == f"laq {laq.__version__}\n"


def test_help_lists_every_command_with_a_whole_sentence(laq_well):
    text = laq_well("--help").stdout
    for command in COMMANDS:
        assert f"  {command} " in text
    assert "..." not in text.partition("Commands:")[2]


def test_every_command_has_help_within_80_columns(laq_well):
    for command in COMMANDS:
        text = laq_well(command, "--help").stdout
        assert "Usage: laq " + command in text
        assert max(len(line) for line in text.splitlines()) <= 80


def test_unknown_option_exits_with_2(laq):
    done = laq("plan", "--magic")
    assert done.code == 2
    assert done.stdout == ""


def test_stray_prints_do_not_reach_stdout(laq_well, monkeypatch):
    monkeypatch.setattr("laq.cli.doctor._install_lines", lambda versions: print("stray") or [])
    done = laq_well("doctor", "--json")
    assert json.loads(done.stdout)["install"] == []
    assert done.stderr == "stray\n"


def test_module_form_runs_and_obeys_no_color():
    env = os.environ | {"NO_COLOR": "1", "FORCE_COLOR": "1"}
    command = [sys.executable, "-m", "laq.cli", "doctor"]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 0
    assert "\x1b[3" not in done.stdout
    assert done.stderr == ""


def test_closed_pipe_is_no_error(archive):
    command = f"{sys.executable} -m laq.cli inspect {archive} --json | head -c 10"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stdout == '{"kind": "'
    assert done.stderr == ""
