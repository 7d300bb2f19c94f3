"""A plan carried out: every weight sorted, quantized and packed."""

from __future__ import annotations

from collections.abc import Sequence

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
from laq.quantizers.common.workers import side_by_side


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
    families = _families(plans[0], stats)
    by_name = [{weight.name: weight for weight in plan.weights} for plan in plans]

    def family_of(names: Sequence[str]) -> list[dict[str, PackedTensor]]:
        feedback: Feedback | None = None
        results: list[dict[str, PackedTensor]] = []
        for plan, weights in zip(plans, by_name, strict=True):
            mine = [weights[name] for name in names]
            matrices = [_sorted(network, plan, weight, stats) for weight in mine]
            feedback = feedback or quantizer.prepare(matrices[0].hessian)
            results.append(_encode(mine, matrices, plan, quantizer, feedback))
        return results

    results: list[dict[str, PackedTensor]] = [{} for _ in plans]
    done = side_by_side(family_of, families)
    for packed in track(done, label="quantizing", total=len(families)):
        for result, tensors in zip(results, packed, strict=True):
            result.update(tensors)
    return [{weight.name: result[weight.name] for weight in plans[0].weights} for result in results]


def _families(plan: Plan, stats: Stats) -> list[list[str]]:
    families: dict[str, list[str]] = {}
    for weight in plan.weights:
        families.setdefault(stats.uses_of(weight.name)[0].columns, []).append(weight.name)
    return list(families.values())


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
) -> dict[str, PackedTensor]:
    columns = plan.column_permutations[weights[0].column_order] if weights[0].column_order else None
    choices = [weight.choices for weight in weights]
    tensors = encode(matrices, choices, quantizer, feedback, columns=columns, scale_format=plan.scale_format)
    return {weight.name: pack(tensor) for weight, tensor in zip(weights, tensors, strict=True)}
