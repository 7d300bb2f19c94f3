import io
import sys

import pytest

from laq.cli.progress import Bars, Lines, chosen_progress
from laq.core.progress import Silent, shown_by, track


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_lines_tell_a_step_when_it_is_done(capsys):
    with shown_by(Lines()):
        steps = track(range(3), label="baking", total=3)
        assert next(steps) == 0
        assert capsys.readouterr().err == ""
        assert list(steps) == [1, 2]
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("baking (3): ")


def test_bars_stay_as_one_line_each(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert isinstance(chosen_progress(quiet=False), Bars)
    with shown_by(Bars()):
        assert list(track("ab", label="[odd] label", total=2)) == ["a", "b"]
        assert list(track("c", label="next", total=1)) == ["c"]
    text = sys.stderr.getvalue()
    assert "[odd] label" in text
    assert "2/2" in text
    assert "next" in text


def test_bar_ends_when_the_loop_is_left(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with shown_by(Bars()):
        for _ in track(range(9), label="left", total=9):
            break
        assert list(track(range(2), label="after", total=2)) == [0, 1]


@pytest.mark.parametrize("quiet", [True, False])
def test_quiet_is_silent_and_no_terminal_gets_lines(quiet):
    assert isinstance(chosen_progress(quiet=quiet), Silent if quiet else Lines)
