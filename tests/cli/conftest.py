"""The command line in this process, and a measured and a quantized tiny network."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from laq.cli import app

TOKENS = "512"
BPW = "10"


@dataclass(frozen=True)
class Done:
    """A command that ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def content(self) -> dict[str, Any]:
        """What --json printed: one object, nothing else."""
        content = json.loads(self.stdout)
        assert isinstance(content, dict)
        assert self.stdout.count("\n") == 1
        return content


def run_laq(*arguments: object) -> Done:
    """Run a command, by its words."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="laq")
    return Done(done.exit_code, done.stdout, done.stderr)


def run_well(*arguments: object) -> Done:
    """Run a command that must not fail."""
    done = run_laq(*arguments)
    assert done.code == 0, done.stderr
    return done


def assert_refused(done: Done, *words: str, code: int = 2) -> None:
    """Nothing on stdout, no traceback, one error line that names the words, and a hint."""
    assert done.code == code, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    error, *hints = [line for line in done.stderr.splitlines() if line.startswith(("error: ", "hint: "))]
    assert error.startswith("error: ")
    for word in words:
        assert word in error
    assert [hint for hint in hints if hint.startswith("hint: ")]


@pytest.fixture(scope="session")
def laq() -> Callable[..., Done]:
    """Run a command, by its words."""
    return run_laq


@pytest.fixture(scope="session")
def laq_well() -> Callable[..., Done]:
    """Run a command that must not fail."""
    return run_well


@pytest.fixture(scope="session")
def refused() -> Callable[..., None]:
    """Check that a command was refused, and how."""
    return assert_refused


@pytest.fixture(scope="session")
def measuring(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Done]:
    """Return what `laq measure --json` wrote and printed."""
    folder = tmp_path_factory.mktemp("measured")
    return folder, run_well("measure", tiny_llama, "-o", folder, "--tokens", TOKENS, "--json")


@pytest.fixture(scope="session")
def measured(measuring: tuple[Path, Done]) -> Path:
    """Return the folder that `laq measure` wrote."""
    return measuring[0]


@pytest.fixture(scope="session")
def quantizing(
    tiny_llama: Path, measured: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Done]:
    """Return what `laq quantize --json` wrote and printed."""
    folder = tmp_path_factory.mktemp("quantized") / "out"
    options = ("--bpw", BPW, "--tokens", TOKENS, "--measured", measured, "--json")
    return folder, run_well("quantize", tiny_llama, "-o", folder, *options)


@pytest.fixture(scope="session")
def archive(quantizing: tuple[Path, Done]) -> Path:
    """Return the folder that `laq quantize` wrote; not to be changed."""
    return quantizing[0]
