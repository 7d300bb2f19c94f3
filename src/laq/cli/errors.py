"""Every way to fail, as a line a person can act on and an exit code."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer

from laq.core.errors import LaqError

INTERRUPTED = 130
"""128 + SIGINT, as shells count."""

HINTS = {
    errno.ENOSPC: "free some space, or set TMPDIR and the output to a larger disk",
    errno.EDQUOT: "free some space, or set TMPDIR and the output to a larger disk",
    errno.EACCES: "choose a place that you may read and write",
    errno.EPERM: "choose a place that you may read and write",
    errno.EROFS: "choose a place that you may read and write",
}


@contextmanager
def reported(*, debug: bool) -> Iterator[None]:
    """Turn what goes wrong inside of the block into a message on stderr and an exit code.

    Parameters
    ----------
    debug : bool
        Print the traceback too.
    """
    try:
        yield
    except typer.Exit:
        raise
    except LaqError as error:
        _fail(error.message, hint=error.hint, code=error.exit_code, debug=debug)
    except KeyboardInterrupt:
        _fail("interrupted", hint="", code=INTERRUPTED, debug=debug)
    except BrokenPipeError:
        # the reader has seen enough; the interpreter must not complain again when it flushes
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        raise typer.Exit(0) from None
    except OSError as error:
        place = "" if error.filename is None else f"{error.filename}: "
        hint = HINTS.get(error.errno or 0, "check the path and the disk")
        _fail(f"{place}{error.strerror or error}", hint=hint, code=1, debug=debug)
    except MemoryError:
        _fail("out of memory", hint="close other programs, or use a larger machine", code=1, debug=debug)
    except Exception as error:  # noqa: BLE001 - the last stop: a person gets one line, not a traceback
        text = " ".join(f"{type(error).__name__}: {error}".split())
        hint = "" if debug else "run again with --debug and report it"
        _fail(f"unexpected {text}", hint=hint, code=1, debug=debug)


def _fail(message: str, *, hint: str, code: int, debug: bool) -> NoReturn:
    if debug:
        traceback.print_exc(file=sys.stderr)
    typer.echo(f"error: {message}", err=True)
    if hint:
        typer.echo(f"hint: {hint}", err=True)
    raise typer.Exit(code) from None
