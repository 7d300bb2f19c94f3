"""Which plan is kept: rivals of the same bytes, judged on data that chose none of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from laq.allocation.common import size_range
from laq.calibration.data import Splits
from laq.checkpoint import Checkpoint
from laq.core.curve import Curves
from laq.core.errors import BudgetError
from laq.core.plan import Plan
from laq.core.record import nats_text
from laq.distillation import Distillation, distill
from laq.networks import Network
from laq.runtime.result import Comparison, Result
from laq.steps import allocate, apply_all, records, unit_of
from laq.transforms import Transformed

NO_FLOOR_GAIN = 0.9
"""Plans below two bits are tried when they predict this share of the loss or less."""

MAX_PROBES = 8
SIZE_TOLERANCE = 0.005
KL_TOLERANCE = 0.02
"""A limit on KL counts as met, and probing ends, this far below it; probes aim at the middle of that."""


@dataclass(frozen=True, slots=True)
class Job:
    """Everything that the choice of a plan rests on: the original, and what is quantized in its place."""

    network: Network
    made: Transformed
    splits: Splits
    curves: Curves
    unit: str
    allocator: str
    formats: str
    control: str | None
    seed: int
    sequential: bool = False

    def applied(self, plans: Sequence[Plan]) -> list[Result]:
        """Quantize and pack by several plans."""
        batches = self.splits.calibration if self.sequential else ()
        return apply_all(self.made.network, plans, self.made.stats, sequential=batches)


def best_plan(job: Job, budget: int, *, compare: bool) -> Result:
    """The requested plan or a rival of the same bytes: the least KL on the selection split wins."""
    plans = _candidates(job, budget, compare=compare)
    packed = job.applied(list(plans.values()))
    results = dict(zip(plans, packed, strict=True))
    models = {label: (result.model, result.plan.size_bytes) for label, result in results.items()}
    selection = records(job.network, models, job.splits.selection, split="selection")
    test = records(job.network, models, job.splits.test, split="test")
    comparisons = tuple(Comparison(label, plans[label], selection[label], test[label]) for label in plans)
    winner = min(comparisons, key=lambda one: one.selection.kl_nats)
    return results[winner.label].updated(
        record=winner.test,
        comparisons=comparisons,
        verdict=_verdict(job, comparisons, winner),
    )


def distilled(
    job: Job, result: Result, settings: Distillation, *, checkpoint: Checkpoint | None = None
) -> Result:
    """Tune what a result keeps in float, if that lowers KL on the selection split; codes and bytes stay."""
    network = distill(
        job.network,
        job.made.network,
        result.packed,
        job.splits.calibration,
        settings,
        checkpoint=None if checkpoint is None else checkpoint.distillation,
    )
    taught = Result(network, result.plan, result.packed, provenance=result.provenance)
    models = {"": (taught.model, result.plan.size_bytes)}
    selection, test = (
        records(job.network, models, batches, split=split)[""]
        for split, batches in (("selection", job.splits.selection), ("test", job.splits.test))
    )
    before = min(result.comparisons, key=lambda one: one.selection.kl_nats)
    after = Comparison(f"{before.label}, distilled", result.plan, selection, test)
    comparisons = (*result.comparisons, after)
    if selection.kl_nats >= before.selection.kl_nats:
        return result.updated(
            comparisons=comparisons,
            verdict=f"{result.verdict}; distillation did not lower it ({nats_text(selection.kl_nats)})",
        )
    return taught.updated(
        record=test,
        comparisons=comparisons,
        verdict=f"{result.verdict}; {nats_text(selection.kl_nats)} after distillation",
    )


def _plan(job: Job, budget: int, *, unit: str = "", allocator: str = "lagrange", floor: bool = True) -> Plan:
    """Spend a budget; the requested unit if no other is given, and the fast allocator."""
    return allocate(
        job.curves,
        size=budget,
        unit=unit or job.unit,
        allocator=allocator,
        formats=job.formats,
        control=job.control,
        floor=floor,
        seed=job.seed,
    )


def _candidates(job: Job, budget: int, *, compare: bool) -> dict[str, Plan]:
    free = _plan(job, budget, allocator=job.allocator, floor=False)
    own = _label(job)
    label = f"{own}, below two bits"
    try:
        plans, floor = {own: _plan(job, budget, allocator=job.allocator)}, True
    except BudgetError:
        plans, floor = {label: free}, False
    if not compare or job.control is not None:
        return plans
    if floor and free.predicted_loss_nats <= NO_FLOOR_GAIN * plans[own].predicted_loss_nats:
        plans[label] = free
    for rival, unit, allocator in (("tensor", "tensor", "lagrange"), ("uniform", "tensor", "uniform")):
        if rival not in plans:
            try:
                plans[rival] = _plan(job, budget, unit=unit, allocator=allocator, floor=floor)
            except BudgetError:
                continue
    return plans


def _label(job: Job) -> str:
    """Name of the requested plan; the rivals' names are taken by the plans they stand for."""
    if job.allocator == "lagrange":
        return job.unit
    return "uniform" if (job.unit, job.allocator) == ("tensor", "uniform") else f"{job.unit}, {job.allocator}"


def _verdict(job: Job, comparisons: tuple[Comparison, ...], winner: Comparison) -> str:
    others = ", ".join(
        f"{one.label} {nats_text(one.selection.kl_nats)}" for one in comparisons if one is not winner
    )
    kept = f"kept {winner.label}: KL {nats_text(winner.selection.kl_nats)} on the selection split"
    if not others:
        return kept
    is_rival = winner.label in ("tensor", "uniform") and winner is not comparisons[0]
    coarser = is_rival and job.allocator == "lagrange"
    return ("no gain from finer units; " if coarser else "") + f"{kept}, at the same bytes {others}"


def smallest_budget(job: Job, max_kl: float) -> int:
    """Bytes of the smallest archive whose measured KL on the selection split stays below `max_kl`.

    The curves give the shape of KL over bytes; every probe corrects their scale where it matters. With
    gains the first probe is near already.
    """
    low, high = size_range(job.curves, unit=unit_of(job.unit), formats=job.formats, floor=True)
    ratio, best = 1.0, None
    for _ in range(MAX_PROBES):
        budget = _where_predicted(job, (1 - KL_TOLERANCE / 2) * max_kl / ratio, low, high)
        plan = _plan(job, budget, allocator=job.allocator)
        (result,) = job.applied([plan])
        models = {"": (result.model, plan.size_bytes)}
        kl = records(job.network, models, job.splits.selection, split="selection")[""].kl_nats
        ratio = max(kl, 1e-9) / max(plan.predicted_loss_nats, 1e-12)
        if kl <= max_kl:
            best = high = budget
        else:
            low = budget
        if (1 - KL_TOLERANCE) * max_kl <= kl <= max_kl:
            break
        if best is not None and (high - low) <= SIZE_TOLERANCE * high:
            break
    if best is None:
        raise BudgetError(
            f"no archive under the original's size has KL under {max_kl} on the selection split, "
            f"{nats_text(kl)} at best",
            hint="accept a larger loss",
        )
    return best


def _where_predicted(job: Job, loss_nats: float, low: int, high: int) -> int:
    """Bytes whose plan predicts `loss_nats`; kept off the ends, so that probes close in."""
    margin = max(1, (high - low) // 20)
    first, last = low + margin, high - margin
    for _ in range(20):
        middle = (first + last) // 2
        plan = _plan(job, middle)
        if plan.predicted_loss_nats > loss_nats:
            first = middle
        else:
            last = middle
    return last
