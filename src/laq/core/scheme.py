"""How a tile is stored, and exactly what it costs."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from laq.core.formats import Format, payload_bytes
from laq.core.groups import TILE_ROWS

TILE_TABLE_BYTES = 3
"""Bytes of a stored tile in the tile table: tag (u8) and column-group index (u16)."""


class ScaleFormat(Enum):
    """How scales are stored.

    LOG8 is one byte on a grid of 1/8 octave, times a float16 power of two per row block.
    FLOAT16 is two bytes.
    """

    LOG8 = "log8"
    FLOAT16 = "float16"

    @property
    def size_bytes(self) -> int:
        """Bytes of one scale."""
        return 1 if self is ScaleFormat.LOG8 else 2


@dataclass(frozen=True, slots=True)
class Scheme:
    """Format, group size and scale format of a tile.

    Examples
    --------
    >>> from laq.core.formats.integer import INT4
    >>> Scheme(INT4, 64, ScaleFormat.LOG8).tile_bytes
    539
    """

    format: Format
    group_size: int
    scale_format: ScaleFormat

    @property
    def payload_bytes(self) -> int:
        """Bytes of the codes of one tile."""
        return payload_bytes(self.format, self.group_size)

    @property
    def tile_bytes(self) -> int:
        """Bytes of one tile: codes, scales, zero points and its line in the tile table."""
        if self.format.code_bits == 0:
            return 0
        scales = TILE_ROWS * self.scale_format.size_bytes
        zero_points = TILE_ROWS * self.format.zero_point_bits // 8
        return self.payload_bytes + scales + zero_points + TILE_TABLE_BYTES
