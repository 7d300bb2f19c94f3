"""What shares a scale and zero point, and where the stored ones are."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
import numpy.typing as npt

from laq.core.groups import TILE_ROWS


class ScalePer(Enum):
    """What one scale, and one zero point, serves: finest first."""

    GROUP = "group"
    TILE = "tile"
    CHANNEL = "channel"
    TENSOR = "tensor"

    @property
    def status(self) -> str:
        """As that of methods."""
        return "stable" if self is ScalePer.GROUP else "experimental"

    @property
    def summary(self) -> str:
        """What it is, in a line."""
        return {
            ScalePer.GROUP: "a scale for the columns of a group in each row",
            ScalePer.TILE: "a scale for all rows of a tile; integers alone",
            ScalePer.CHANNEL: "a scale for each row of a weight; integers alone, whole rows of one format",
            ScalePer.TENSOR: "a scale for a whole weight; integers alone, whole weights of one format",
        }[self]

    @property
    def stored_rows(self) -> int:
        """Scales of one entry of the stored section: of each row, or of all."""
        return TILE_ROWS if self in (ScalePer.GROUP, ScalePer.CHANNEL) else 1

    @property
    def beyond_groups(self) -> bool:
        """Whether scales are chosen before any group is rounded."""
        return self in (ScalePer.CHANNEL, ScalePer.TENSOR)


@dataclass(frozen=True, slots=True)
class ScaleUnits:
    """Stored tiles and the entries that hold their scales.

    Parameters
    ----------
    entry : int64 [n_stored]
        Entry of each tile.
    first : int64 [n_entries]
        The first tile of each.
    """

    entry: npt.NDArray[np.int64]
    first: npt.NDArray[np.int64]


def scale_units(tags: npt.NDArray[np.uint8], blocks: npt.NDArray[np.int64], per: ScalePer) -> ScaleUnits:
    """Return which tiles share scales: those of one format in a row block, or in the weight, in their order.

    Parameters
    ----------
    tags : uint8 [n_stored]
        Of the stored tiles, in their order.
    blocks : int64 [n_stored]
        Row block of each.
    per : ScalePer
        What a scale serves.

    Examples
    --------
    >>> units = scale_units(np.uint8([4, 4, 2, 4]), np.array([0, 0, 0, 1]), ScalePer.CHANNEL)
    >>> units.entry.tolist(), units.first.tolist()
    ([0, 0, 1, 2], [0, 2, 3])
    """
    if not per.beyond_groups:
        every = np.arange(len(tags))
        return ScaleUnits(every, every)
    falling = 255 - tags.astype(np.int64)
    key = falling + 256 * blocks if per is ScalePer.CHANNEL else falling
    _, first, entry = np.unique(key, return_index=True, return_inverse=True)
    return ScaleUnits(entry.reshape(-1), first)
