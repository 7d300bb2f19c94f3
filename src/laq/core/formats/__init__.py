"""Number formats: the values a code can stand for, and its width.

How to add one: write a family of formats in a file of its own as frozen dataclasses with the properties of
`Integer`, and append its members to `CANDIDATES`. Positions in `CANDIDATES` are what plans store, so members
are never reordered or removed.
"""

from __future__ import annotations

from laq.core.errors import RequestError
from laq.core.formats.integer import ABSENT, INT1, INT2, INT3, INT4, INT5, INT6, INT8, TERNARY, Integer
from laq.core.formats.trellis import (
    TRELLIS1,
    TRELLIS2,
    TRELLIS3,
    TRELLIS4,
    TRELLIS5,
    TRELLIS6,
    Trellis,
)

Format = Integer | Trellis

CANDIDATES: tuple[Format, ...] = (
    *(ABSENT, INT1, TERNARY, INT2, INT3, INT4, INT5, INT6, INT8),
    *(TRELLIS1, TRELLIS2, TRELLIS3, TRELLIS4, TRELLIS5, TRELLIS6),
)
"""What a tile may take. A *choice* is an index into this tuple."""

TRELLISES: dict[int, Trellis] = {c.code_bits: c for c in CANDIDATES if isinstance(c, Trellis)}
"""Trellis formats by their width."""

PRODUCT = "product"
"""Family without a format of tiles: every weight is stored whole, see `laq.core.product`."""

FAMILIES: dict[str, tuple[type[Integer] | type[Trellis], ...]] = {
    "all": (Integer, Trellis),
    "integer": (Integer,),
    "trellis": (Trellis,),
    PRODUCT: (),
}
"""Which formats a plan may use, by the name that `--format` takes."""


def formats_of(family: str) -> tuple[bool, ...]:
    """Say of every candidate whether a plan may use it; a tile may always be absent.

    Raises
    ------
    RequestError
        If there is no such family; names those there are.
    """
    if family not in FAMILIES:
        raise RequestError(f"unknown formats {family!r}", hint=f"choose one of: {', '.join(FAMILIES)}")
    is_tiles = family != PRODUCT
    return tuple(is_tiles and (isinstance(c, FAMILIES[family]) or c.code_bits == 0) for c in CANDIDATES)


__all__ = ["CANDIDATES", "FAMILIES", "PRODUCT", "TRELLISES", "Format", "Integer", "Trellis", "formats_of"]
