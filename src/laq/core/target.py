"""The unit of decision: what shares one format."""

from __future__ import annotations

from enum import Enum


class Unit(Enum):
    """From coarse to fine: everything, one weight, 16 rows of a weight, one tile."""

    NETWORK = "network"
    TENSOR = "tensor"
    ROW = "row"
    TILE = "tile"

    @property
    def sorts_rows(self) -> bool:
        """Whether rows are sorted by importance: of no use where a whole weight shares one format."""
        return self in (Unit.ROW, Unit.TILE)
