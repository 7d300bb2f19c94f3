"""How a tile is stored, and exactly what it costs."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np

from laq.core.formats import Format, payload_bytes
from laq.core.groups import TILE_ROWS

TILE_TABLE_BYTES = 3
"""Bytes of a stored tile in the tile table: tag (u8) and column-group index (u16)."""


class ScaleFormat(Enum):
    """How scales are stored.

    LOG8 is one byte on a grid of 1/8 octave, times a float16 power of two per row block.
    LOG4 is four bits on the same grid, above a byte of the tile: its scales lie within two octaves.
    FLOAT16 is two bytes.
    """

    LOG8 = "log8"
    LOG4 = "log4"
    FLOAT16 = "float16"

    @property
    def is_log(self) -> bool:
        """Whether scales are eighths of an octave."""
        return self is not ScaleFormat.FLOAT16

    @property
    def tile_scale_bytes(self) -> int:
        """Bytes of the 16 scales of one tile."""
        return {
            ScaleFormat.LOG8: TILE_ROWS,
            ScaleFormat.LOG4: 1 + TILE_ROWS // 2,
            ScaleFormat.FLOAT16: 2 * TILE_ROWS,
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
class Scheme:
    """Format, group size and scale format of a tile.

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

    @property
    def payload_bytes(self) -> int:
        """Bytes of the codes of one tile."""
        return payload_bytes(self.format, self.group_size)

    @property
    def tile_bytes(self) -> int:
        """Bytes of one tile: codes, scales, zero points and its line in the tile table."""
        if self.format.code_bits == 0:
            return 0
        zero_points = TILE_ROWS * self.format.zero_point_bits // 8
        return self.payload_bytes + self.scale_format.tile_scale_bytes + zero_points + TILE_TABLE_BYTES
