"""Direct KL of one weight swapped at a time: slow, and what the others are compared with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Literal, final

import numpy as np

from laq.core.curve import WeightCurves
from laq.core.errors import RequestError
from laq.core.formats import CANDIDATES, TRELLISES
from laq.core.formats.integer import INT2, INT4
from laq.core.progress import track
from laq.evaluation.divergence import compare
from laq.networks.swapped import Swapped
from laq.sensitivity import Measured, Sensitivity, Subject
from laq.sensitivity.common.swaps import check_batches, quantized_alone, shortened
from laq.sensitivity.common.tile_losses import tile_losses
from laq.sensitivity.common.tiles import measure_tiles

PAIRS = ((TRELLISES[2], TRELLISES[4]), (INT2, INT4))
"""Formats that are swapped in: the first pair that is measured. In between, the ratio to the tiles' curves
is interpolated."""

TOKENS = 512
SIDE_BY_SIDE = 8
"""Weights swapped for one run of the original."""

LEAST_KL = 1e-8
"""Nats below which a difference is rounding of the network itself."""


@final
class KlSwap(Sensitivity):
    """KL(original || original with one weight quantized), for every weight at 2 and 4 bits.

    Curves of `fisher`'s form say how the loss of a weight spreads over tiles and formats; a factor by width
    makes their sum the measured KL.
    """

    status: ClassVar[Literal["stable", "experimental"]] = "experimental"
    summary: ClassVar[str] = "KL of the network with one weight swapped at a time: slow, a yardstick"
    runs_network: ClassVar[bool] = True

    def measure(self, subject: Subject) -> Measured:
        """Return the curves; see `Sensitivity.measure`.

        Raises
        ------
        DataError
            If there is no data to run on.
        """
        check_batches(subject.batches, "kl_swap")
        measured = measure_tiles(subject, tile_losses)
        names = [weight.name for weight in measured.weights]
        choices = choices_of(subject.allowed)
        found = swap_kl(subject, measured, choices, names)
        weights = tuple(
            _scaled(weight, choices, [kl[weight.name] for kl in found]) for weight in measured.weights
        )
        return replace(measured, weights=weights)


def choices_of(allowed: Sequence[bool]) -> tuple[int, ...]:
    """Return the two formats to swap in, among those allowed.

    Raises
    ------
    RequestError
        If there are none.
    """
    for pair in PAIRS:
        choices = tuple(CANDIDATES.index(one) for one in pair)
        if all(allowed[choice] for choice in choices):
            return choices
    raise RequestError(
        "kl_swap swaps in trellises or integers, and neither is among the formats asked for",
        hint="ask for --format integer or trellis among others, or another sensitivity",
    )


def swap_kl(
    subject: Subject, measured: Measured, choices: tuple[int, ...], names: list[str]
) -> list[dict[str, float]]:
    """Return the KL of every named weight swapped alone, for each candidate format; nats per token."""
    batches, original = shortened(subject.batches, TOKENS), subject.network.module
    result: list[dict[str, float]] = []
    for values in quantized_alone(subject, measured, choices):
        found: dict[str, float] = {}
        parts = [names[start : start + SIDE_BY_SIDE] for start in range(0, len(names), SIDE_BY_SIDE)]
        for part in track(parts, label="swapping weights", total=len(parts)):
            modules = [Swapped(original, {name: values[name]}) for name in part]
            divergences = compare(original, modules, batches, label="swapping weights")
            found |= {name: each.kl_nats for name, each in zip(part, divergences, strict=True)}
        result.append(found)
    return result


def _scaled(weight: WeightCurves, choices: tuple[int, ...], kl_nats: list[float]) -> WeightCurves:
    """Multiply curves so that the swapped formats' sums are the measured KL."""
    sums = weight.loss_nats[list(choices)].sum((1, 2), dtype=np.float64)
    ratios = np.log(np.maximum(kl_nats, LEAST_KL) / np.maximum(sums, 1e-30))
    widths = [CANDIDATES[choice].code_bits for choice in choices]
    factors = np.exp(np.interp([candidate.code_bits for candidate in CANDIDATES], widths, ratios))
    return replace(weight, loss_nats=weight.loss_nats * factors.astype(np.float32)[:, None, None])
