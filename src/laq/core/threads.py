"""How many threads may work."""

from __future__ import annotations

import os

from laq.core.errors import RequestError

ENVIRONMENT = "LAQ_THREADS"
MAX_THREADS = 1024


def wanted_threads() -> int | None:
    """Return the number that LAQ_THREADS asks for; None if it is not set.

    Raises
    ------
    RequestError
        If it is no number of threads.
    """
    wanted = os.environ.get(ENVIRONMENT, "")
    if not wanted:
        return None
    if not (wanted.isdecimal() and 1 <= int(wanted) <= MAX_THREADS):
        raise RequestError(
            f"{ENVIRONMENT}={wanted} is not a number of threads", hint=f"give 1 to {MAX_THREADS}"
        )
    return int(wanted)


def usable_threads() -> int:
    """Return LAQ_THREADS, or the number of cores that this process may use.

    Raises
    ------
    RequestError
        If LAQ_THREADS is no number of threads.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return wanted_threads() or min(cores, MAX_THREADS)
