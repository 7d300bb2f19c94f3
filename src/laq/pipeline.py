"""The main path: load -> calibrate -> measure -> allocate -> quantize -> pack -> evaluate, with its guard rails."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from laq.core.budget import bpw_to_bytes, bytes_to_bpw, parse_size
from laq.core.curve import Curves
from laq.core.errors import BudgetError, RequestError
from laq.core.plan import Plan
from laq.core.stats import Stats
from laq.calibration.data import CALIBRATION_TOKENS, Splits
from laq.networks import Network
from laq.resources import check_resources
from laq.runtime.result import Comparison, Result
from laq.steps import Data, Source, allocate, apply_all, calibrate, measure, open_network, records, splits_of, unit_of

NO_FLOOR_GAIN = 0.9
"""Plans below two bits are tried when they predict this share of the loss or less."""

MAX_PROBES = 8
SIZE_TOLERANCE = 0.005


@dataclass(frozen=True, slots=True)
class _Job:
    """Everything that the choice of a plan rests on."""

    network: Network
    splits: Splits
    stats: Stats
    curves: Curves
    unit: str
    control: str | None
    seed: int


def quantize(
    source: Source,
    *,
    bpw: float | None = None,
    size: int | str | None = None,
    max_kl: float | None = None,
    data: Data = None,
    unit: str = "tile",
    quantizer: str = "gptq",
    group_size: int = 64,
    scale_format: str = "log8",
    keep: str | None = None,
    control: str | None = None,
    compare: bool = True,
    measured: str | Path | None = None,
    tokens: int = CALIBRATION_TOKENS,
    seed: int = 0,
) -> Result:
    """Return a network that is as close to the original as a limit allows.

    Parameters
    ----------
    source : str, Path, nn.Module or Network
        A Hugging Face folder, a .gguf file, a hub id, or a module in memory (with `data`).
    bpw, size, max_kl
        The limit, one of: bits per weight with everything counted; bytes of the saved folder (or "60MB"); KL
        to the original on the selection split, for which the smallest archive is searched.
    data : str, Path, sequence of batches, or None
        Text file, folder, token ids, "self", or batches that feed module(**batch) or module(*batch).
    unit : "tile", "row", "tensor" or "network"
        What shares one decision.
    quantizer : str
        Method that picks codes, see `laq methods`.
    group_size : int
        32, 64 or 128 columns that share a scale.
    scale_format : "log8" or "float16"
        How scales are stored.
    keep : str, optional
        Regular expression of weights to leave alone.
    control : "permuted", optional
        Shuffle the measured losses first: what is the signal worth?
    compare : bool
        Hold the plan against per-tensor and uniform plans of the same bytes and keep the best.
    measured : path, optional
        Folder that `laq measure` wrote: calibration and measurement are taken from there.
    tokens : int
        Calibration tokens.
    seed : int
        Seeds everything that is sampled.

    Raises
    ------
    RequestError
        If the request cannot be met; before the slow work where that can be known.
    """
    if sum(limit is not None for limit in (bpw, size, max_kl)) != 1:
        raise RequestError("give exactly one of bpw, size and max_kl", hint="for example bpw=4.0")
    unit_of(unit)
    network = open_network(source, keep=keep)
    budget = _budget(network, bpw, size)
    splits = splits_of(network, data, tokens=tokens, seed=seed)
    check_resources(network, splits.calibration)
    if measured is not None:
        stats, curves = open_measured(measured)
        network.check_hash(curves.source_hash)
    else:
        stats = calibrate(network, splits, seed=seed)
        curves = measure(network, stats, quantizer=quantizer, group_size=group_size, scale_format=scale_format)
    job = _Job(network, splits, stats, curves, unit, control, seed)
    result = _best(job, budget if budget is not None else _smallest(job, float(max_kl or 0)), compare=compare)
    record = records(network, {"": (result.model, result.plan.size_bytes)}, splits.test, split="test")[""]
    return replace_provenance(result.with_record(record), splits, stats, seed)


def open_measured(folder: str | Path) -> tuple[Stats, Curves]:
    """Open what `laq measure` wrote: the folders `stats` and `curves`."""
    return Stats.open(Path(folder) / "stats"), Curves.open(Path(folder) / "curves")


def _budget(network: Network, bpw: float | None, size: int | str | None) -> int | None:
    """Bytes allowed; refused above the original's size before anything slow happens."""
    if bpw is None and size is None:
        return None
    if bpw is not None:
        budget = bpw_to_bytes(bpw, network.n_params)
    else:
        budget = parse_size(size) if isinstance(size, str) else int(size or 0)
    smallest = network.n_params // 16 + sum(kept.n_elements for kept in network.kept)
    if not smallest <= budget <= network.original_bytes:
        low, high = (bytes_to_bpw(n, network.n_params) for n in (smallest, network.original_bytes))
        raise BudgetError(
            f"budget {budget / 1e6:.2f} MB ({bytes_to_bpw(budget, network.n_params):.2f} bits per weight) is out of "
            f"range: at best {smallest / 1e6:.2f} MB ({low:.2f}) to {network.original_bytes / 1e6:.2f} MB ({high:.2f}), "
            "the original",
            hint="choose a budget in between",
        )
    return budget


def _best(job: _Job, budget: int, *, compare: bool) -> Result:
    """The requested plan and its rivals of the same bytes; the one with the least KL on the selection split."""
    plans = _candidates(job, budget, compare=compare)
    results = dict(zip(plans, apply_all(job.network, list(plans.values()), job.stats), strict=True))
    if len(results) == 1:
        return next(iter(results.values()))
    models = {label: (result.model, result.plan.size_bytes) for label, result in results.items()}
    found = records(job.network, models, job.splits.selection, split="selection")
    comparisons = tuple(Comparison(label, plans[label], found[label]) for label in plans)
    winner = min(comparisons, key=lambda one: one.record.kl_nats)
    verdict = _verdict(comparisons, winner)
    return replace(results[winner.label], comparisons=comparisons, verdict=verdict)


def _candidates(job: _Job, budget: int, *, compare: bool) -> dict[str, Plan]:
    def plan(unit: str, allocator: str = "lagrange", control: str | None = None, *, floor: bool = True) -> Plan:
        return allocate(job.curves, size=budget, unit=unit, allocator=allocator, control=control, floor=floor, seed=job.seed)

    free = plan(job.unit, control=job.control, floor=False)
    try:
        plans = {job.unit: plan(job.unit, control=job.control)}
    except BudgetError:
        return {f"{job.unit}, below two bits": free}
    if not compare or job.control is not None:
        return plans
    if free.predicted_loss_nats <= NO_FLOOR_GAIN * plans[job.unit].predicted_loss_nats:
        plans[f"{job.unit}, below two bits"] = free
    for label, unit, allocator in (("tensor", "tensor", "lagrange"), ("uniform", "tensor", "uniform")):
        if label not in plans:
            try:
                plans[label] = plan(unit, allocator)
            except BudgetError:
                continue
    return plans


def _verdict(comparisons: tuple[Comparison, ...], winner: Comparison) -> str:
    others = ", ".join(f"{one.record.kl_nats:.4f} ({one.label})" for one in comparisons if one is not winner)
    if winner.label in ("tensor", "uniform") and winner is not comparisons[0]:
        return f"no gain from finer units: kept {winner.label}, KL {winner.record.kl_nats:.4f} on selection, others {others}"
    return f"kept {winner.label}: KL {winner.record.kl_nats:.4f} on the selection split, against {others} at the same bytes"


def _smallest(job: _Job, max_kl: float) -> int:
    """Bytes of the smallest archive whose measured KL on the selection split stays below `max_kl`.

    The curves give the shape of KL over bytes; every probe corrects their scale where it matters.
    """
    from laq.allocation.common import size_range

    low, high = size_range(job.curves, unit=unit_of(job.unit), floor=True)
    ratio, best = 1.0, None
    for _ in range(MAX_PROBES):
        budget = _where_predicted(job, max_kl / ratio, low, high)
        plan = allocate(job.curves, size=budget, unit=job.unit, seed=job.seed)
        (result,) = apply_all(job.network, [plan], job.stats)
        models = {"": (result.model, plan.size_bytes)}
        kl = records(job.network, models, job.splits.selection, split="selection")[""].kl_nats
        ratio = max(kl, 1e-9) / max(plan.predicted_loss_nats, 1e-12)
        if kl <= max_kl:
            best = high = min(budget, plan.size_bytes)
        else:
            low = budget
        if best is not None and (high - low) <= SIZE_TOLERANCE * high:
            break
    if best is None:
        raise BudgetError(
            f"no archive smaller than the original has a KL below {max_kl} on the selection split; closest {kl:.4f}",
            hint="accept a larger loss",
        )
    return best


def _where_predicted(job: _Job, loss_nats: float, low: int, high: int) -> int:
    """Bytes between `low` and `high` whose plan predicts `loss_nats`; kept off the ends so that probes close in."""
    margin = max(1, (high - low) // 20)
    first, last = low + margin, high - margin
    for _ in range(20):
        middle = (first + last) // 2
        if allocate(job.curves, size=middle, unit=job.unit, seed=job.seed).predicted_loss_nats > loss_nats:
            first = middle
        else:
            last = middle
    return last


def replace_provenance(result: Result, splits: Splits, stats: Stats, seed: int) -> Result:
    """Return the result with what made it."""
    provenance: dict[str, Any] = {
        "source": result.network.source,
        "data": splits.source,
        "data_hash": stats.data_hash,
        "n_tokens": stats.n_tokens,
        "seed": seed,
        "verdict": result.verdict,
    }
    done = replace(result, provenance=provenance)
    done.__dict__["model"] = result.model
    return done
