"""Curves brought to the KL of the whole network, by running mixes of what plans use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from laq.allocation.common import allocate, size_range
from laq.core.curve import Curves
from laq.core.errors import DataError, RequestError
from laq.core.gains import Gains, weight_classes
from laq.core.packing import StoredTensor
from laq.core.plan import Plan
from laq.core.progress import track
from laq.core.stats import Stats
from laq.core.target import Unit
from laq.evaluation.divergence import compare
from laq.networks.module import Batch, Network
from laq.quantizers.common.apply import apply_plans
from laq.runtime.linear import EVALUATED_BITS, rounding_activations
from laq.runtime.replace import packed_copy
from laq.sensitivity.common.gain_fit import FloatArray, IndexArray, fit_gains, rank_correlation

UNITS = (Unit.TILE, Unit.TENSOR, Unit.NETWORK)
"""Units that mixes are made of, in the order of their gains; rows of tiles take the gain of tiles."""

LEVELS = (0.2, 0.7, 1.4, 2.1, 2.8)
"""Sizes of the plans that classes take their formats from: bits per weight above the smallest of the unit."""

HELD_OUT_SHARE = 4
"""Every so manieth mix judges the gains instead of making them."""

MIN_MIXES = 8
SIDE_BY_SIDE = 4
"""Mixes evaluated at a time: the original runs once for them."""


@dataclass(frozen=True, slots=True)
class Mix:
    """One variant a class, all of one unit.

    Parameters
    ----------
    unit : int
        Index into `UNITS`.
    variants : mapping
        Index of the variant of every class.
    """

    unit: int
    variants: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class _Variants:
    """Whole networks by each variant: packed weights, and the loss of each weight by the curves."""

    packed: list[dict[str, StoredTensor]]
    losses: list[dict[str, float]]


@dataclass(frozen=True, slots=True)
class MixRuns:
    """Mixes by what the curves say of them and what the network says.

    Parameters
    ----------
    classes : tuple of str
        Classes of weights, sorted.
    losses : float64 [n_mixes, n_classes]
        Sums of curves.
    kl_nats : float64 [n_mixes]
        Measured KL to the original.
    units : int64 [n_mixes]
        Unit of each mix, as an index into `UNITS`.
    n_tokens : int
        Tokens that each mix ran over.
    """

    classes: tuple[str, ...]
    losses: FloatArray
    kl_nats: FloatArray
    units: IndexArray
    n_tokens: int


def calibrated(  # noqa: PLR0913 - what mixes are made of, and how
    curves: Curves,
    network: Network,
    stats: Stats,
    batches: Sequence[Batch],
    *,
    n_mixes: int,
    seed: int = 0,
    formats: str = "all",
) -> Curves:
    """Return curves with gains, from `n_mixes` runs of the whole network.

    Parameters
    ----------
    curves : Curves
        Without gains.
    network, stats
        What they were measured of.
    batches : sequence of Batch
        Data that neither the statistics saw nor anything will be judged on.
    n_mixes : int
        At least `MIN_MIXES`; every fourth is held out.
    seed : int
        Seeds the mixes.
    formats : str
        Families that plans may use.

    Raises
    ------
    RequestError
        If there are too few mixes, or the curves have gains already.
    DataError
        If there are no batches.
    """
    check_mixes(n_mixes)
    if curves.gains is not None:
        raise RequestError("the curves have gains already", hint="measure again")
    if not batches:
        raise DataError(
            "mixes need data that the statistics did not see", hint="pass them: batches=splits.held_out"
        )
    runs = run_mixes(curves, network, stats, batches, n_mixes=n_mixes, seed=seed, formats=formats)
    return curves.with_gains(gains_of(runs))


def run_mixes(  # noqa: PLR0913 - what mixes are made of, and how
    curves: Curves,
    network: Network,
    stats: Stats,
    batches: Sequence[Batch],
    *,
    n_mixes: int,
    seed: int = 0,
    formats: str = "all",
) -> MixRuns:
    """Quantize by every variant once, then run mixes of them; see `calibrated`."""
    classes = weight_classes(weight.name for weight in curves.weights)
    variants = _variants(network, curves, stats, formats)
    names = tuple(sorted(set(classes.values())))
    mixes = draw_mixes(names, n_mixes=n_mixes, seed=seed)
    kl_nats, n_tokens = _measure(network, variants, mixes, classes, batches)
    losses = np.array([_losses(mix, variants, classes) for mix in mixes])
    return MixRuns(names, losses, kl_nats, np.array([mix.unit for mix in mixes]), n_tokens)


def check_mixes(n_mixes: int) -> None:
    """Raise RequestError unless there are mixes enough to fit and to judge."""
    if n_mixes < MIN_MIXES:
        raise RequestError(f"{n_mixes} mixes, expected {MIN_MIXES} or more", hint="32 are a good number")


def draw_mixes(classes: Sequence[str], *, n_mixes: int, seed: int) -> list[Mix]:
    """Draw mixes of the whole network: in each all classes are near one size and of one unit; units in turn.

    Errors of different weights add to each other's cost, so mixes that leave weights alone would predict too
    little for plans, which leave none.

    Parameters
    ----------
    classes : sequence of str
        Classes of weights, as `laq.core.gains.weight_classes` spells them.
    n_mixes, seed : int
        How many, and from where.
    """
    generator, n_levels = np.random.default_rng(seed), len(LEVELS)
    levels = [generator.permutation(np.arange(-(-n_mixes // len(UNITS))) % n_levels) for _ in UNITS]
    mixes = []
    for index in range(n_mixes):
        of_unit, unit = divmod(index, len(UNITS))
        near = levels[unit][of_unit] + generator.integers(-1, 2, len(classes))
        chosen = unit * n_levels + np.clip(near, 0, n_levels - 1)
        mixes.append(Mix(unit, dict(zip(classes, chosen.tolist(), strict=True))))
    return mixes


def variant_plans(curves: Curves, formats: str = "all") -> list[Plan]:
    """Return the plans of every unit at every level; an index of a unit has all its levels together."""
    free = replace(curves, original_bytes=1 << 62)
    n = sum(weight.grid.padded_rows * weight.grid.padded_columns for weight in curves.weights)
    plans = []
    for unit in UNITS:
        smallest, _ = size_range(free, unit=unit, formats=formats, floor=True)
        for extra in LEVELS:
            plans.append(allocate(free, smallest + int(n * extra / 8), unit=unit, formats=formats))
    return plans


def _variants(network: Network, curves: Curves, stats: Stats, formats: str) -> _Variants:
    """Quantize the whole network once by every variant."""
    plans = variant_plans(curves, formats)
    return _Variants(apply_plans(network, plans, stats), [_plan_losses(curves, plan) for plan in plans])


def _plan_losses(curves: Curves, plan: Plan) -> dict[str, float]:
    return {
        decided.name: float(
            np.take_along_axis(weight.loss_nats, decided.choices[None].astype(np.int64), 0).sum(
                dtype=np.float64
            )
        )
        for weight, decided in zip(curves.weights, plan.weights, strict=True)
    }


def _losses(mix: Mix, variants: _Variants, classes: Mapping[str, str]) -> list[float]:
    """Sum of curves by class, classes sorted."""
    sums = dict.fromkeys(sorted(mix.variants), 0.0)
    for name, its in classes.items():
        sums[its] += variants.losses[mix.variants[its]][name]
    return list(sums.values())


def _measure(
    network: Network,
    variants: _Variants,
    mixes: Sequence[Mix],
    classes: Mapping[str, str],
    batches: Sequence[Batch],
) -> tuple[FloatArray, int]:
    """KL of every mix to the original, and the tokens it was taken over."""
    found: list[float] = []
    n_tokens = 0
    parts = [mixes[start : start + SIDE_BY_SIDE] for start in range(0, len(mixes), SIDE_BY_SIDE)]
    for part in track(parts, label="running mixes", total=len(parts)):
        modules = [
            packed_copy(network, {n: variants.packed[mix.variants[its]][n] for n, its in classes.items()})
            for mix in part
        ]
        with rounding_activations(modules, EVALUATED_BITS):
            divergences = compare(network.module, modules, batches, label="running mixes")
        found += [each.kl_nats for each in divergences]
        n_tokens = divergences[0].n_tokens
    return np.array(found), n_tokens


def gains_of(runs: MixRuns) -> Gains:
    """Fit three quarters of the mixes, judge by the others."""
    used = (runs.kl_nats > 0) & (runs.losses.sum(1) > 0) & np.isfinite(runs.losses).all(1)
    losses, kl_nats, units = runs.losses[used], runs.kl_nats[used], runs.units[used]
    if len(kl_nats) < MIN_MIXES // 2:
        raise DataError("mixes differ too little from the original to fit gains", hint="leave mixes away")
    held: npt.NDArray[np.bool_] = np.arange(len(kl_nats)) % HELD_OUT_SHARE == HELD_OUT_SHARE - 1
    fit = fit_gains(losses[~held], kl_nats[~held], units[~held], n_units=len(UNITS))
    predicted, measured = fit.predict(losses[held], units[held]), kl_nats[held]
    of_units = dict(zip(UNITS, np.exp(fit.log_units).tolist(), strict=True))
    return Gains(
        classes={name: float(gain) for name, gain in zip(runs.classes, np.exp(fit.log_gains), strict=True)},
        units={unit.value: of_units.get(unit, 1.0) for unit in Unit},
        n_fitted=int((~held).sum()),
        n_held_out=int(held.sum()),
        n_tokens=runs.n_tokens,
        rank_correlation=rank_correlation(predicted, measured),
        median_error=float(np.median(np.abs(predicted / measured - 1))),
        median_error_before=float(np.median(np.abs(losses[held].sum(1) / measured - 1))),
    )
