"""AWQ: columns with large inputs are quantized at a larger scale."""

from __future__ import annotations

from typing import ClassVar, Literal, final

import torch

from laq.core.stats import Stats
from laq.networks.module import Network
from laq.quantizers.common.encoding import Encoding
from laq.transforms import Transform, Transformed
from laq.transforms.common.rescale import Channels, rescaled
from laq.transforms.common.search import best_factors

EXPONENTS = (0.125, 0.25, 0.375, 0.5, 0.75)
"""Powers of the inputs' size that are tried; with 1 small columns lose several times what large ones gain."""


@final
class Awq(Transform):
    """Columns are multiplied by E[x_j^2]^(a / 2), their inputs divided by it; a is chosen for every place.

    The paper takes E|x_j|, and a from a grid by the error of the output; here the quantizer that follows is
    run on a sample of rows, so that a fits whatever it does.

    References
    ----------
    Lin et al., arXiv:2306.00978, equations 4 and 5.
    """

    status: ClassVar[Literal["stable", "experimental"]] = "experimental"
    summary: ClassVar[str] = "columns of large inputs made larger, by a power the quantizer's own error picks"

    def apply(self, network: Network, stats: Stats, encoding: Encoding) -> Transformed:
        """Return the rescaled network; see `Transform.apply`."""

        def choose(channels: Channels) -> torch.Tensor | None:
            moments = channels.second_moments
            candidates = [moments ** (exponent / 2) for exponent in EXPONENTS]
            return best_factors(channels, candidates, encoding)

        return rescaled(network, stats, choose)
