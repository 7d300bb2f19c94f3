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


__all__ = ["CANDIDATES", "Format", "Integer"]
