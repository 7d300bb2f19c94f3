"""How a matrix is cut into tiles of 16 rows x one group of columns."""

from __future__ import annotations

from dataclasses import dataclass

TILE_ROWS = 16
"""Rows of a tile: one 512-bit register of 32-bit sums."""

LINE_BYTES = 64
"""Bytes of a line: four neighbouring columns of the rows of a tile, a byte each."""

GROUP_SIZES = (32, 64, 128)
"""Legal group sizes: multiples of the 32-column brick that keep int32 sums safe."""


@dataclass(frozen=True, slots=True)
class TileGrid:
    """The tiles of one matrix after padding.

    Parameters
    ----------
    n_rows, n_columns : int
        Shape of the matrix before padding.
    group_size : int
        Columns that share a scale, one of `GROUP_SIZES`.

    Examples
    --------
    >>> grid = TileGrid(100, 130, 64)
    >>> grid.n_row_blocks, grid.n_groups, grid.padded_rows, grid.padded_columns
    (7, 3, 112, 192)
    """

    n_rows: int
    n_columns: int
    group_size: int

    def __post_init__(self) -> None:
        if self.group_size not in GROUP_SIZES:
            raise ValueError(f"group size {self.group_size} is not one of {GROUP_SIZES}")

    @property
    def n_row_blocks(self) -> int:
        """Number of blocks of 16 rows, the last one padded."""
        return -(-self.n_rows // TILE_ROWS)

    @property
    def n_groups(self) -> int:
        """Number of column groups, the last one padded."""
        return -(-self.n_columns // self.group_size)

    @property
    def n_tiles(self) -> int:
        """Number of tiles."""
        return self.n_row_blocks * self.n_groups

    @property
    def padded_rows(self) -> int:
        """Rows after padding."""
        return self.n_row_blocks * TILE_ROWS

    @property
    def padded_columns(self) -> int:
        """Columns after padding."""
        return self.n_groups * self.group_size

    @property
    def tile_elements(self) -> int:
        """Weights in a tile."""
        return TILE_ROWS * self.group_size
