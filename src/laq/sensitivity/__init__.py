"""What each tile would lose at each format: one metric a file.

How to add one: write `NAME.py` in this folder with one final class deriving from `Sensitivity`, and one test.
The file name is the registry key: `laq methods`, the command line and the contract tests find it by itself.
Other packages register theirs under the entry point group `laq.sensitivity`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from laq.core.curve import WeightCurves
from laq.core.formats import formats_of
from laq.core.permutation import IndexArray
from laq.core.product import ProductCode
from laq.core.registry import Registry
from laq.core.scale_units import ScalePer
from laq.core.scheme import ScaleFormat
from laq.core.stats import Stats
from laq.networks.module import Batch, Network


@dataclass(frozen=True, slots=True)
class Subject:
    """What a metric may look at.

    Parameters
    ----------
    network : Network
        The original.
    stats : Stats
        What calibration saw of it.
    quantizer : str
        Method that will pick codes, see `laq methods`.
    group_size : int
        Columns that share a scale.
    scale_format : ScaleFormat
        How scales are stored.
    batches : sequence of Batch
        Data of calibration's part that `stats` did not see, for metrics that run the network.
    seed : int
        Seeds what is sampled.
    range : str
        Method that chooses scales and zero points of integers.
    allowed : sequence of bool, [n_candidates]
        Formats that are measured, see `laq.core.formats.formats_of`.
    ranks : tuple of int
        Ranks of corrections to measure weights with, where they can have them. The first is that of
        `Measured.weights`, the others make alternatives.
    shares : tuple of float
        Shares of outliers; likewise.
    other_group_sizes : tuple of int
        Measured beside, as alternatives.
    products : tuple of ProductCode
        Measured beside, as alternatives.
    scale_per : ScalePer
        What a scale serves.
    """

    network: Network
    stats: Stats
    quantizer: str
    group_size: int
    scale_format: ScaleFormat
    batches: Sequence[Batch] = ()
    seed: int = 0
    range: str = "mse"
    allowed: Sequence[bool] = formats_of("all")
    ranks: tuple[int, ...] = (0,)
    shares: tuple[float, ...] = (0,)
    other_group_sizes: tuple[int, ...] = ()
    products: tuple[ProductCode, ...] = ()
    scale_per: ScalePer = ScalePer.GROUP


@dataclass(frozen=True, slots=True)
class Measured:
    """Curves of every weight, also stored in other ways, and the column permutations that they share."""

    weights: tuple[WeightCurves, ...]
    column_permutations: dict[str, IndexArray]
    alternatives: tuple[WeightCurves, ...] = ()


class Sensitivity(ABC):
    """Contract of a metric: losses fall with the width of a format, and are never negative.

    An infinite loss forbids a format. Losses are in nats per token where the class says so; else only their
    ratios count, until gains bring them to the KL of the whole network.
    """

    status: ClassVar[Literal["stable", "experimental"]]
    summary: ClassVar[str]
    runs_network: ClassVar[bool]
    """Whether it needs `Subject.batches`; the others look at weights and statistics alone."""

    @abstractmethod
    def measure(self, subject: Subject) -> Measured:
        """Return the curve of every tile of every weight at every candidate format.

        Raises CalibrationError if the statistics of a weight are missing or unusable.
        """


SENSITIVITIES: Registry[Sensitivity] = Registry("sensitivity", "laq.sensitivity", Sensitivity)  # type: ignore[type-abstract]  # the ABC is only the bound
