"""Networks with other weights that compute the same: what is measured and quantized in place of the original.

How to add one: write `NAME.py` in this folder with one final class deriving from `Transform`, and one test.
The file name is the registry key: `laq methods`, the command line and the contract tests find it by itself.
Other packages register theirs under the entry point group `laq.transforms`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

from laq.core.errors import NetworkError
from laq.core.registry import Registry
from laq.core.stats import Stats
from laq.networks.module import Network
from laq.quantizers.common.encoding import Encoding


@dataclass(frozen=True, slots=True)
class Transformed:
    """A network that computes the same with other weights.

    Parameters
    ----------
    network : Network
        What is quantized; parameters that did not change are shared with the original.
    stats : Stats
        What calibration would have seen of it.
    """

    network: Network
    stats: Stats


class Transform(ABC):
    """Contract of a transform; the same arguments always give the same weights."""

    status: ClassVar[Literal["stable", "experimental"]]
    summary: ClassVar[str]

    @abstractmethod
    def apply(self, network: Network, stats: Stats, encoding: Encoding) -> Transformed:
        """Return a network of the same outputs, and the statistics it would have had; changes no argument.

        network : what computes, in the types that it will be stored in
        stats : what calibration saw of it
        encoding : how the weights will be encoded, for methods that ask what that costs

        Raises NetworkError if no place is known where the network's weights can be changed.
        """


TRANSFORMS: Registry[Transform] = Registry("transform", "laq.transforms", Transform)  # type: ignore[type-abstract]  # the ABC is only the bound


def transforms_of(names: str | None) -> tuple[str, ...]:
    """Return the transforms that a text such as "column_norm,awq" names, in the order in which they apply.

    Raises
    ------
    RequestError
        If there is no such transform; names those there are.
    """
    found = tuple(name.strip() for name in (names or "").split(",") if name.strip())
    for name in found:
        TRANSFORMS.get(name)
    return found


def check_transformable(network: Network) -> None:
    """Raise NetworkError if it is not known how the network's modules follow each other."""
    if network.architecture != "transformers":
        raise NetworkError(
            f"{network.source}: what reads the outputs of its modules is not known",
            hint="transforms are for causal language models of transformers; leave --transform away",
        )


def transformed(network: Network, stats: Stats, names: tuple[str, ...], encoding: Encoding) -> Transformed:
    """Apply transforms one after the other; with none the network and its statistics as they are."""
    made = Transformed(network, stats)
    for name in names:
        made = TRANSFORMS.get(name)().apply(made.network, made.stats, encoding)
    return made
