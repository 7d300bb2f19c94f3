"""Curves of all weights of a network; weights that share an input share its factor and order of columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from laq.core.curve import WeightCurves
from laq.core.formats import CANDIDATES
from laq.core.groups import TileGrid
from laq.core.importance import Importance, importance_of
from laq.core.low_rank import rank_for
from laq.core.permutation import IndexArray, permutation_bytes
from laq.core.progress import track
from laq.core.stats import Stats
from laq.networks.module import WeightRef
from laq.quantizers import Feedback, Quantizer, quantizer_of
from laq.quantizers.common.low_rank import first_correction, group_costs, minus
from laq.quantizers.common.product import product_losses
from laq.quantizers.common.sorting import column_order, row_order, sort_weight, sorted_hessian
from laq.quantizers.common.workers import side_by_side
from laq.sensitivity import Measured, Subject
from laq.sensitivity.common.tile_losses import Tiled, TileLosses

MAX_ORDER_BITS = 0.25
"""Bits per weight that storing an order may cost; sorting saves about half a bit (bench/RESULTS.md)."""


LossesOf = Callable[[Tiled], TileLosses]
"""A metric of one weight."""


@dataclass(frozen=True, slots=True)
class _Shared:
    """What weights that share an input share: the key and order of columns, and what was derived in it."""

    key: str
    columns: IndexArray | None
    hessian: torch.Tensor
    quantizer: Quantizer
    feedback: Feedback

    @property
    def order(self) -> str:
        """Name of the order of columns, empty if they keep theirs."""
        return self.key if self.columns is not None else ""


def measure_tiles(subject: Subject, losses_of: LossesOf) -> Measured:
    """Measure every tile of every weight at every candidate format by a metric that takes one weight.

    Parameters
    ----------
    subject : Subject
        What is measured.
    losses_of : callable
        The metric.

    Raises
    ------
    CalibrationError
        If the statistics of a weight are missing or unusable.
    """
    columns: dict[str, IndexArray] = {}
    curves: dict[str, list[WeightCurves]] = {}
    quantizer = quantizer_of(subject.quantizer, subject.range)
    families = group_by_input(subject.network.weights, subject.stats)
    measured = side_by_side(lambda family: _measure_family(family, subject, quantizer, losses_of), families)
    for family in track(measured, label="measuring", total=len(families)):
        columns |= family.column_permutations
        for weight in family.weights:
            curves.setdefault(weight.name, []).append(weight)
    ordered = [curves[weight.name] for weight in subject.network.weights]
    alternatives = [one for _, *others in ordered for one in others]
    return Measured(tuple(first for first, *_ in ordered), columns, tuple(alternatives))


def _measure_family(
    family: Sequence[WeightRef], subject: Subject, quantizer: Quantizer, losses_of: LossesOf
) -> Measured:
    """Measure weights that share an input, at every rank: one factor, one order of columns."""
    key = f"{subject.stats.uses_of(family[0].name)[0].columns}.column_permutation"
    shared: _Shared | None = None
    curves: list[WeightCurves] = []
    for weight in family:
        importance = importance_of(subject.stats, weight.name)
        if shared is None:
            sorts = _worth_sorting_columns(family, subject.group_size)
            columns = column_order(importance) if sorts else None
            hessian = sorted_hessian(importance, TileGrid(*weight.shape, subject.group_size), columns)
            shared = _Shared(key, columns, hessian, quantizer, quantizer.prepare(hessian))
        curves += _measure(weight, subject, importance, shared, losses_of)
        if subject.products:
            curves += _in_products(weight, subject, importance, shared)
    assert shared is not None
    return Measured(tuple(curves), {} if shared.columns is None else {key: shared.columns})


def group_by_input(weights: Sequence[WeightRef], stats: Stats) -> list[list[WeightRef]]:
    """Return weights that share the moments of their input together, in order of first appearance."""
    families: dict[str, list[WeightRef]] = {}
    for weight in weights:
        families.setdefault(stats.uses_of(weight.name)[0].columns, []).append(weight)
    return list(families.values())


def _worth_sorting_columns(family: Sequence[WeightRef], group_size: int) -> bool:
    n_columns = family[0].shape[1]
    n_weights = sum(weight.shape[0] * n_columns for weight in family)
    return n_columns > group_size and 8 * permutation_bytes(n_columns) <= MAX_ORDER_BITS * n_weights


def _measure(
    weight: WeightRef, subject: Subject, importance: Importance, shared: _Shared, losses_of: LossesOf
) -> list[WeightCurves]:
    """Measure one weight at every rank that it can have."""
    values = subject.network.weight(weight.name)
    ranks = dict.fromkeys(rank_for(r, kind=weight.kind, shape=weight.shape) for r in subject.ranks)
    if not any(ranks):
        return [_curves(weight, values, subject, importance, shared, losses_of)]
    column_weights = shared.feedback.column_weights
    costs = group_costs(column_weights, subject.group_size, weight.shape[1], shared.columns)
    widest = first_correction(values, importance, costs, rank=max(ranks))
    found = []
    for rank in ranks:
        left = values if not rank else minus(values, widest.truncated(rank))
        found.append(replace(_curves(weight, left, subject, importance, shared, losses_of), rank=rank))
    return found


def _in_products(
    weight: WeightRef, subject: Subject, importance: Importance, shared: _Shared
) -> list[WeightCurves]:
    """Measure one weight in every product code: its tiles are absent and share the loss."""
    grid, columns, codes = TileGrid(*weight.shape, subject.group_size), shared.columns, subject.products
    values = subject.network.weight(weight.name)
    ordered = sort_weight(values, importance, grid, hessian=shared.hessian, rows=None, columns=columns)
    found = []
    for code, loss in zip(codes, product_losses(ordered, shared.feedback, codes), strict=True):
        losses = _unknown(grid)
        losses[0] = loss / grid.n_tiles
        found.append(WeightCurves(weight.name, grid, losses, None, shared.order, product=code))
    return found


def _curves(  # noqa: PLR0917 - private, passes along what one weight has
    weight: WeightRef,
    values: torch.Tensor,
    subject: Subject,
    importance: Importance,
    shared: _Shared,
    losses_of: LossesOf,
) -> WeightCurves:
    grid, columns = TileGrid(*weight.shape, subject.group_size), shared.columns
    if not any(subject.allowed):
        return WeightCurves(weight.name, grid, _unknown(grid), None, shared.order)
    rows = row_order(values, importance) if _worth_sorting_rows(grid) else None
    tiled = Tiled(
        sort_weight(values, importance, grid, hessian=shared.hessian, rows=rows, columns=columns),
        shared.quantizer,
        shared.feedback,
        importance,
        columns,
        subject.scale_format,
        subject.allowed,
        weight.name,
    )
    return WeightCurves(weight.name, grid, losses_of(tiled), rows, shared.order)


def _unknown(grid: TileGrid) -> TileLosses:
    return np.full((len(CANDIDATES), grid.n_row_blocks, grid.n_groups), np.inf, np.float32)


def _worth_sorting_rows(grid: TileGrid) -> bool:
    stored_bits = 8 * permutation_bytes(grid.n_rows)
    return grid.n_row_blocks > 1 and stored_bits <= MAX_ORDER_BITS * grid.n_rows * grid.n_columns
