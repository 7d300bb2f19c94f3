"""Columns of one size: what their size was moves into what writes their inputs."""

from __future__ import annotations

from typing import ClassVar, Literal, final

import torch

from laq.core.stats import Stats
from laq.networks.module import Network
from laq.quantizers.common.encoding import Encoding
from laq.transforms import Transform, Transformed
from laq.transforms.common.rescale import Channels, rescaled
from laq.transforms.common.search import best_factors

EXPONENTS = (0.5, 1.0)
"""Powers of the root mean square that are tried: with 1 all columns become equal."""

SMALLEST = 1e-6
"""Mean square, in means over all columns, below which a column is not enlarged further."""


@final
class ColumnNorm(Transform):
    """Columns are divided by a power of their root mean square over all readers; chosen for every place.

    Columns of a group share a scale, and a trellis wants values of one size. The power is chosen, or the
    place left alone, by what the quantizer leaves on a sample of rows.
    """

    status: ClassVar[Literal["stable", "experimental"]] = "experimental"
    summary: ClassVar[str] = "columns divided by their root mean square where the quantizer's own error falls"

    def apply(self, network: Network, stats: Stats, encoding: Encoding) -> Transformed:
        """Return the rescaled network; see `Transform.apply`."""

        def choose(channels: Channels) -> torch.Tensor | None:
            squares = channels.squares
            if not squares.any():
                return None  # nobody reads
            squares = squares.clamp(min=SMALLEST * float(squares.mean()))
            candidates = [squares ** (-exponent / 2) for exponent in EXPONENTS]
            return best_factors(channels, candidates, encoding)

        return rescaled(network, stats, choose)
