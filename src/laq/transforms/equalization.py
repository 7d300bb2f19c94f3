"""Cross-layer equalization: each channel has one range in the layer that writes it and in its readers."""

from __future__ import annotations

from typing import ClassVar, Literal, final

import torch

from laq.core.stats import Stats
from laq.networks.module import Network
from laq.quantizers.common.encoding import Encoding
from laq.transforms import Transform, Transformed
from laq.transforms.common.rescale import Channels, rescaled

SMALLEST = 1e-3
"""Range, in means over all channels, below which a channel counts as this wide."""


@final
class Equalization(Transform):
    """Columns are multiplied by sqrt(r1_j / r2_j): ranges of what writes and of what reads channel j.

    Only between linears: a norm's gain is not quantized, so its range costs nothing.

    References
    ----------
    Nagel et al., arXiv:1906.04721, equation 11.
    """

    status: ClassVar[Literal["stable", "experimental"]] = "experimental"
    summary: ClassVar[str] = "one range of each channel in the linear that writes it and in its readers"

    def apply(self, network: Network, stats: Stats, encoding: Encoding) -> Transformed:
        """Return the rescaled network; see `Transform.apply`."""
        del encoding
        return rescaled(network, stats, _equalizing)


def _equalizing(channels: Channels) -> torch.Tensor | None:
    if channels.writer is None:
        return None
    written = channels.writer.abs().amax(1)
    of_columns = torch.stack([weight.abs().amax(0) for weight in channels.weights]).amax(0)
    read = channels.place.gathered(of_columns)
    if not written.any() or not read.any():
        return None  # nothing is written, or nobody reads
    written, read = (ranges.clamp(min=SMALLEST * float(ranges.mean())) for ranges in (written, read))
    return (written / read).sqrt()
