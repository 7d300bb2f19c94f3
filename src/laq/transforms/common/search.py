"""What quantization would cost the readers of a place under given factors: the quantizer itself is asked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from laq.core.formats import CANDIDATES, TRELLISES
from laq.core.formats.integer import INT2, INT4
from laq.core.groups import TILE_ROWS, TileGrid
from laq.core.importance import Importance
from laq.quantizers.common.encoding import Encoding
from laq.quantizers.common.sorting import column_order, sort_weight, sorted_hessian
from laq.quantizers.common.trial import tried_losses
from laq.transforms.common.rescale import Channels

FORMATS = (INT2, INT4, TRELLISES[2], TRELLISES[4])
"""Two of each family, between which most tiles lie."""

CHOICES = [CANDIDATES.index(each) for each in FORMATS]

SAMPLE_ROWS = 4 * TILE_ROWS
"""Rows of each reader that are quantized, spread evenly."""

WORTH = 0.98
"""Share of the loss without factors from which on they are taken: smaller gains on a sample are chance."""


def best_factors(
    channels: Channels, candidates: Sequence[torch.Tensor], encoding: Encoding
) -> torch.Tensor | None:
    """Return the factors of least loss, or None if none is worth it.

    Parameters
    ----------
    channels : Channels
        The place.
    candidates : sequence of float [n_channels]
        Factors to try.
    encoding : Encoding
        How the readers will be encoded.
    """
    spread = channels.place.spread
    samples = [_sample(*pair) for pair in zip(channels.weights, channels.importances, strict=True)]
    before = _log_loss(samples, spread(torch.ones_like(candidates[0])), encoding)
    losses = [_log_loss(samples, spread(factors), encoding) for factors in candidates]
    best = min(range(len(losses)), key=lambda i: losses[i])
    return candidates[best] if losses[best] < before + math.log(WORTH) else None


@dataclass(frozen=True, slots=True)
class _Sample:
    """Some rows of a reader, and the number of rows for each of which one of them stands."""

    matrix: torch.Tensor
    importance: Importance
    n_rows_each: float


def _sample(weight: torch.Tensor, importance: Importance) -> _Sample:
    n = min(SAMPLE_ROWS, len(weight))
    rows = np.linspace(0, len(weight) - 1, n).astype(np.int64)
    own = replace(importance, rows=importance.rows[rows], row_support=importance.row_support[rows])
    return _Sample(weight[torch.from_numpy(rows)], own, len(weight) / n)


def _log_loss(samples: Sequence[_Sample], columns: torch.Tensor, encoding: Encoding) -> float:
    """Mean logarithm, over formats, of what the errors of all readers cost together."""
    factors = (columns / columns.log().mean().exp()).float()
    inverse = 1 / factors.numpy()
    shared = samples[0].importance
    scaled = replace(shared, hessian=(shared.hessian * inverse[:, None] * inverse).astype(np.float32))
    order = column_order(scaled)
    hessian = sorted_hessian(scaled, TileGrid(TILE_ROWS, len(factors), encoding.group_size), order)
    feedback = encoding.quantizer.prepare(hessian)
    total = np.zeros(len(FORMATS))
    for sample in samples:
        matrix = sample.matrix * factors
        grid = TileGrid(len(matrix), len(factors), encoding.group_size)
        rows = sort_weight(matrix, sample.importance, grid, hessian=hessian, rows=None, columns=order)
        losses = tried_losses(rows, encoding.quantizer, feedback, CHOICES, scale_format=encoding.scale_format)
        total += losses * sample.n_rows_each
    return float(np.log(np.maximum(total, 1e-300)).mean())
