"""Second moments of inputs only: the squared error of each layer's own output."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal, final

from laq.sensitivity import Measured, Sensitivity, Subject
from laq.sensitivity.common.tile_losses import Tiled, TileLosses, tile_losses
from laq.sensitivity.common.tiles import measure_tiles


@final
class Hessian(Sensitivity):
    """1/2 sum_i dW_i H dW_i': every output counts the same, whatever the network makes of it.

    References
    ----------
    Frantar et al., arXiv:2210.17323, equation 1.
    """

    status: ClassVar[Literal["stable", "experimental"]] = "stable"
    summary: ClassVar[str] = "squared error of each layer's output, no gradients; only ratios count"
    runs_network: ClassVar[bool] = False

    def measure(self, subject: Subject) -> Measured:
        """Return the curves; see `Sensitivity.measure`."""
        return measure_tiles(subject, _output_errors)


def _output_errors(tiled: Tiled) -> TileLosses:
    weight = tiled.weight
    return tile_losses(replace(tiled, weight=replace(weight, rows=weight.real_rows())))
