"""The table of commands."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from laq.cli.bench import bench
from laq.cli.demo import demo
from laq.cli.doctor import doctor
from laq.cli.eval import evaluate
from laq.cli.inspect import inspect
from laq.cli.measure import measure
from laq.cli.methods import methods
from laq.cli.plan import plan
from laq.cli.quantize import quantize
from laq.cli.run import run
from laq.cli.verify import verify
from laq.core.errors import RequestError
from laq.core.threads import wanted_threads

app = typer.Typer(
    name="laq",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: fast, and readable without colour
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _print_version(*, value: bool) -> None:
    if value:
        from laq import __version__

        typer.echo(f"laq {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Give each part of a neural network exactly the bits it needs.

    Results go to stdout, progress and errors to stderr.
    """
    del version


app.command("quantize")(quantize)
app.command("measure")(measure)
app.command("plan")(plan)
app.command("eval")(evaluate)
app.command("run")(run)
app.command("bench")(bench)
app.command("inspect")(inspect)
app.command("verify")(verify)
app.command("methods")(methods)
app.command("doctor")(doctor)
app.command("demo")(demo)


def main() -> None:
    """Run the command line; leaves the interpreter with exit code 0, 1 (run failed) or 2 (wrong request)."""
    if sys.argv[1:2] != ["bench"]:  # which shows others as they are: llama.cpp is 2.5 times slower that way
        # torch's threads spin while they wait: on a busy machine that multiplies every run's time
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        threads = wanted_threads()
    except RequestError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)  # before torch is imported, which reads it once
    app(prog_name="laq")
