"""A plan carried out: every weight sorted, quantized and packed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from laq.core.importance import importance_of
from laq.core.packing import PackedTensor
from laq.core.plan import Plan, WeightPlan
from laq.core.progress import track
from laq.core.stats import Stats
from laq.kernels.reference import pack
from laq.networks.module import Network
from laq.quantizers import QUANTIZERS, Feedback, Quantizer
from laq.quantizers.common.encode import encode
from laq.quantizers.common.sorting import SortedWeight, sort_weight


def apply_plans(network: Network, plans: Sequence[Plan], stats: Stats) -> list[dict[str, PackedTensor]]:
    """Quantize and pack a network by several plans of one measurement: what they share is done once.

    Parameters
    ----------
    network : Network
        The weights; left as they are.
    plans : sequence of Plan
        Of the same quantizer, scale format and column orders.
    stats : Stats
        What calibration saw.

    Returns
    -------
    list of dict
        Packed weights by name, for each plan.
    """
    quantizer = QUANTIZERS.get(plans[0].quantizer)()
    results: list[dict[str, PackedTensor]] = [{} for _ in plans]
    todo = _families(plans[0], stats)
    n = sum(len(family) for family in todo)
    for name, packed in track(
        _apply_all(network, plans, stats, quantizer, todo), label="quantizing", total=n
    ):
        for result, tensor in zip(results, packed, strict=True):
            result[name] = tensor
    order = [weight.name for weight in plans[0].weights]
    return [{name: result[name] for name in order} for result in results]


def _families(plan: Plan, stats: Stats) -> list[list[str]]:
    families: dict[str, list[str]] = {}
    for weight in plan.weights:
        families.setdefault(stats.uses[weight.name][0].columns, []).append(weight.name)
    return list(families.values())


def _apply_all(
    network: Network,
    plans: Sequence[Plan],
    stats: Stats,
    quantizer: Quantizer,
    families: Sequence[Sequence[str]],
) -> Iterator[tuple[str, list[PackedTensor]]]:
    by_name = [{weight.name: weight for weight in plan.weights} for plan in plans]
    for family in families:
        feedback: Feedback | None = None
        per_plan: list[list[PackedTensor]] = []
        for plan, weights in zip(plans, by_name, strict=True):
            mine = [weights[name] for name in family]
            matrices = [_sorted(network, plan, weight, stats) for weight in mine]
            feedback = feedback or quantizer.prepare(matrices[0].hessian)
            per_plan.append(_encode(mine, matrices, plan, quantizer, feedback))
        for index, name in enumerate(family):
            yield name, [packed[index] for packed in per_plan]


def _sorted(network: Network, plan: Plan, weight: WeightPlan, stats: Stats) -> SortedWeight:
    columns = plan.column_permutations[weight.column_order] if weight.column_order else None
    importance = importance_of(stats, weight.name)
    values = network.weight(weight.name)
    return sort_weight(values, importance, weight.grid, rows=weight.row_permutation, columns=columns)


def _encode(
    weights: Sequence[WeightPlan],
    matrices: Sequence[SortedWeight],
    plan: Plan,
    quantizer: Quantizer,
    feedback: Feedback,
) -> list[PackedTensor]:
    columns = plan.column_permutations[weights[0].column_order] if weights[0].column_order else None
    choices = [weight.choices for weight in weights]
    tensors = encode(matrices, choices, quantizer, feedback, columns=columns, scale_format=plan.scale_format)
    return [pack(tensor) for tensor in tensors]
