"""A plan carried out: every weight sorted, quantized and packed."""

from __future__ import annotations

from collections.abc import Sequence

from laq.core.importance import importance_of
from laq.core.packing import PackedTensor
from laq.core.permutation import IndexArray
from laq.core.plan import Plan, WeightPlan
from laq.core.progress import track
from laq.core.stats import Stats
from laq.kernels.packing import pack
from laq.networks.module import Network
from laq.quantizers import Feedback, Quantizer, quantizer_of
from laq.quantizers.common.encode import encode
from laq.quantizers.common.sorting import SortedWeight, sort_weight, sorted_hessian
from laq.quantizers.common.workers import side_by_side


def apply_plans(network: Network, plans: Sequence[Plan], stats: Stats) -> list[dict[str, PackedTensor]]:
    """Quantize and pack a network by several plans of one measurement: what they share is done once.

    Parameters
    ----------
    network : Network
        The weights; left as they are.
    plans : sequence of Plan
        Of the same quantizer, range, scale format and column orders.
    stats : Stats
        What calibration saw.

    Returns
    -------
    list of dict
        Packed weights by name, for each plan.
    """
    quantizer = quantizer_of(plans[0].quantizer, plans[0].range)
    families = _families(plans[0], stats)
    by_name = [{weight.name: weight for weight in plan.weights} for plan in plans]

    def family_of(names: Sequence[str]) -> list[dict[str, PackedTensor]]:
        importances = {name: importance_of(stats, name) for name in names}
        first = by_name[0][names[0]]
        hessian = sorted_hessian(importances[names[0]], first.grid, _columns(plans[0], first))
        feedback = quantizer.prepare(hessian)
        results: list[dict[str, PackedTensor]] = []
        for plan, weights in zip(plans, by_name, strict=True):
            mine = [weights[name] for name in names]
            matrices = [
                sort_weight(
                    network.weight(weight.name),
                    importances[weight.name],
                    weight.grid,
                    hessian=hessian,
                    rows=weight.row_permutation,
                    columns=_columns(plan, weight),
                )
                for weight in mine
            ]
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


def _columns(plan: Plan, weight: WeightPlan) -> IndexArray | None:
    return plan.column_permutations[weight.column_order] if weight.column_order else None


def _encode(
    weights: Sequence[WeightPlan],
    matrices: Sequence[SortedWeight],
    plan: Plan,
    quantizer: Quantizer,
    feedback: Feedback,
) -> dict[str, PackedTensor]:
    columns = _columns(plan, weights[0])
    choices = [weight.choices for weight in weights]
    tensors = encode(matrices, choices, quantizer, feedback, columns=columns, scale_format=plan.scale_format)
    return {weight.name: pack(tensor) for weight, tensor in zip(weights, tensors, strict=True)}
