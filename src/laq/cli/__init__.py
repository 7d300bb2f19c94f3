"""The command line: one command a file; each parses, calls and prints.

How to add one: write `NAME.py` in this folder with one function, and name it in `laq.cli.app`.
Only typer and the standard library are imported at start-up; commands import the rest when they run.
"""

from __future__ import annotations

from laq.cli.app import app, main

__all__ = ["app", "main"]
