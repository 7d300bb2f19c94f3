"""A plan carried out: every weight sorted, quantized and packed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from laq.core.correction import Amount, Correction
from laq.core.importance import importance_of
from laq.core.low_rank import LowRank
from laq.core.packing import PackedTensor, StoredTensor
from laq.core.plan import Plan, WeightPlan
from laq.core.progress import track
from laq.core.stats import Stats
from laq.kernels.packing import pack
from laq.kernels.reference import dequantize
from laq.networks.module import Network
from laq.quantizers import Feedback, Quantizer, quantizer_of
from laq.quantizers.common.correction import Corrected, first_corrections
from laq.quantizers.common.encode import encode
from laq.quantizers.common.low_rank import hessian_root, last_correction, minus
from laq.quantizers.common.prepared import PreparedInput
from laq.quantizers.common.product import product_tensor
from laq.quantizers.common.sorting import SortedWeight, sort_weight
from laq.quantizers.common.workers import side_by_side


def apply_plans(network: Network, plans: Sequence[Plan], stats: Stats) -> list[dict[str, StoredTensor]]:
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
    quantizer = quantizer_of(plans[0].quantizer, plans[0].range, plans[0].scale_per)
    families = _families(plans[0], stats)
    by_name = [{weight.name: weight for weight in plan.weights} for plan in plans]

    def family_of(names: Sequence[str]) -> list[dict[str, StoredTensor]]:
        family = _Family(network, stats, quantizer, names, plans[0])
        return [family.packed(plan, weights) for plan, weights in zip(plans, by_name, strict=True)]

    results: list[dict[str, StoredTensor]] = [{} for _ in plans]
    done = side_by_side(family_of, families)
    for packed in track(done, label="quantizing", total=len(families)):
        for result, tensors in zip(results, packed, strict=True):
            result.update(tensors)
    return [{weight.name: result[weight.name] for weight in plans[0].weights} for result in results]


class _Family:
    """Weights that read the same input: what was prepared from its hessian, for all plans."""

    def __init__(
        self, network: Network, stats: Stats, quantizer: Quantizer, names: Sequence[str], plan: Plan
    ) -> None:
        self.network, self.names = network, names
        self.importances = {name: importance_of(stats, name) for name in names}
        order = next(weight.column_order for weight in plan.weights if weight.name == names[0])
        self.columns = plan.column_permutations[order] if order else None
        self.prepared = PreparedInput(quantizer, self.importances[names[0]], self.columns)

    def packed(self, plan: Plan, weights: Mapping[str, WeightPlan]) -> dict[str, StoredTensor]:
        """Sort, quantize and pack by one plan; weights of one group size go through together."""
        mine = [weights[name] for name in self.names]
        found: dict[str, StoredTensor] = {}
        for size in dict.fromkeys(weight.grid.group_size for weight in mine):
            alike = [weight for weight in mine if weight.grid.group_size == size]
            found |= self._tiles(plan, [weight for weight in alike if weight.product is None])
            found |= {
                weight.name: product_tensor(
                    self._sorted(weight, None), self._feedback(weight), weight.product, columns=self.columns
                )
                for weight in alike
                if weight.product is not None
            }
        return found

    def _tiles(self, plan: Plan, weights: Sequence[WeightPlan]) -> dict[str, StoredTensor]:
        if not weights:
            return {}
        corrections = {weight.name: self._first(weight, weight.amount) for weight in weights if weight.amount}
        matrices = [self._sorted(weight, corrections.get(weight.name)) for weight in weights]
        tensors = encode(
            matrices,
            [weight.choices for weight in weights],
            self.prepared.quantizer,
            self._feedback(weights[0]),
            columns=self.columns,
            scale_format=plan.scale_format,
        )
        found = {weight.name: pack(tensor) for weight, tensor in zip(weights, tensors, strict=True)}
        return {**found, **self._corrected(found, corrections)}

    def _feedback(self, weight: WeightPlan) -> Feedback:
        return self.prepared.of(weight.grid).feedback

    def _sorted(self, weight: WeightPlan, correction: Correction | None) -> SortedWeight:
        values = self.network.weight(weight.name)
        return sort_weight(
            values if correction is None else minus(values, correction),
            self.importances[weight.name],
            weight.grid,
            hessian=self.prepared.of(weight.grid).hessian,
            rows=weight.row_permutation,
            columns=self.columns,
        )

    def _first(self, weight: WeightPlan, amount: Amount) -> Correction:
        subject = Corrected(
            self.network.weight(weight.name),
            self.importances[weight.name],
            self._feedback(weight).column_weights,
            weight.grid.group_size,
            self.columns,
        )
        return first_corrections(subject, [amount])[0]

    def _corrected(
        self, packed: Mapping[str, PackedTensor], corrections: Mapping[str, Correction]
    ) -> dict[str, PackedTensor]:
        """Add the corrections; those of low rank are fitted once more, to the tiles as they were rounded."""
        result, root = {}, None
        for name, correction in corrections.items():
            last = correction
            if isinstance(correction, LowRank):
                root = hessian_root(self.importances[name].hessian) if root is None else root
                error = self.network.weight(name).float() - torch.from_numpy(dequantize(packed[name]))
                last = last_correction(error, self.importances[name], correction, root=root)
            result[name] = replace(packed[name], correction=last)
        return result


def _families(plan: Plan, stats: Stats) -> list[list[str]]:
    families: dict[str, list[str]] = {}
    for weight in plan.weights:
        families.setdefault(stats.uses_of(weight.name)[0].columns, []).append(weight.name)
    return list(families.values())
