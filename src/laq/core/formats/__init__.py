"""Number formats: the values a code can stand for, and its width.

How to add one: write a family of formats in a file of its own as frozen dataclasses deriving from
`Format`, and append its members to `CANDIDATES`. Positions in `CANDIDATES` are what plans store, so
members are never reordered or removed.
"""

from __future__ import annotations

from laq.core.formats.integer import ABSENT, INT1, INT2, INT3, INT4, INT5, INT6, INT8, TERNARY, Integer

Format = Integer

CANDIDATES: tuple[Format, ...] = (ABSENT, INT1, TERNARY, INT2, INT3, INT4, INT5, INT6, INT8)
"""What a tile may take, by rising cost. A *choice* is an index into this tuple."""


def choice_of(name: str) -> int:
    """Return the index in `CANDIDATES` of the format called `name`.

    Raises
    ------
    KeyError
        If there is no such format.

    Examples
    --------
    >>> CANDIDATES[choice_of("int4")].code_bits
    4
    """
    return {candidate.name: index for index, candidate in enumerate(CANDIDATES)}[name]


__all__ = ["CANDIDATES", "Format", "Integer", "choice_of"]
