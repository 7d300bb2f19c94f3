"""How a tile is stored, and exactly what it costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np

from laq.core.errors import RequestError
from laq.core.formats import CANDIDATES, FAMILIES, MXFP4, Format, Integer, payload_bytes
from laq.core.formats.integer import TERNARY
from laq.core.groups import DEFAULT_GROUP_SIZE, GROUP_SIZES, TILE_ROWS, group_sizes_of
from laq.core.scale_units import ScalePer

LOG_STEPS = 8
"""Steps of the log scale grid in an octave: 1/8 octave costs no measurable quality against float16."""

TILE_TABLE_BYTES = 3
"""Bytes of a stored tile in the tile table: tag (u8) and column-group index (u16)."""


class ScaleFormat(Enum):
    """How scales are stored.

    LOG8 is one byte on a grid of 1/8 octave, times a float16 power of two per row block.
    LOG4 is four bits on the same grid, above a byte of the tile: its scales lie within two octaves.
    FLOAT16 is two bytes.
    E8M0 is the exponent of a power of two in one byte.
    """

    LOG8 = "log8"
    LOG4 = "log4"
    FLOAT16 = "float16"
    E8M0 = "e8m0"

    @property
    def status(self) -> str:
        """As that of methods."""
        return "experimental" if self is ScaleFormat.E8M0 else "stable"

    @property
    def summary(self) -> str:
        """What it is, in a line."""
        return {
            ScaleFormat.LOG8: "one byte, in eighths of an octave",
            ScaleFormat.LOG4: "four bits in eighths of an octave, two octaves for the rows of a tile",
            ScaleFormat.FLOAT16: "two bytes",
            ScaleFormat.E8M0: "one byte, powers of two as in OCP MX",
        }[self]

    @property
    def is_log(self) -> bool:
        """Whether quantizers return scales as eighths of an octave."""
        return self is not ScaleFormat.FLOAT16

    @property
    def has_base(self) -> bool:
        """Whether stored scales count from a power of two of their row block."""
        return self in (ScaleFormat.LOG8, ScaleFormat.LOG4)

    @property
    def pitch(self) -> int:
        """Eighths of an octave from one log scale to the next; 1 for FLOAT16, which has no grid of them."""
        return LOG_STEPS if self is ScaleFormat.E8M0 else 1

    @property
    def tile_scale_bytes(self) -> int:
        """Bytes of the 16 scales of one tile."""
        return {
            ScaleFormat.LOG8: TILE_ROWS,
            ScaleFormat.LOG4: 1 + TILE_ROWS // 2,
            ScaleFormat.FLOAT16: 2 * TILE_ROWS,
            ScaleFormat.E8M0: TILE_ROWS,
        }[self]

    @property
    def dtype(self) -> np.dtype[np.uint8] | np.dtype[np.float16]:
        """Type of the stored section."""
        return np.dtype(np.uint8) if self.is_log else np.dtype(np.float16)

    @property
    def tile_shape(self) -> tuple[int]:
        """Elements that a tile has in the stored section."""
        return (self.tile_scale_bytes // self.dtype.itemsize,)


@dataclass(frozen=True, slots=True)
class StoredAs:
    """Group sizes, scale format and what a scale serves, for all formats alike.

    Parameters
    ----------
    group_sizes : tuple of int
        That weights may have; transforms are made with the first.
    scale_format : ScaleFormat
        How scales are stored.
    scale_per : ScalePer
        What a scale serves.
    """

    group_sizes: tuple[int, ...]
    scale_format: ScaleFormat
    scale_per: ScalePer = ScalePer.GROUP

    @property
    def group_size(self) -> str:
        """As it is asked for: a number, or "auto" if there are several."""
        return "auto" if len(self.group_sizes) > 1 else str(self.group_sizes[0])


MXFP4_STORED = StoredAs((32,), ScaleFormat.E8M0)
"""Rouhani et al., arXiv:2310.10537: 32 values of E2M1 share a scale E8M0."""


def stored_as(
    formats: str,
    *,
    group_size: int | str | None = None,
    scale_format: str | None = None,
    scale_per: str = "group",
) -> StoredAs:
    """Return how tiles are stored, with what formats ask for in place of what is not given.

    Parameters
    ----------
    formats : str
        Families, keys of `laq.core.formats.FAMILIES` with commas between them.
    group_size : int or "auto", optional
        32, 64 or 128, "auto" for each weight its own; without it 64, with `mxfp4` 32.
    scale_format : str, optional
        "log4", "log8", "float16" or "e8m0"; without it log4, with `mxfp4` e8m0, for units larger than a group
        log8.
    scale_per : str
        "group", "tile", "channel" or "tensor".

    Raises
    ------
    RequestError
        If one is unknown, or not what formats ask for; says what may be chosen.

    Examples
    --------
    >>> stored_as("integer", group_size=128)
    StoredAs(group_sizes=(128,), scale_format=<ScaleFormat.LOG4: 'log4'>, scale_per=<ScalePer.GROUP: 'group'>)
    """
    _check_known("scale_per", scale_per, [one.value for one in ScalePer])
    _check_known("scale_format", scale_format, [one.value for one in ScaleFormat])
    per = ScalePer(scale_per)
    asked = StoredAs((DEFAULT_GROUP_SIZE,), ScaleFormat.LOG4 if per is ScalePer.GROUP else ScaleFormat.LOG8)
    if MXFP4 in formats.split(","):
        asked = MXFP4_STORED
    found = StoredAs(
        asked.group_sizes if group_size is None else group_sizes_of(group_size),
        asked.scale_format if scale_format is None else ScaleFormat(scale_format),
        per,
    )
    check_stored(formats, found)
    return found


def _check_known(name: str, value: object, known: Sequence[object]) -> None:
    if value is not None and value not in known:
        raise RequestError(
            f"unknown {name} {value!r}", hint=f"choose one of: {', '.join(str(one) for one in known)}"
        )


def check_stored(formats: str, stored: StoredAs) -> None:
    """Raise RequestError if formats are not for this group size and these scales."""
    if stored.scale_per is not ScalePer.GROUP:
        _check_shared(formats, stored)
    if MXFP4 in formats.split(",") and stored != MXFP4_STORED:
        own, others = MXFP4_STORED, [one.value for one in ScaleFormat]
        raise RequestError(
            f"{MXFP4} has scales {own.scale_format.value} in groups of {own.group_size}, "
            f"asked for {stored.scale_format.value} in groups of {stored.group_size}",
            hint=f"good combinations: --format {MXFP4} --scale-format {own.scale_format.value} "
            f"--group-size {own.group_size}; --format fp4 --scale-format {' | '.join(others)} "
            f"--group-size {' | '.join(map(str, GROUP_SIZES))}",
        )


def _check_shared(formats: str, stored: StoredAs) -> None:
    """Scales of units larger than a group: of integers, and in formats that need no neighbours."""
    integers = [
        name for name, members in FAMILIES.items() if members and all(isinstance(c, Integer) for c in members)
    ]
    scales = [one.value for one in ScaleFormat if one is not ScaleFormat.LOG4]
    if stored.scale_format.value not in scales or not set(formats.split(",")) <= set(integers):
        per = stored.scale_per.value
        raise RequestError(
            f"a scale per {per} is for integers and scales of a byte or two, "
            f"asked for formats {formats!r} with {stored.scale_format.value}",
            hint=f"good combinations: --scale-per {per} --format {' | '.join(integers)} "
            f"--scale-format {' | '.join(scales)}; --scale-per {ScalePer.GROUP.value} with all others",
        )


def allowed_under(per: ScalePer, allowed: Sequence[bool]) -> tuple[bool, ...]:
    """Leave out what shared scales could not tell apart: formats of one tag would have the same."""
    return tuple(
        may and not (per.beyond_groups and candidate is TERNARY)
        for candidate, may in zip(CANDIDATES, allowed, strict=True)
    )


@dataclass(frozen=True, slots=True)
class Scheme:
    """Format, group size and scales of a tile.

    Examples
    --------
    >>> from laq.core.formats.integer import INT4
    >>> Scheme(INT4, 64, ScaleFormat.LOG8).tile_bytes
    539
    >>> Scheme(INT4, 64, ScaleFormat.LOG4).tile_bytes
    532
    """

    format: Format
    group_size: int
    scale_format: ScaleFormat
    scale_per: ScalePer = ScalePer.GROUP

    @property
    def payload_bytes(self) -> int:
        """Bytes of the codes of one tile."""
        return payload_bytes(self.format, self.group_size)

    @property
    def tile_bytes(self) -> int:
        """Bytes of one tile: codes, its own scales and zero points, and its line in the tile table."""
        if self.format.code_bits == 0:
            return 0
        own = 0 if self.scale_per.beyond_groups else self._entry_bytes
        return self.payload_bytes + own + TILE_TABLE_BYTES

    @property
    def shared_bytes(self) -> int:
        """Bytes of the scales and zero points that tiles of a row block, or of a weight, share."""
        return self._entry_bytes if self.scale_per.beyond_groups and self.format.code_bits else 0

    @property
    def _entry_bytes(self) -> int:
        if self.scale_per is ScalePer.GROUP:
            return self.scale_format.tile_scale_bytes + TILE_ROWS * self.format.zero_point_bits // 8
        return self.scale_per.stored_rows * (self.scale_format.dtype.itemsize + 1)
