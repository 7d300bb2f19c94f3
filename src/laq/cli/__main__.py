"""`python -m laq.cli`."""

from __future__ import annotations

from laq.cli.app import main

main()
