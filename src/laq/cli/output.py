"""Where a command's result goes: stdout, as tables for people or as one JSON object."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
import textwrap
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

from laq.cli.errors import reported
from laq.cli.progress import chosen_progress
from laq.core.progress import shown_by

if TYPE_CHECKING:
    from rich.console import RenderableType

MAX_WIDTH = 79
WIDE = 1000


@dataclass(frozen=True, slots=True)
class Output:
    """The result's way out.

    Parameters
    ----------
    stream : text stream
        stdout as it was when the command started.
    as_json : bool
        Whether a program reads along.
    """

    stream: TextIO
    as_json: bool

    def show(self, content: Mapping[str, Any], *parts: RenderableType) -> None:
        """Write `content` as JSON, or `parts` for people."""
        if self.as_json:
            self.stream.write(json.dumps(content, allow_nan=False) + "\n")
        else:
            self.write(*parts)
        self.stream.flush()

    def write(self, *parts: RenderableType) -> None:
        """Write tables and paragraphs, one after the other; lines that are set in are not wrapped."""
        from rich.console import Console

        console = Console(file=self.stream, markup=False, emoji=False, highlight=False)
        # a file or another program gets one line a row
        console.width = min(console.width, MAX_WIDTH) if self.stream.isatty() else WIDE
        for part in parts:
            if isinstance(part, str):
                self.stream.write(_filled(part) + "\n")
            else:
                console.print(part)


def _filled(text: str) -> str:
    """Wrap paragraphs; lines that are set in stay whole, so that commands can be copied."""
    lines = text.splitlines() or [""]
    wrap = functools.partial(textwrap.fill, width=MAX_WIDTH, break_long_words=False, break_on_hyphens=False)
    return "\n".join(line if line.startswith("  ") else wrap(line) for line in lines)


@contextlib.contextmanager
def running(
    *, debug: bool, as_json: bool = False, quiet: bool = False, may_download: bool = False
) -> Iterator[Output]:
    """Run a command: errors are reported, progress is shown, and nothing but the result reaches stdout.

    Parameters
    ----------
    debug : bool
        Show tracebacks and the warnings of libraries.
    as_json : bool
        The result is one JSON object.
    quiet : bool
        No progress.
    may_download : bool
        Let the hub's own download bars through.
    """
    stream = sys.stdout
    with reported(debug=debug), contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
        if not debug:
            warnings.simplefilter("ignore")
        if quiet or as_json or not may_download:
            # transformers 5.23.0 draws a bar of its own when it reads GGUF; tqdm reads this on import
            os.environ["TQDM_DISABLE"] = "1"
        with shown_by(chosen_progress(quiet=quiet or as_json)):
            yield Output(stream, as_json)
