"""What a person accepts: bytes or bits per weight."""

from __future__ import annotations

import math
import re

from laq.core.errors import BudgetError

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def parse_size(text: str) -> int:
    """Return bytes from a number with a unit.

    Raises
    ------
    BudgetError
        If the text is not a size.

    Examples
    --------
    >>> parse_size("60MB"), parse_size("1.5 GiB")
    (60000000, 1610612736)
    """
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([A-Za-z]*)\s*", text)
    if match is None or match[2].upper() not in UNITS:
        raise BudgetError(
            f"size {text!r} is not a number of bytes", hint="write it like 60MB, 1.5GB or 800KiB"
        )
    return int(float(match[1]) * UNITS[match[2].upper()])


def bpw_to_bytes(bpw: float, n_params: int) -> int:
    """Return the bytes that an average of `bpw` bits allows for `n_params` weights.

    Raises
    ------
    BudgetError
        If `bpw` is not a positive number.
    """
    if not 0 < bpw < math.inf:
        raise BudgetError(f"{bpw} bits per weight is not a positive number", hint="for example 4.0")
    return int(bpw * n_params / 8)


def bytes_to_bpw(size_bytes: int, n_params: int) -> float:
    """Return average bits per weight."""
    return 8 * size_bytes / n_params
