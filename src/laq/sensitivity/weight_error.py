"""Squared error of the weights alone: needs no data."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal, final

import torch

from laq.sensitivity import Measured, Sensitivity, Subject
from laq.sensitivity.common.tile_losses import Tiled, TileLosses, rounding_losses
from laq.sensitivity.common.tiles import measure_tiles


@final
class WeightError(Sensitivity):
    """1/2 sum_ij dW_ij^2, with the range of each group searched for the same."""

    status: ClassVar[Literal["stable", "experimental"]] = "stable"
    summary: ClassVar[str] = "squared error of the weights, no data; only ratios count"
    runs_network: ClassVar[bool] = False

    def measure(self, subject: Subject) -> Measured:
        """Return the curves; see `Sensitivity.measure`."""
        return measure_tiles(subject, _weight_errors)


def _weight_errors(tiled: Tiled) -> TileLosses:
    weight = tiled.weight
    plain = replace(weight, rows=weight.real_rows())
    tiled = replace(tiled, weight=plain)
    tiled = replace(tiled, feedback=tiled.prepared())
    return rounding_losses(tiled, plain, torch.ones(len(weight.matrix)))
