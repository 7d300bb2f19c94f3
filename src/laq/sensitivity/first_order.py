"""The linear term of the loss: gradient times what rounding changes."""

from __future__ import annotations

from itertools import groupby
from typing import ClassVar, Literal, final

import numpy as np
import torch

from laq.core.formats import CANDIDATES
from laq.core.groups import TILE_ROWS
from laq.quantizers.common.dequantize import dequantize_columns
from laq.quantizers.common.sorting import sort_weight
from laq.sensitivity import Measured, Sensitivity, Subject
from laq.sensitivity.common.gradients import MeanGradients
from laq.sensitivity.common.swaps import check_batches, shortened
from laq.sensitivity.common.tile_losses import Tiled, TileLosses, forbid_unsupported_
from laq.sensitivity.common.tiles import measure_tiles

TOKENS = 2048


@final
class FirstOrder(Sensitivity):
    """|sum_ij g_ij (w^_ij - w_ij)| of every tile, with what the quantizer itself leaves at every format.

    g is the mean gradient of the loss. A sum of signed terms may be small by chance at few bits, so no format
    is said to lose less than a wider one of its family does.
    """

    status: ClassVar[Literal["stable", "experimental"]] = "experimental"
    summary: ClassVar[str] = "gradient times change of the weights, the linear term alone; a baseline"
    runs_network: ClassVar[bool] = True

    def measure(self, subject: Subject) -> Measured:
        """Return the curves; see `Sensitivity.measure`.

        Raises
        ------
        DataError
            If there is no data to run on.
        """
        check_batches(subject.batches, "first_order")
        gradients = MeanGradients(subject.network, shortened(subject.batches, TOKENS))
        return measure_tiles(subject, lambda tiled: _linear_terms(tiled, gradients.of(tiled.name)))


def _linear_terms(tiled: Tiled, gradient: torch.Tensor) -> TileLosses:
    """Curves of one weight, from its gradient in the source's order."""
    weight, grid, feedback = tiled.weight, tiled.weight.grid, tiled.prepared()
    matrix = weight.matrix
    order = {"rows": weight.row_permutation, "columns": tiled.columns}
    slopes = sort_weight(gradient, tiled.importance, grid, hessian=weight.hessian, **order).matrix
    losses = np.full((len(CANDIDATES), grid.n_row_blocks, grid.n_groups), np.inf, np.float32)
    for choice in np.flatnonzero(tiled.allowed).tolist():
        choices = torch.full((grid.n_groups, grid.n_row_blocks), choice, dtype=torch.uint8)
        codes = tiled.quantizer.quantize(matrix, feedback, choices, scale_format=tiled.scale_format)
        error = dequantize_columns(codes, choices, tiled.scale_format, feedback.palettes) - matrix
        terms = (slopes * error).view(grid.n_groups, grid.group_size, grid.n_row_blocks, TILE_ROWS)
        losses[choice] = terms.sum((1, 3)).abs().T.numpy()
    _raise_to_wider_(losses)
    forbid_unsupported_(losses, tiled)
    return losses


def _raise_to_wider_(losses: TileLosses) -> None:
    """Let losses fall with the levels of a family; a tile that is left out loses most of all."""
    for family in {type(candidate) for candidate in CANDIDATES}:
        members = [
            i for i, c in enumerate(CANDIDATES) if isinstance(c, family) and np.isfinite(losses[i]).all()
        ]
        members.sort(key=lambda i: -CANDIDATES[i].n_levels)
        least = np.zeros_like(losses[0])
        for _, same in groupby(members, key=lambda i: CANDIDATES[i].n_levels):
            width = list(same)
            losses[width] = np.maximum(losses[width], least)
            least = losses[width].max(0)
    stored = losses[1:][np.isfinite(losses[1:]).all((1, 2))]
    losses[0] = np.maximum(losses[0], stored.max(0, initial=0))
