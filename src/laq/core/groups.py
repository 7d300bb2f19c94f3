"""How a matrix is cut into tiles of 16 rows x one group of columns."""

from __future__ import annotations

from dataclasses import dataclass

from laq.core.errors import RequestError

TILE_ROWS = 16
"""Rows of a tile: one 512-bit register of 32-bit sums."""

LINE_BYTES = 64
"""Bytes of a line: four neighbouring columns of the rows of a tile, a byte each."""

GROUP_SIZES = (32, 64, 128)
"""Legal group sizes: multiples of the 32-column brick that keep int32 sums safe."""


DEFAULT_GROUP_SIZE = 64


def group_sizes_of(group_size: int | str) -> tuple[int, ...]:
    """Return the group sizes to measure: one, or with "auto" all of them, the default first.

    Raises
    ------
    RequestError
        If it is neither.

    Examples
    --------
    >>> group_sizes_of(32), group_sizes_of("128"), group_sizes_of("auto")
    ((32,), (128,), (64, 32, 128))
    """
    if group_size == "auto":
        return (DEFAULT_GROUP_SIZE, *(size for size in GROUP_SIZES if size != DEFAULT_GROUP_SIZE))
    named = {str(size): size for size in GROUP_SIZES}
    if str(group_size) not in named:
        raise RequestError(
            f"unknown group_size {group_size!r}", hint=f"choose one of: {', '.join(named)}, auto"
        )
    return (named[str(group_size)],)


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
