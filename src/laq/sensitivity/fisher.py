"""Fisher x measured encoder error: nats per token."""

from __future__ import annotations

from typing import ClassVar, Literal, final

from laq.sensitivity import Measured, Sensitivity, Subject
from laq.sensitivity.common.tile_losses import tile_losses
from laq.sensitivity.common.tiles import measure_tiles


@final
class Fisher(Sensitivity):
    """1/2 sum_i G_i dW_i H dW_i', with the error dW that the quantizer's own search leaves.

    References
    ----------
    Martens and Grosse, arXiv:1503.05671; of quantization error, Dong et al., arXiv:1905.03696.
    """

    status: ClassVar[Literal["stable", "experimental"]] = "stable"
    summary: ClassVar[str] = "squared gradients x second moments of inputs x encoder error, in nats"
    runs_network: ClassVar[bool] = False

    def measure(self, subject: Subject) -> Measured:
        """Return the curves; see `Sensitivity.measure`."""
        return measure_tiles(subject, tile_losses)
