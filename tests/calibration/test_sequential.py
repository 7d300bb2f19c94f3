"""Every block is rounded for what the rounded blocks before it return."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from laq.allocation.common import size_range
from laq.calibration.collect import calibrate
from laq.calibration.sequential import apply_in_sequence
from laq.core.errors import NetworkError
from laq.core.stats import Moments
from laq.core.target import Unit
from laq.kernels.reference import dequantize
from laq.networks import describe as describe_any
from laq.networks.module import run_logits
from laq.networks.swapped import Swapped
from laq.quantizers.common.apply import apply_plans
from laq.steps import allocate, measure


def described(module):
    return describe_any(module, architecture="transformers")


def planned(module, data, *, formats="all", **options):
    """A network, its statistics, and a plan with half a bit above the smallest."""
    network = described(module)
    stats = calibrate(network, data)
    curves = measure(network, stats, formats=formats, **{"group_size": 32} | options)
    curves = replace(curves, original_bytes=1 << 40)  # tables weigh much beside so few weights
    smallest, _ = size_range(curves, unit=Unit.TENSOR, formats=formats, floor=True)
    size = smallest + network.n_params // 16
    return network, stats, allocate(curves, size=size, unit="tensor", formats=formats)


def inputs_with(network, values, path, batches):
    """What a linear reads in the network with some weights swapped, float64 [n, n_columns]."""
    seen = []
    handle = network.module.get_submodule(path).register_forward_hook(
        lambda module, args, output: seen.append(args[0].flatten(0, -2))
    )
    with torch.no_grad():
        for batch in batches:
            run_logits(Swapped(network.module, values), batch)
    handle.remove()
    return torch.cat(seen).double()


def same_bytes(one, other):
    mine, its = one.sections(), other.sections()
    return mine.keys() == its.keys() and all(np.array_equal(mine[key], its[key]) for key in mine)


WAYS = [{"quantizer": "rtn"}, {}, {"formats": "mxfp4"}, {"scale_format": "e8m0", "outliers": 0.01}]
WAYS += [{"scale_per": per, "formats": "integer"} for per in ("tile", "channel", "tensor")]


@pytest.mark.parametrize("options", WAYS)
def test_a_block_is_rounded_by_what_it_reads_after_the_rounded_ones(llama, batches, options):
    network, stats, plan = planned(llama().eval(), batches, **options)
    found = apply_in_sequence(network, plan, stats, batches)
    assert list(found) == [weight.name for weight in network.weights]
    mine = [name for name in found if name.startswith("model.layers.1.")]
    before = {name: torch.from_numpy(dequantize(found[name])) for name in found if name not in mine}
    moments = dict(stats.moments)
    for name in mine:
        x = inputs_with(network, before, name.removesuffix(".weight"), batches)
        key = stats.uses_of(name)[0].columns
        second, fourth = (x.T @ x / len(x)).float().numpy(), x.pow(4).mean(0).float().numpy()
        assert not np.allclose(second, stats.moments[key].second, rtol=1e-3)
        moments[key] = Moments(second, fourth, len(x))
    weights = tuple(weight for weight in plan.weights if weight.name in mine)
    (expected,) = apply_plans(network, [replace(plan, weights=weights)], replace(stats, moments=moments))
    (parallel,) = apply_plans(network, [plan], stats)
    for name in mine:
        codes = dequantize(found[name])
        assert np.isclose(codes, dequantize(expected[name]), atol=1e-6).mean() > 0.99, name
    assert any(not same_bytes(found[name], parallel[name]) for name in mine)


def test_with_nothing_rounded_before_it_the_first_block_is_that_of_the_first_calibration(llama, batches):
    network, stats, plan = planned(llama().eval(), batches)
    kept = network.keeping("embed_tokens")
    plan = replace(plan, weights=tuple(w for w in plan.weights if "embed_tokens" not in w.name))
    found = apply_in_sequence(kept, plan, stats, batches)
    (parallel,) = apply_plans(kept, [plan], stats)
    first = [name for name in found if name.startswith("model.layers.0.")]
    assert first
    for name in first:
        assert np.isclose(dequantize(found[name]), dequantize(parallel[name]), atol=1e-6).mean() > 0.99


def test_errors_on_what_is_really_read_are_smaller(llama, batches):
    network, stats, plan = planned(llama(tied=False).eval(), batches)
    found = apply_in_sequence(network, plan, stats, batches)
    (parallel,) = apply_plans(network, [plan], stats)
    values = {name: torch.from_numpy(dequantize(one)) for name, one in found.items()}
    errors = {"sequence": 0.0, "at once": 0.0}
    for name in (name for name in found if name.startswith("model.layers.1.")):
        before = {other: value for other, value in values.items() if "layers.1." not in other}
        x = inputs_with(network, before, name.removesuffix(".weight"), batches)
        for way, packed in (("sequence", found), ("at once", parallel)):
            moved = x @ (torch.from_numpy(dequantize(packed[name])) - network.weight(name)).double().T
            errors[way] += float(moved.square().mean())
    assert errors["sequence"] < 0.99 * errors["at once"]


def test_the_network_is_left_as_it_was_and_the_result_is_always_the_same(llama, batches):
    network, stats, plan = planned(llama(tied=False).train(), batches)
    before = network.content_hash()
    hooked = {
        path: (len(m._forward_hooks), vars(m).get("forward")) for path, m in network.module.named_modules()
    }
    first, second = (apply_in_sequence(network, plan, stats, batches) for _ in range(2))
    assert network.content_hash() == before
    assert network.module.training
    for path, module in network.module.named_modules():
        assert (len(module._forward_hooks), vars(module).get("forward")) == hooked[path]
    assert all(same_bytes(first[name], second[name]) for name in first)


@pytest.mark.parametrize("options", [{"low_rank": 2}, {"formats": "product"}, {"formats": "palette"}])
def test_corrections_product_codes_and_tables_go_through_in_sequence(llama, batches, options):
    network, stats, plan = planned(llama(tied=False).eval(), batches, **options)
    found = apply_in_sequence(network, plan, stats, batches)
    (parallel,) = apply_plans(network, [plan], stats)
    assert {name: type(one) for name, one in found.items()} == {
        name: type(one) for name, one in parallel.items()
    }
    assert any(not same_bytes(found[name], parallel[name]) for name in found)


def test_a_network_without_blocks_is_refused(llama, batches):
    module = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32))
    data = list(torch.randn(3, 8, 32))
    network, stats, plan = planned(module, data)
    with pytest.raises(NetworkError, match=r"no list of blocks.*\nhint: leave --sequential away"):
        apply_in_sequence(network, plan, stats, data)


def test_blocks_that_look_at_more_than_the_one_before_are_refused():
    class Skipping(nn.Module):
        """The second block also reads the first one's input."""

        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(32, 32), nn.ReLU()) for _ in range(2))
            self.head = nn.Linear(32, 8)

        def forward(self, x):
            return self.head(self.blocks[1](self.blocks[0](x) + x))

    data = list(torch.randn(3, 8, 32, generator=torch.Generator().manual_seed(0)))
    network, stats, plan = planned(Skipping().eval(), data)
    assert network.blocks == "blocks"
    with pytest.raises(NetworkError, match="that follow each other"):
        apply_in_sequence(network, plan, stats, data)
