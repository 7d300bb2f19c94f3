"""The unit of decision: what shares one format."""

from __future__ import annotations

from enum import Enum

from laq.core.errors import RequestError
from laq.core.scale_units import ScalePer


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


UNITS_UNDER = {
    ScalePer.GROUP: tuple(Unit),
    ScalePer.TILE: tuple(Unit),
    ScalePer.CHANNEL: (Unit.NETWORK, Unit.TENSOR, Unit.ROW),
    ScalePer.TENSOR: (Unit.NETWORK, Unit.TENSOR),
}
"""Units whose members have one format wherever they share a scale."""


def check_unit(unit: Unit, scale_per: ScalePer) -> None:
    """Raise RequestError if tiles that share a scale could take several formats; says which could not."""
    units = UNITS_UNDER[scale_per]
    if unit not in units:
        raise RequestError(
            f"what shares a scale per {scale_per.value} takes one format, asked for one per {unit.value}",
            hint=f"good combinations: --scale-per {scale_per.value} --unit "
            f"{' | '.join(one.value for one in reversed(units))}; "
            f"--unit {unit.value} --scale-per "
            f"{' | '.join(per.value for per, its in UNITS_UNDER.items() if unit in its)}",
        )
