import errno

import pytest
import typer

from laq.cli.errors import reported
from laq.core.errors import BudgetError, RunError


def told(error: BaseException, capsys, *, debug: bool = False) -> tuple[int, str]:
    """Raise inside of the block; return the exit code and what stderr says."""
    with pytest.raises(typer.Exit) as stop, reported(debug=debug):
        raise error
    captured = capsys.readouterr()
    assert captured.out == ""
    return stop.value.exit_code, captured.err


def test_wrong_request_exits_with_2_and_a_hint(capsys):
    assert told(BudgetError("too small", hint="give more"), capsys) == (
        2,
        "error: too small\nhint: give more\n",
    )


def test_failed_run_exits_with_1(capsys):
    assert told(RunError("disk broke"), capsys) == (1, "error: disk broke\n")


def test_interrupt_exits_with_130(capsys):
    assert told(KeyboardInterrupt(), capsys) == (130, "error: interrupted\n")


def test_full_disk_names_the_file_and_the_way_out(capsys):
    code, text = told(OSError(errno.ENOSPC, "No space left on device", "/tmp/x"), capsys)
    assert code == 1
    assert text.startswith("error: /tmp/x: No space left on device\nhint: free some space")


def test_forbidden_file_is_named(capsys):
    code, text = told(PermissionError(errno.EACCES, "Permission denied", "/x"), capsys)
    assert code == 1
    assert "/x: Permission denied" in text


def test_unexpected_error_is_one_line_without_traceback(capsys):
    code, text = told(ValueError("odd\nthing"), capsys)
    assert code == 1
    assert text == "error: unexpected ValueError: odd thing\nhint: run again with --debug and report it\n"


def test_debug_shows_the_traceback(capsys):
    code, text = told(ValueError("odd"), capsys, debug=True)
    assert code == 1
    assert "Traceback" in text
    assert text.endswith("error: unexpected ValueError: odd\n")


def test_exit_codes_of_commands_pass_through():
    with pytest.raises(typer.Exit) as stop, reported(debug=False):
        raise typer.Exit(5)
    assert stop.value.exit_code == 5
