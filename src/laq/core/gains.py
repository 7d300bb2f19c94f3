"""From sums of curves to the KL of the whole network: gains of classes and of units."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from laq.core.target import Unit

N_BANDS = 3
"""Parts of the depth that have gains of their own."""


@dataclass(frozen=True, slots=True)
class Gains:
    """What mixes of formats, run through the whole network, made of the curves.

    The KL is predicted to be the sum of the chosen losses, each times the gain of its class, and all times
    that of the unit of decision. Curves that carry gains have those of classes multiplied in. Units have
    their own because what is chosen is chosen for its low estimate: the finer the choice, the more it is
    underestimated.

    Parameters
    ----------
    classes : mapping
        Gain of every class of weights, see `weight_classes`.
    units : mapping
        Gain of every unit of decision; 1 for tiles.
    n_fitted, n_held_out : int
        Mixes that the gains were fitted to, and mixes that judge them.
    n_tokens : int
        Tokens that each mix ran over.
    rank_correlation : float
        Spearman's, of predicted and measured KL of the held-out mixes.
    median_error : float
        Median of |predicted / measured - 1| over the held-out mixes.
    median_error_before : float
        The same with the curves as they were.
    """

    classes: Mapping[str, float]
    units: Mapping[str, float]
    n_fitted: int
    n_held_out: int
    n_tokens: int
    rank_correlation: float
    median_error: float
    median_error_before: float

    def predict(self, sum_nats: float, unit: Unit) -> float:
        """Return the KL of a network whose losses, gains of classes multiplied in, add up to `sum_nats`.

        Examples
        --------
        >>> gains = Gains({"q": 2.0}, {"tile": 1.0, "network": 0.5}, 24, 8, 2048, 1.0, 0.0, 0.5)
        >>> gains.predict(0.4, Unit.TILE), gains.predict(0.4, Unit.NETWORK)
        (0.4, 0.2)
        """
        return sum_nats * self.units[unit.value]

    def to_json(self) -> dict[str, Any]:
        """Return everything, ready for JSON."""
        return {**asdict(self), "classes": dict(self.classes), "units": dict(self.units)}

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> Gains:
        """Return what `to_json` wrote; raises LookupError, TypeError or ValueError if it did not."""
        classes, units = (
            {str(name): float(gain) for name, gain in content[key].items()} for key in ("classes", "units")
        )
        result = Gains(**{**content, "classes": classes, "units": units})
        if sorted(units) != sorted(unit.value for unit in Unit):
            raise ValueError(f"gains of units {sorted(units)}")
        if not all(0 <= gain < float("inf") for gain in (*classes.values(), *units.values())):
            raise ValueError("gains are negative or not finite")
        return result


def weight_classes(names: Iterable[str]) -> dict[str, str]:
    """Return the class of every weight: its role and its third of the depth.

    Examples
    --------
    >>> weight_classes(["embed.weight", "layers.0.q.weight", "layers.5.q.weight"])
    {'embed.weight': 'embed', 'layers.0.q.weight': 'q/0', 'layers.5.q.weight': 'q/2'}
    """
    names = list(names)
    depths = {name: int(found.group(1)) for name in names if (found := re.search(r"(?:^|\.)(\d+)\.", name))}
    n_depths = max(depths.values(), default=0) + 1
    classes = {}
    for name in names:
        role = name.removesuffix(".weight").rpartition(".")[2]
        classes[name] = f"{role}/{depths[name] * N_BANDS // n_depths}" if name in depths else role
    return classes
