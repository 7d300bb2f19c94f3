"""Curves of all weights of a network; weights that share an input share its factor and order of columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from laq.core.curve import WeightCurves
from laq.core.formats import CANDIDATES
from laq.core.groups import TileGrid
from laq.core.importance import Importance, importance_of
from laq.core.low_rank import rank_for
from laq.core.permutation import IndexArray, permutation_bytes
from laq.core.product import ProductCode
from laq.core.progress import track
from laq.core.scheme import ScaleFormat
from laq.core.stats import Stats
from laq.networks.module import Network, WeightRef
from laq.quantizers import Feedback, Quantizer
from laq.quantizers.common.low_rank import first_correction, group_costs, minus
from laq.quantizers.common.product import product_losses
from laq.quantizers.common.sorting import (
    column_order,
    row_order,
    sort_weight,
    sorted_hessian,
)
from laq.quantizers.common.workers import side_by_side
from laq.sensitivity.fisher import tile_losses

MAX_ORDER_BITS = 0.25
"""Bits per weight that storing an order may cost; sorting saves about half a bit (bench/RESULTS.md)."""


@dataclass(frozen=True, slots=True)
class Measured:
    """Curves of every weight, also with other corrections, and the column permutations that they share."""

    weights: tuple[WeightCurves, ...]
    column_permutations: dict[str, IndexArray]
    alternatives: tuple[WeightCurves, ...] = ()


@dataclass(frozen=True, slots=True)
class _Encoding:
    """How weights are encoded."""

    quantizer: Quantizer
    group_size: int
    scale_format: ScaleFormat
    allowed: Sequence[bool]
    ranks: tuple[int, ...]
    products: tuple[ProductCode, ...]


@dataclass(frozen=True, slots=True)
class _Shared:
    """What weights that share an input share: the key and order of columns, and what was derived in it."""

    key: str
    columns: IndexArray | None
    hessian: torch.Tensor
    feedback: Feedback


def measure_weights(  # noqa: PLR0913 - what is measured, all by keyword
    network: Network,
    stats: Stats,
    quantizer: Quantizer,
    *,
    group_size: int,
    scale_format: ScaleFormat,
    allowed: Sequence[bool],
    ranks: tuple[int, ...] = (0,),
    products: tuple[ProductCode, ...] = (),
) -> Measured:
    """Measure every tile of every weight at every format that is allowed.

    Parameters
    ----------
    network : Network
        The weights.
    stats : Stats
        What calibration saw of them.
    quantizer : Quantizer
        Method whose error is measured.
    group_size : int
        Columns that share a scale.
    scale_format : ScaleFormat
        How scales are stored.
    allowed : sequence of bool, [n_candidates]
        Formats that are measured; see `laq.core.formats.formats_of`.
    ranks : tuple of int
        Ranks of corrections to measure weights with, where they can have them. The first is that of
        `weights`, the others make `alternatives`.
    products : tuple of ProductCode
        Measured beside, as alternatives.

    Raises
    ------
    CalibrationError
        If the statistics of a weight are missing or unusable.
    """
    encoding = _Encoding(quantizer, group_size, scale_format, allowed, ranks, products)
    columns: dict[str, IndexArray] = {}
    curves: dict[str, list[WeightCurves]] = {}
    families = group_by_input(network.weights, stats)
    measured = side_by_side(lambda family: _measure_family(network, family, stats, encoding), families)
    for family in track(measured, label="measuring", total=len(families)):
        columns |= family.column_permutations
        for weight in family.weights:
            curves.setdefault(weight.name, []).append(weight)
    ordered = [curves[weight.name] for weight in network.weights]
    alternatives = [one for _, *others in ordered for one in others]
    return Measured(tuple(first for first, *_ in ordered), columns, tuple(alternatives))


def _measure_family(
    network: Network, family: Sequence[WeightRef], stats: Stats, encoding: _Encoding
) -> Measured:
    """Measure weights that share an input, at every rank: one factor, one order of columns."""
    key = f"{stats.uses_of(family[0].name)[0].columns}.column_permutation"
    shared: _Shared | None = None
    curves: list[WeightCurves] = []
    for weight in family:
        importance = importance_of(stats, weight.name)
        if shared is None:
            sorts = _worth_sorting_columns(family, encoding.group_size)
            columns = column_order(importance) if sorts else None
            hessian = sorted_hessian(importance, TileGrid(*weight.shape, encoding.group_size), columns)
            shared = _Shared(key, columns, hessian, encoding.quantizer.prepare(hessian))
        values = network.weight(weight.name)
        curves += _measure(weight, values, importance, shared, encoding)
        if encoding.products:
            curves += _in_products(weight, values, importance, shared, encoding)
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
    weight: WeightRef, values: torch.Tensor, importance: Importance, shared: _Shared, encoding: _Encoding
) -> list[WeightCurves]:
    """Measure one weight at every rank that it can have."""
    ranks = dict.fromkeys(rank_for(r, kind=weight.kind, shape=weight.shape) for r in encoding.ranks)
    if not any(ranks):
        return [_curves(weight, values, importance, shared, encoding)]
    column_weights = shared.feedback.column_weights
    costs = group_costs(column_weights, encoding.group_size, weight.shape[1], shared.columns)
    widest = first_correction(values, importance, costs, rank=max(ranks))
    found = []
    for rank in ranks:
        left = values if not rank else minus(values, widest.truncated(rank))
        found.append(replace(_curves(weight, left, importance, shared, encoding), rank=rank))
    return found


def _in_products(
    weight: WeightRef, values: torch.Tensor, importance: Importance, shared: _Shared, encoding: _Encoding
) -> list[WeightCurves]:
    """Measure one weight in every product code: its tiles are absent and share the loss."""
    grid, columns, codes = TileGrid(*weight.shape, encoding.group_size), shared.columns, encoding.products
    ordered = sort_weight(values, importance, grid, hessian=shared.hessian, rows=None, columns=columns)
    found = []
    for code, loss in zip(codes, product_losses(ordered, shared.feedback, codes), strict=True):
        losses = _unknown(grid)
        losses[0] = loss / grid.n_tiles
        key = shared.key if columns is not None else ""
        found.append(WeightCurves(weight.name, grid, losses, None, key, product=code))
    return found


def _curves(
    weight: WeightRef, values: torch.Tensor, importance: Importance, shared: _Shared, encoding: _Encoding
) -> WeightCurves:
    grid, columns = TileGrid(*weight.shape, encoding.group_size), shared.columns
    key = shared.key if columns is not None else ""
    if not any(encoding.allowed):
        return WeightCurves(weight.name, grid, _unknown(grid), None, key)
    rows = row_order(values, importance) if _worth_sorting_rows(grid) else None
    sorted_weight = sort_weight(values, importance, grid, hessian=shared.hessian, rows=rows, columns=columns)
    losses = tile_losses(
        sorted_weight,
        encoding.quantizer,
        shared.feedback,
        importance,
        columns=columns,
        scale_format=encoding.scale_format,
        allowed=encoding.allowed,
    )
    return WeightCurves(weight.name, grid, losses, rows, key)


def _unknown(grid: TileGrid) -> npt.NDArray[np.float32]:
    return np.full((len(CANDIDATES), grid.n_row_blocks, grid.n_groups), np.inf, np.float32)


def _worth_sorting_rows(grid: TileGrid) -> bool:
    stored_bits = 8 * permutation_bytes(grid.n_rows)
    return grid.n_row_blocks > 1 and stored_bits <= MAX_ORDER_BITS * grid.n_rows * grid.n_columns
