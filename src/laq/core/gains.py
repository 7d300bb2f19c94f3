"""From sums of curves to the KL of the whole network: one gain a class of weights, and an exponent."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

N_BANDS = 3
"""Parts of the depth that have gains of their own."""


@dataclass(frozen=True, slots=True)
class Gains:
    """What mixes of formats, run through the whole network, made of the curves.

    With S the sum of the chosen losses, each times the gain of its class, the KL is predicted to be
    pivot (S / pivot) ^ exponent. Curves that carry gains have them multiplied in.

    Parameters
    ----------
    classes : mapping
        Gain of every class of weights, see `weight_classes`.
    exponent : float
        1 where losses add up.
    pivot_nats : float
        Where the exponent changes nothing: the middle of the fitted mixes.
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
    exponent: float
    pivot_nats: float
    n_fitted: int
    n_held_out: int
    n_tokens: int
    rank_correlation: float
    median_error: float
    median_error_before: float

    def predict(self, sum_nats: float) -> float:
        """Return the KL of a network whose losses, gains multiplied in, add up to `sum_nats`.

        Examples
        --------
        >>> from dataclasses import replace
        >>> gains = Gains({"q": 2.0}, 1.0, 0.1, 24, 8, 2048, 1.0, 0.0, 0.5)
        >>> gains.predict(0.4)
        0.4
        >>> round(replace(gains, exponent=0.5).predict(0.4), 3)
        0.2
        """
        if sum_nats <= 0 or self.exponent == 1:
            return sum_nats
        return float(self.pivot_nats * (sum_nats / self.pivot_nats) ** self.exponent)

    def to_json(self) -> dict[str, Any]:
        """Return everything, ready for JSON."""
        return {**asdict(self), "classes": dict(self.classes)}

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> Gains:
        """Return what `to_json` wrote; raises LookupError, TypeError or ValueError if it did not."""
        classes = {str(name): float(gain) for name, gain in content["classes"].items()}
        result = Gains(**{**content, "classes": classes})
        if not all(
            0 <= value < float("inf") for value in (*classes.values(), result.exponent, result.pivot_nats)
        ):
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
