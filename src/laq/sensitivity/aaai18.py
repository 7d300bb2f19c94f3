"""Adaptive Quantization for Deep Neural Network: margins of the output against noise in each weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import log2
from typing import ClassVar, Literal, final

import numpy as np
import numpy.typing as npt
import torch

from laq.core.curve import WeightCurves
from laq.core.formats import CANDIDATES, TRELLISES
from laq.core.progress import track
from laq.networks.module import Batch, evaluation_mode, run_logits
from laq.networks.swapped import Swapped
from laq.sensitivity import Measured, Sensitivity, Subject
from laq.sensitivity.common.swaps import check_batches, quantized_alone, shortened
from laq.sensitivity.common.tile_losses import tile_losses
from laq.sensitivity.common.tiles import measure_tiles

B0 = 4
"""Width at which each weight is quantized alone."""

ACCURACY_DROP = 0.1
"""Share of tokens whose most likely class the noise may change."""

TOKENS = 128
BISECTIONS = 6
NOISE_RANGE = (0.02, 2.0)
"""Half width of the uniform noise over the root mean square of the weight, where the bisection starts."""


@final
class Aaai18(Sensitivity):
    """loss_i(b) = p_i / t_i 4^-b for weight i, from two measurements of the network's output Z.

    p_i = mean ||dZ||^2 4^b0 with weight i quantized alone at b0 bits; t_i = mean ||dZ||^2 / n* under the
    uniform noise on weight i that changes a tenth of the most likely classes, found by bisection of its
    logarithm; n* = mean (z_1 - z_2)^2 / 2 over the two largest outputs. Spending bytes on these curves at one
    price is the paper's rule b_i = b_1 + log_4 (p_i t_1 s_1 / (p_1 t_i s_i)), with s_i weights. All tiles of
    a weight have equal curves.

    References
    ----------
    Zhou et al., arXiv:1712.01048.
    """

    status: ClassVar[Literal["stable", "experimental"]] = "experimental"
    summary: ClassVar[str] = "output noise at 4 bits over the noise that the margin bears, by weight; slow"
    runs_network: ClassVar[bool] = True

    def measure(self, subject: Subject) -> Measured:
        """Return the curves; see `Sensitivity.measure`.

        Raises
        ------
        DataError
            If there is no data to run on.
        """
        check_batches(subject.batches, "aaai18")
        orders = measure_tiles(subject, tile_losses)
        (values,) = quantized_alone(subject, orders, [CANDIDATES.index(TRELLISES[B0])])
        probe = _Probe.of(subject)
        weights = []
        for weight in track(orders.weights, label="margins against noise", total=len(orders.weights)):
            original = subject.network.weight(weight.name)
            p = probe.shift(weight.name, values[weight.name]).squared * 4**B0
            t = _noise_at_drop(probe, weight.name, original, subject.seed) / probe.margin
            weights.append(replace(weight, loss_nats=_curves(weight, p / max(t, 1e-30))))
        return replace(orders, weights=tuple(weights))


@dataclass(frozen=True, slots=True)
class _Shift:
    """What a change of one weight does to the output: mean ||dZ||^2, share of most likely classes kept."""

    squared: float
    agreement: float


@dataclass(frozen=True, slots=True)
class _Probe:
    """The network, a little data, and its output on it; `margin` is n*."""

    module: torch.nn.Module
    batches: Sequence[Batch]
    outputs: list[torch.Tensor]
    margin: float

    @staticmethod
    def of(subject: Subject) -> _Probe:
        """Run the original."""
        module, batches = subject.network.module, shortened(subject.batches, TOKENS)
        with torch.inference_mode(), evaluation_mode(module):
            outputs = [_rows(run_logits(module, batch)) for batch in batches]
        top = torch.cat([each.topk(2, -1).values for each in outputs]).double()
        return _Probe(
            module, batches, outputs, max(float((top[:, 0] - top[:, 1]).square().mean() / 2), 1e-30)
        )

    def shift(self, name: str, value: torch.Tensor) -> _Shift:
        """Run with one weight swapped."""
        squared, kept, n = 0.0, 0, 0
        swapped = Swapped(self.module, {name: value})
        with torch.inference_mode(), evaluation_mode(self.module):
            for batch, before in zip(self.batches, self.outputs, strict=True):
                after = _rows(run_logits(swapped, batch))
                squared += float((after - before).double().square().sum())
                kept += int((after.argmax(-1) == before.argmax(-1)).sum())
                n += len(before)
        return _Shift(squared / n, kept / n)


def _rows(logits: torch.Tensor) -> torch.Tensor:
    return logits.flatten(0, -2).float()


def _noise_at_drop(probe: _Probe, name: str, weight: torch.Tensor, seed: int) -> float:
    """Mean ||dZ||^2 under the uniform noise on one weight that costs `ACCURACY_DROP`."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(weight.shape, generator=generator).mul_(2).sub_(1)
    noise *= float(weight.float().square().mean().sqrt())
    low, high = NOISE_RANGE
    squared = 0.0
    for _ in range(BISECTIONS):
        middle = float(np.sqrt(low * high))
        found = probe.shift(name, (weight + middle * noise).to(weight.dtype))
        squared = found.squared
        if 1 - found.agreement < ACCURACY_DROP:
            low = middle
        else:
            high = middle
    return squared


def _curves(weight: WeightCurves, ratio: float) -> npt.NDArray[np.float32]:
    """Spread ratio 4^-b evenly over the tiles; formats that statistics forbid stay infinite."""
    by_width = ratio * np.array([4.0 ** -log2(max(c.n_levels, 1)) for c in CANDIDATES]) / weight.grid.n_tiles
    losses = np.broadcast_to(by_width[:, None, None], weight.loss_nats.shape)
    return np.where(np.isfinite(weight.loss_nats), losses, np.inf).astype(np.float32)
