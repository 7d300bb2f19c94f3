"""Spend a budget over all units of all weights at once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from laq.allocation import ALLOCATORS
from laq.allocation.common.options import Option, smallest_options, with_options
from laq.core.budget import bytes_to_bpw
from laq.core.curve import Curves, WeightCurves
from laq.core.errors import BudgetError, RequestError
from laq.core.formats import CANDIDATES, PRODUCT, check_range, formats_of
from laq.core.groups import TileGrid
from laq.core.packing import section_specs
from laq.core.plan import Plan, WeightPlan
from laq.core.scale_units import ScalePer
from laq.core.scheme import Scheme, StoredAs, check_stored
from laq.core.target import Unit, check_unit
from laq.io.archive import correction_bytes, product_bytes
from laq.io.safetensors_header import DATA_ALIGNMENT_BYTES

FLOOR_LEVELS = 4
"""Formats with fewer values are below the floor."""


@dataclass(frozen=True, slots=True)
class _Units:
    """Curves summed over what shares a decision.

    losses : float64 [n_candidates, n_units]        costs : int64 [n_candidates, n_units], bytes
    sizes : int64 [n_units], tiles in each unit
    """

    losses: npt.NDArray[np.float64]
    costs: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]


def allocate(  # noqa: PLR0913 - the options of a command, all by keyword
    curves: Curves,
    budget_bytes: int,
    *,
    unit: Unit = Unit.TILE,
    allocator: str = "lagrange",
    formats: str = "all",
    control: str | None = None,
    floor: bool = True,
    seed: int = 0,
) -> Plan:
    """Choose a format for every tile so that the archive stays within the budget.

    Parameters
    ----------
    curves : Curves
        Predicted losses and fixed bytes.
    budget_bytes : int
        Bytes of the whole archive folder.
    unit : Unit
        What shares one decision.
    allocator : str
        Method, see `laq methods`.
    formats : str
        Families of formats that tiles may take, keys of `laq.core.formats.FAMILIES` with commas between them;
        beside them a tile may be absent.
    control : str, optional
        "permuted": shuffle the losses between units first, to see what the signal is worth.
    floor : bool
        Give every tile two bits or more. Formats below leave errors that add up over rows and columns, which
        the sum of tile losses does not see (bench/RESULTS.md): use them when selection data confirm it, or
        when the budget leaves no choice.
    seed : int
        Seeds the shuffle.

    Raises
    ------
    RequestError
        If the measured range, group size or scales are not for these formats.
    BudgetError
        If the budget is below the smallest or above the original size; says the possible range.
    """
    check_range(curves.range, formats)
    check_stored(formats, curves.stored)
    check_unit(unit, curves.scale_per)
    if formats == PRODUCT and unit is Unit.NETWORK:
        raise RequestError("product codes are chosen for each weight", hint="choose unit tensor")
    smallest, largest = size_range(curves, unit=unit, formats=formats, floor=floor)
    if not smallest <= budget_bytes <= largest:
        raise _out_of_range(curves, budget_bytes, smallest, largest)
    group_size = curves.stored.group_sizes[0]  # which transforms were made with
    curves = with_options(
        curves,
        budget_bytes - curves.fixed_bytes,
        option=partial(_option, curves.stored, unit, formats=formats, floor=floor),
    )
    units = _units(curves, unit, formats=formats, floor=floor)
    guide = units.losses if control is None else _permuted(units, control, seed)
    left = budget_bytes - _fixed_bytes(curves, unit)
    choice = ALLOCATORS.get(allocator)().choose(guide, units.costs, left)
    index = np.arange(len(choice))
    return Plan(
        weights=tuple(_weight_plans(curves, unit, choice)),
        column_permutations=curves.column_permutations,
        unit=unit,
        scale_format=curves.scale_format,
        scale_per=curves.scale_per,
        quantizer=curves.quantizer,
        range=curves.range,
        transforms=curves.transforms,
        group_size=group_size,
        budget_bytes=budget_bytes,
        size_bytes=_fixed_bytes(curves, unit) + int(units.costs[choice, index].sum()),
        n_params=curves.n_params,
        predicted_loss_nats=curves.predict(float(units.losses[choice, index].sum()), unit),
        source_hash=curves.source_hash,
    )


def count_units(grids: Iterable[TileGrid], unit: Unit) -> int:
    """Return how many decisions there are over weights of these shapes."""
    if unit is Unit.NETWORK:
        return 1
    return sum({Unit.TILE: g.n_tiles, Unit.ROW: g.n_row_blocks, Unit.TENSOR: 1}[unit] for g in grids)


def size_range(curves: Curves, *, unit: Unit, formats: str = "all", floor: bool) -> tuple[int, int]:
    """Return the smallest possible archive and the largest sensible budget, in bytes."""
    option = partial(_option, curves.stored, unit, formats=formats, floor=floor)
    curves = smallest_options(curves, option=option)
    units = _units(curves, unit, formats=formats, floor=floor)
    cheapest = np.where(np.isfinite(units.losses), units.costs.astype(np.float64), np.inf).min(0)
    return _fixed_bytes(curves, unit) + int(cheapest.sum()), curves.original_bytes


def _out_of_range(curves: Curves, budget_bytes: int, smallest: int, largest: int) -> BudgetError:
    def both(size_bytes: int) -> str:
        return f"{size_bytes / 1e6:.2f} MB ({bytes_to_bpw(size_bytes, curves.n_params):.2f} bits per weight)"

    if smallest > largest:
        return BudgetError(
            f"this network cannot get smaller: its smallest archive takes {both(smallest)}, "
            f"the original {both(largest)}",
            hint="it is too small for tiles, tables and tokenizer files to pay",
        )
    return BudgetError(
        f"budget {both(budget_bytes)} is out of range: possible are {both(smallest)} to {both(largest)}, "
        "the original",
        hint="choose a budget in between",
    )


def _allowed(formats: str, *, floor: bool) -> npt.NDArray[np.bool_]:
    """Say which candidates a plan may use; families that lie below the floor have none."""
    allowed = np.array(formats_of(formats))
    above = allowed & np.array([c.n_levels >= FLOOR_LEVELS for c in CANDIDATES])
    return np.asarray(above if floor and above.any() else allowed)


def _units(curves: Curves, unit: Unit, *, formats: str, floor: bool) -> _Units:
    allowed = _allowed(formats, floor=floor)
    parts = [_allowed_units(weight, curves.stored, unit, allowed) for weight in curves.weights]
    joined = _Units(
        losses=np.concatenate([part.losses for part in parts], 1),
        costs=np.concatenate([part.costs for part in parts], 1),
        sizes=np.concatenate([part.sizes for part in parts]),
    )
    _check_measured(curves, formats)
    if not np.isfinite(joined.losses).any(0).all():
        raise _unmeasured(formats)
    return _summed(joined, joined.losses.shape[1]) if unit is Unit.NETWORK else joined


def _check_measured(curves: Curves, formats: str) -> None:
    """Raise RequestError if of some family no format was measured on any tile."""
    for family in formats.split(","):
        stored = np.array(formats_of(family))
        stored[0] = False
        if stored.any() and not any(np.isfinite(w.loss_nats[stored]).any() for w in curves.weights):
            raise _unmeasured(family)


def _unmeasured(formats: str) -> RequestError:
    return RequestError(
        f"the curves lack formats: nothing is known of {formats} for some tiles",
        hint=f"measure again with --format {formats}, or allow others",
    )


def _allowed_units(
    weight: WeightCurves, stored: StoredAs, unit: Unit, allowed: npt.NDArray[np.bool_]
) -> _Units:
    units = _weight_units(weight, stored, unit)
    if weight.product is None:  # else there are no tiles to choose for
        units.losses[~allowed] = np.inf
    return units


def _weight_units(weight: WeightCurves, stored: StoredAs, unit: Unit) -> _Units:
    schemes = [Scheme(c, weight.grid.group_size, stored.scale_format, stored.scale_per) for c in CANDIDATES]
    tile_bytes = [scheme.tile_bytes for scheme in schemes]
    losses = np.asarray(weight.loss_nats, np.float64).reshape(len(CANDIDATES), -1)
    n = losses.shape[1]
    tiles = _Units(
        losses=losses,
        costs=np.repeat(np.array(tile_bytes, np.int64)[:, None], n, 1),
        sizes=np.ones(n, np.int64),
    )
    if unit is Unit.TILE:
        return tiles
    units = _summed(tiles, weight.grid.n_groups if unit is Unit.ROW else n)
    n_shared = 1 if unit is Unit.ROW or stored.scale_per is ScalePer.TENSOR else weight.grid.n_row_blocks
    units.costs[...] += n_shared * np.array([scheme.shared_bytes for scheme in schemes])[:, None]
    return units


def _summed(units: _Units, length: int) -> _Units:
    """Add up runs of `length` units."""
    shape = (len(CANDIDATES), -1, length)
    return _Units(
        units.losses.reshape(shape).sum(2),
        units.costs.reshape(shape).sum(2),
        units.sizes.reshape(-1, length).sum(1),
    )


def _permuted(units: _Units, control: str, seed: int) -> npt.NDArray[np.float64]:
    """Losses per tile, dealt out to other units of the same allowed formats."""
    if control != "permuted":
        raise RequestError(f"unknown control {control!r}", hint="the only control is: permuted")
    generator, order = np.random.default_rng(seed), np.arange(len(units.sizes))
    patterns, kinds = np.unique(np.isfinite(units.losses), axis=1, return_inverse=True)
    for kind in range(patterns.shape[1]):
        members = np.flatnonzero(kinds.ravel() == kind)
        order[members] = generator.permutation(members)
    return (units.losses / units.sizes)[:, order] * units.sizes


def _fixed_bytes(curves: Curves, unit: Unit) -> int:
    """Everything that does not depend on the choices: what curves counted, and each weight's tables."""
    own = sum(_weight_fixed_bytes(weight, curves.stored, unit) for weight in curves.weights)
    padding = DATA_ALIGNMENT_BYTES * any(weight.amount or weight.product for weight in curves.weights)
    return curves.fixed_bytes + padding + own


def _weight_fixed_bytes(weight: WeightCurves, stored: StoredAs, unit: Unit) -> int:
    """Tables and correction of one weight, or all of it in a product code."""
    grid = weight.grid
    shape = (grid.n_rows, grid.n_columns)
    if weight.product is not None:
        return product_bytes(weight.name, shape, weight.product)
    nothing = np.zeros((grid.n_row_blocks, grid.n_groups), np.uint8)
    has_rows = unit.sorts_rows and weight.row_permutation is not None
    tables = section_specs(
        grid, stored.scale_format, nothing, has_row_permutation=has_rows, scale_per=stored.scale_per
    )
    correction = correction_bytes(weight.name, shape, weight.amount)
    return correction + sum(spec.size_bytes for spec in tables)


def _option(stored: StoredAs, unit: Unit, weight: WeightCurves, *, formats: str, floor: bool) -> Option:
    units = _allowed_units(weight, stored, unit, _allowed(formats, floor=floor))
    known = np.asarray(np.isfinite(units.losses).any(1))
    known[0] |= not known.any()
    fixed_bytes = _weight_fixed_bytes(weight, stored, unit)
    return Option(weight, units.losses[known], units.costs[known], fixed_bytes)


def _weight_plans(curves: Curves, unit: Unit, choice: npt.NDArray[np.int64]) -> list[WeightPlan]:
    plans, start = [], 0
    for weight in curves.weights:
        grid = weight.grid
        shape = (grid.n_row_blocks, grid.n_groups)
        n = {Unit.TILE: grid.n_tiles, Unit.ROW: grid.n_row_blocks, Unit.TENSOR: 1, Unit.NETWORK: 0}[unit]
        mine = choice[start : start + n] if n else choice
        start += n
        spread = np.broadcast_to(mine.reshape(shape if unit is Unit.TILE else (-1, 1)), shape)
        rows = weight.row_permutation if unit.sorts_rows else None
        choices = np.ascontiguousarray(spread, dtype=np.uint8)
        plans.append(
            WeightPlan(weight.name, grid, choices, rows, weight.column_order, weight.amount, weight.product)
        )
    return plans
