"""A plan carried out block by block: each is rounded for what the rounded blocks before it return."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch

from laq.calibration.blocks import BlockInputs, chain_of
from laq.calibration.moments import Collector, hook_weights, hooks
from laq.calibration.spool import Spool
from laq.core.packing import StoredTensor
from laq.core.plan import Plan
from laq.core.product import ProductTensor
from laq.core.progress import Silent, shown_by, track
from laq.core.stats import Moments, Stats
from laq.kernels.reference import dequantize
from laq.networks.module import Batch, Network, evaluation_mode
from laq.quantizers.common.apply import apply_plans


@torch.no_grad()
def apply_in_sequence(
    network: Network, plan: Plan, stats: Stats, batches: Sequence[Batch]
) -> dict[str, StoredTensor]:
    """Quantize and pack a network, the inputs of every block seen anew.

    What lies outside of the blocks is rounded first, by the statistics given. Then, for one block after the
    other, its linears' H = E[x x'] is taken on what the rounded network before it returns, the block is
    rounded by that, and run once more as it became. Importance of rows, formats and orders stay those of
    `stats` and `plan`. Held are inputs of blocks (on disk) and one block's activations.

    Parameters
    ----------
    network : Network
        Run in evaluation mode; left as it was.
    plan : Plan
        Formats of all tiles.
    stats : Stats
        What calibration saw; weights that no token reaches here keep it.
    batches : sequence of Batch
        Calibration data, one or more.

    Returns
    -------
    dict
        Packed weights by name, in the plan's order.

    Raises
    ------
    NetworkError
        If there are no blocks that can run one at a time.

    References
    ----------
    Frantar et al., arXiv:2210.17323, section 4 ("additional tricks").
    """
    with evaluation_mode(network.module):
        chain = chain_of(network, batches[0], asked="--sequential")
        prefixes = [f"{network.blocks}.{number}." for number in range(len(chain.blocks))]
        names = [weight.name for weight in plan.weights]
        outside = [name for name in names if not name.startswith(tuple(prefixes))]
        packed = _packed(network, plan, stats, outside)
        values = _values(network, packed, "")
        inputs = BlockInputs(chain, batches, Spool(), values=values)
        for block, prefix in enumerate(track(prefixes, label="quantizing in sequence", total=len(prefixes))):
            mine = [name for name in names if name.startswith(prefix)]
            own = _of_inputs(stats, mine, _input_moments(network, inputs, block, prefix, len(batches)))
            found = _packed(network, plan, own, mine)
            values = _values(network, found, prefix)
            for index in range(len(batches)):
                inputs.advance(block, index, values)
            packed |= found
    return {name: packed[name] for name in names}


def _packed(network: Network, plan: Plan, stats: Stats, names: Sequence[str]) -> dict[str, StoredTensor]:
    """Some weights by the plan."""
    if not names:
        return {}
    weights = tuple(weight for weight in plan.weights if weight.name in names)
    with shown_by(Silent()):
        (packed,) = apply_plans(network, [replace(plan, weights=weights)], stats)
    return packed


def _values(network: Network, packed: Mapping[str, StoredTensor], prefix: str) -> dict[str, torch.Tensor]:
    """What is stored, in the type that the network runs in; names without the prefix."""
    return {
        name.removeprefix(prefix): torch.from_numpy(
            stored.dequantize() if isinstance(stored, ProductTensor) else dequantize(stored)
        ).to(network.weight(name).dtype)
        for name, stored in packed.items()
    }


def _input_moments(
    network: Network, inputs: BlockInputs, block: int, prefix: str, n_batches: int
) -> Mapping[str, Moments]:
    """Second moments of what the linears of a block read, the block itself as it was."""
    collector = Collector(Spool())
    handles = hook_weights(network, collector, lambda path: path.startswith(prefix), with_rows=False)
    with hooks(*handles):
        for index in range(n_batches):
            inputs.run(block, index)
            collector.seen.clear()
    collector.finish()
    return collector.moments


def _of_inputs(stats: Stats, names: Iterable[str], moments: Mapping[str, Moments]) -> Stats:
    """Statistics of a few weights, with other moments where there are some."""
    keys = {key for name in names for use in stats.uses_of(name) for key in (use.columns, use.rows)}
    return replace(
        stats, moments={key: moments[key] if key in moments else stats.moments[key] for key in keys}
    )
