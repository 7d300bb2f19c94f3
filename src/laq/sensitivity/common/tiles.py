"""Curves of all weights of a network; weights that share an input share its factor and order of columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from laq.core.correction import amounts_for
from laq.core.curve import WeightCurves
from laq.core.formats import CANDIDATES
from laq.core.groups import TileGrid
from laq.core.importance import Importance, importance_of
from laq.core.permutation import IndexArray, permutation_bytes
from laq.core.progress import track
from laq.core.stats import Stats
from laq.networks.module import WeightRef
from laq.quantizers import Quantizer, quantizer_of
from laq.quantizers.common.correction import Corrected, first_corrections
from laq.quantizers.common.low_rank import minus
from laq.quantizers.common.prepared import Prepared, PreparedInput
from laq.quantizers.common.product import product_losses
from laq.quantizers.common.sorting import SortedWeight, column_order, row_order, sort_weight
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
    prepared: PreparedInput

    @property
    def columns(self) -> IndexArray | None:
        """The order of columns."""
        return self.prepared.columns

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
    quantizer = quantizer_of(subject.quantizer, subject.range, subject.scale_per)
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
    """Measure weights that share an input, in every way: one order of columns, one factor a width."""
    key = f"{subject.stats.uses_of(family[0].name)[0].columns}.column_permutation"
    group_sizes = (subject.group_size, *subject.other_group_sizes)
    importances = [importance_of(subject.stats, weight.name) for weight in family]
    sorts = _worth_sorting_columns(family, min(group_sizes))
    columns = column_order(importances[0]) if sorts else None
    shared = _Shared(key, PreparedInput(quantizer, importances[0], columns))
    curves: list[WeightCurves] = []
    for weight, importance in zip(family, importances, strict=True):
        for group_size in group_sizes:
            one = _Measuring(weight, TileGrid(*weight.shape, group_size), subject, importance, shared)
            curves += _measure(one, losses_of)
            if subject.products:
                curves += _in_products(one)
    return Measured(tuple(curves), {} if columns is None else {key: columns})


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


@dataclass(frozen=True, slots=True)
class _Measuring:
    """One weight at one group size, and what it is measured with."""

    weight: WeightRef
    grid: TileGrid
    subject: Subject
    importance: Importance
    shared: _Shared

    @property
    def values(self) -> torch.Tensor:
        return self.subject.network.weight(self.weight.name)

    @property
    def prepared(self) -> Prepared:
        return self.shared.prepared.of(self.grid)

    def sorted(self, values: torch.Tensor, rows: IndexArray | None) -> SortedWeight:
        hessian, columns = self.prepared.hessian, self.shared.columns
        return sort_weight(values, self.importance, self.grid, hessian=hessian, rows=rows, columns=columns)

    def curves(self, losses: TileLosses, rows: IndexArray | None) -> WeightCurves:
        return WeightCurves(self.weight.name, self.grid, losses, rows, self.shared.order)


def _measure(one: _Measuring, losses_of: LossesOf) -> list[WeightCurves]:
    """Measure a weight with every correction that it can have."""
    subject, weight, columns = one.subject, one.weight, one.shared.columns
    amounts = amounts_for(subject.ranks, subject.shares, kind=weight.kind, shape=weight.shape)
    column_weights = one.prepared.feedback.column_weights
    seen = Corrected(one.values, one.importance, column_weights, one.grid.group_size, columns)
    asked = [amount for amount in amounts if amount]
    corrections = dict(zip(asked, first_corrections(seen, asked), strict=True))
    found = []
    for amount in amounts:
        left = minus(one.values, corrections[amount]) if amount else one.values
        found.append(replace(_tiles(one, left, losses_of), amount=amount))
    return found


def _in_products(one: _Measuring) -> list[WeightCurves]:
    """Measure a weight in every product code: its tiles are absent and share the loss."""
    codes = one.subject.products
    found = product_losses(one.sorted(one.values, None), one.prepared.feedback, codes)
    result = []
    for code, loss in zip(codes, found, strict=True):
        losses = _unknown(one.grid)
        losses[0] = loss / one.grid.n_tiles
        result.append(replace(one.curves(losses, None), product=code))
    return result


def _tiles(one: _Measuring, values: torch.Tensor, losses_of: LossesOf) -> WeightCurves:
    """Measure the tiles of what a correction left of a weight."""
    if not any(one.subject.allowed):
        return one.curves(_unknown(one.grid), None)
    rows = row_order(values, one.importance) if _worth_sorting_rows(one.grid) else None
    tiled = Tiled(
        one.sorted(values, rows),
        one.shared.prepared.quantizer,
        one.prepared.feedback,
        one.importance,
        one.shared.columns,
        one.subject.scale_format,
        one.subject.allowed,
        one.weight.name,
        one.subject.scale_per,
    )
    return one.curves(losses_of(tiled), rows)


def _unknown(grid: TileGrid) -> TileLosses:
    return np.full((len(CANDIDATES), grid.n_row_blocks, grid.n_groups), np.inf, np.float32)


def _worth_sorting_rows(grid: TileGrid) -> bool:
    stored_bits = 8 * permutation_bytes(grid.n_rows)
    return grid.n_row_blocks > 1 and stored_bits <= MAX_ORDER_BITS * grid.n_rows * grid.n_columns
