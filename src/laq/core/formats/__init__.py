"""Number formats: the values a code can stand for, and its width.

How to add one: write a family of formats in a file of its own as frozen dataclasses with the properties of
`Integer`, append its members to `CANDIDATES` and name the family in `FAMILIES`. Positions in `CANDIDATES` are
what plans store, so members are never reordered or removed.
"""

from __future__ import annotations

from laq.core.errors import RequestError
from laq.core.formats.integer import ABSENT, INT1, INT2, INT3, INT4, INT5, INT6, INT8, TERNARY, Integer
from laq.core.formats.table import (
    FP4,
    NF4,
    PALETTE2,
    PALETTE3,
    PALETTE4,
    RESIDUALS,
    TRITS,
    TRITS_OF_BYTE,
    Palette,
    Table,
)
from laq.core.formats.trellis import (
    TRELLIS1,
    TRELLIS2,
    TRELLIS3,
    TRELLIS4,
    TRELLIS5,
    TRELLIS6,
    Trellis,
)
from laq.core.groups import LINE_BYTES, TILE_ROWS

Format = Integer | Trellis | Table | Palette

CANDIDATES: tuple[Format, ...] = (
    *(ABSENT, INT1, TERNARY, INT2, INT3, INT4, INT5, INT6, INT8),
    *(TRELLIS1, TRELLIS2, TRELLIS3, TRELLIS4, TRELLIS5, TRELLIS6),
    *(NF4, FP4, PALETTE2, PALETTE3, PALETTE4, TRITS),
    *RESIDUALS,
)
"""What a tile may take. A *choice* is an index into this tuple."""

TRELLISES: dict[int, Trellis] = {c.code_bits: c for c in CANDIDATES if isinstance(c, Trellis)}
"""Trellis formats by their width."""

TABLES: dict[int, Table] = {c.tag: c for c in CANDIDATES if isinstance(c, Table)}
"""Formats with a table of their own, by their tag."""

PALETTES: dict[int, Palette] = {c.tag: c for c in CANDIDATES if isinstance(c, Palette)}
"""Formats with a learned table, by their tag."""

MXFP4 = "mxfp4"
"""`fp4` under one kind of scales, see `laq.core.scheme.stored_as`."""

PRODUCT = "product"
"""Family without a format of tiles: every weight is stored whole, see `laq.core.product`."""

FAMILIES: dict[str, frozenset[Format]] = {
    "all": frozenset(c for c in CANDIDATES if isinstance(c, Integer | Trellis)),
    "integer": frozenset(c for c in CANDIDATES if isinstance(c, Integer)),
    "trellis": frozenset(TRELLISES.values()),
    "palette": frozenset(PALETTES.values()),
    "nf4": frozenset([NF4]),
    "fp4": frozenset([FP4]),
    MXFP4: frozenset([FP4]),
    "ternary": frozenset([TRITS]),
    "binary": frozenset([INT1]),
    "residual_binary": frozenset(RESIDUALS),
    PRODUCT: frozenset(),
}
"""Which formats a plan may use, by the names that `--format` takes; `all` is what plans use by default."""


def payload_bytes(candidate: Format, group_size: int) -> int:
    """Return the bytes of the codes of one tile.

    Examples
    --------
    >>> [payload_bytes(candidate, 64) for candidate in (INT4, TRELLIS4, TRITS)]
    [512, 512, 208]
    """
    if candidate is not TRITS:
        return TILE_ROWS * group_size * candidate.code_bits // 8
    lines, slots = divmod(TILE_ROWS * group_size // LINE_BYTES, TRITS_OF_BYTE)
    return LINE_BYTES * lines + LINE_BYTES // 4 * slots


FIRST_RANGE = "mse"
"""The range that there always was, and the one that plans may use beside other formats than integers."""


def check_range(range: str, families: str) -> None:
    """Refuse a range beside formats that it is not for.

    Raises
    ------
    RequestError
        If there is no such family, or one holds other formats than integers and the range is for those alone.
    """
    allowed = formats_of(families)
    others = families == PRODUCT or any(
        may and not isinstance(c, Integer) for c, may in zip(CANDIDATES, allowed, strict=True)
    )
    if range != FIRST_RANGE and others:
        integers = [
            name
            for name, members in FAMILIES.items()
            if members and all(isinstance(one, Integer) for one in members)
        ]
        raise RequestError(
            f"range {range!r} is for integers alone, formats {families!r} hold others",
            hint=f"good combinations: --range {range} --format {' | '.join(integers)}; "
            f"--range {FIRST_RANGE} --format {' | '.join(FAMILIES)}",
        )


def formats_of(families: str) -> tuple[bool, ...]:
    """Say of every candidate whether a plan may use it: the families' and absent; none with product codes.

    Parameters
    ----------
    families : str
        Keys of `FAMILIES`, with commas between them.

    Raises
    ------
    RequestError
        If there is no such family, or product codes are asked for beside tiles; names those there are.

    Examples
    --------
    >>> [c.name for c, may in zip(CANDIDATES, formats_of("fp4,binary"), strict=True) if may]
    ['absent', 'int1', 'fp4']
    """
    names = families.split(",")
    unknown = [name for name in names if name not in FAMILIES]
    if unknown:
        raise RequestError(
            f"unknown formats {unknown[0]!r}",
            hint=f"choose one of: {', '.join(FAMILIES)}; or several, with commas between them",
        )
    if PRODUCT in names:
        if len(names) > 1:
            raise RequestError(
                f"formats {families!r}: product codes are of whole weights, others of tiles",
                hint=f"choose {PRODUCT} alone, or leave it out",
            )
        return (False,) * len(CANDIDATES)
    return tuple(c.code_bits == 0 or any(c in FAMILIES[name] for name in names) for c in CANDIDATES)


__all__ = [
    "CANDIDATES",
    "FAMILIES",
    "FIRST_RANGE",
    "MXFP4",
    "PALETTES",
    "PRODUCT",
    "TABLES",
    "TRELLISES",
    "Format",
    "Integer",
    "Palette",
    "Table",
    "Trellis",
    "check_range",
    "formats_of",
    "payload_bytes",
]
