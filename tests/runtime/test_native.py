"""Packed layers on the native kernels: near their dense twins, siblings in one call, state that changes."""

import copy
import threading
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from laq.core.errors import FormatError, RequestError
from laq.kernels import native
from laq.runtime import siblings
from laq.runtime.calls import FEW_INPUTS
from laq.runtime.embedding import PackedEmbedding
from laq.runtime.linear import PackedLinear, rounding_activations
from laq.runtime.packed import PackedWeight
from laq.runtime.siblings import join_siblings

pytestmark = pytest.mark.skipif(native.library() is None, reason="native kernels are not built here")


def layer_of(packed_random, shape=(100, 300), *, bias=True, seed=0):
    return PackedLinear(
        PackedWeight(packed_random(shape, 64, seed=seed)), torch.linspace(-1, 1, shape[0]) if bias else None
    )


def expected_of(layer, inputs):
    product = inputs.double() @ layer.packed.dequantize().double().T
    return product if layer.bias is None else product + layer.bias.double()


def relative_error(found, expected):
    return float((found.double() - expected).norm() / expected.norm())


def inputs_of(*shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize("shape", [(), (1,), (5,), (2, 3), (0,)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_output_is_that_of_the_dense_layer_within_the_rounding_of_inputs(packed_random, shape, bias):
    layer = layer_of(packed_random, bias=bias)
    inputs = inputs_of(*shape, 300)
    found, expected = layer(inputs), expected_of(layer, inputs)
    assert found.shape == expected.shape
    if found.numel():
        few = inputs.numel() // 300 <= FEW_INPUTS
        assert relative_error(found, expected) < (5e-5 if few else 2e-2)


def test_bits_of_activations_can_be_chosen(packed_random):
    layer, inputs = layer_of(packed_random), inputs_of(9, 300)
    errors = []
    for bits in (8, None, 16):
        with rounding_activations([layer], bits):
            errors.append(relative_error(layer(inputs), expected_of(layer, inputs)))
    assert errors[0] == errors[1] > 50 * errors[2]
    assert layer.activation_bits is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_goes_in_and_out(packed_random, dtype):
    layer, inputs = layer_of(packed_random), inputs_of(2, 300, dtype=dtype)
    found = layer.to(dtype)(inputs)
    assert found.dtype == dtype
    assert relative_error(found, expected_of(layer, inputs)) < 1e-2


def test_inputs_of_any_stride_are_taken(packed_random):
    layer = layer_of(packed_random)
    turned = inputs_of(300, 3).T
    assert torch.equal(layer(turned), layer(turned.contiguous()))


def test_types_without_kernels_are_decoded(packed_random):
    layer, inputs = layer_of(packed_random, bias=False), inputs_of(2, 300, dtype=torch.float64)
    assert relative_error(layer(inputs), expected_of(layer, inputs)) < 1e-12


def test_embedding_equals_the_decoded_one_exactly(packed_random, monkeypatch):
    embedding = PackedEmbedding(
        PackedWeight(packed_random((50, 70), 64)), dtype=torch.bfloat16, scale=55.4256
    )
    ids = torch.tensor([[3, 49], [0, 3]])
    found = embedding(ids)
    monkeypatch.setattr(native, "library", lambda: None)
    assert torch.equal(found, embedding(ids))


class Attention(nn.Module):
    def __init__(self, packed_random, *, bias=False):
        super().__init__()
        shared = packed_random((64, 300), 64)
        for seed, name in enumerate("qkv"):
            packed = packed_random((64 + 16 * seed, 300), 64, seed=seed + 1)
            own = torch.ones(64 + 16 * seed) if bias else None
            setattr(self, name, PackedLinear(PackedWeight(with_columns(packed, shared)), own))
        join_siblings({f"attention.{name}": getattr(self, name) for name in "qkv"})


def with_columns(packed, other):
    from dataclasses import replace

    return replace(packed, column_permutation=other.column_permutation)


@pytest.fixture
def attention(packed_random):
    return Attention(packed_random)


@pytest.fixture
def counted(monkeypatch):
    """Sizes of the native calls made."""
    sizes = []
    plain = siblings.call_linear

    def call_linear(matrices, *arguments):
        sizes.append(len(matrices))
        return plain(matrices, *arguments)

    monkeypatch.setattr(siblings, "call_linear", call_linear)
    return sizes


def test_siblings_are_computed_in_one_call(attention, counted):
    inputs = inputs_of(2, 300)
    found = [layer(inputs) for layer in (attention.q, attention.k, attention.v)]
    assert counted == [3]
    for layer, output in zip((attention.q, attention.k, attention.v), found, strict=True):
        assert torch.equal(output, siblings.linear(layer, inputs))


def test_changed_inputs_are_computed_anew(attention):
    inputs = inputs_of(2, 300)
    attention.q(inputs)
    inputs.mul_(2)
    assert torch.equal(attention.k(inputs), siblings.linear(attention.k, inputs))


def test_siblings_that_do_not_read_the_same_input_go_their_own_way(attention, counted):
    for seed in range(12):
        mine, other = inputs_of(2, 300) + seed, inputs_of(2, 300) - seed
        assert torch.equal(attention.q(mine), siblings.linear(attention.q, mine))
        assert torch.equal(attention.k(other), siblings.linear(attention.k, other))
    assert counted[-2:] == [1, 1]


@pytest.mark.parametrize("change", ["bits", "bias", "weight", "order"])
def test_a_sibling_changed_meanwhile_is_computed_anew(packed_random, change):
    attention = Attention(packed_random, bias=True)
    inputs = inputs_of(9, 300)
    attention.q(inputs)
    if change == "bits":
        attention.k.activation_bits = 16
    elif change == "bias":
        attention.k.bias.add_(1)
    elif change == "weight":
        attention.k.packed.scales.add_(1)
    else:
        attention.k.packed.column_permutation.copy_(attention.k.packed.column_permutation.flip(0))
    expected = siblings.linear(attention.k, inputs)
    assert torch.equal(attention.k(inputs), expected)
    again = inputs.clone()
    assert torch.equal(attention.q(again), siblings.linear(attention.q, again))
    assert torch.equal(attention.k(again), expected)


def test_the_same_sibling_twice_is_right_twice(attention):
    inputs = inputs_of(2, 300)
    assert torch.equal(attention.q(inputs), attention.q(inputs))


def test_inference_tensors_are_right(attention):
    with torch.inference_mode():
        inputs = inputs_of(2, 300)
        attention.q(inputs)
        inputs.mul_(2)
        assert torch.equal(attention.k(inputs), siblings.linear(attention.k, inputs))


def test_siblings_in_several_threads_do_not_mix(attention):
    wrong = []

    def work(seed):
        for i in range(20):
            inputs = inputs_of(1, 300) * (seed + i + 1)
            for layer in (attention.q, attention.k, attention.v):
                if not torch.equal(layer(inputs), siblings.linear(layer, inputs)):
                    wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_copies_of_siblings_are_siblings_of_each_other(attention, counted):
    twin = copy.deepcopy(attention)
    assert twin.q.siblings is twin.k.siblings is not attention.q.siblings
    assert set(twin.q.siblings.layers) == {twin.q, twin.k, twin.v}
    inputs = inputs_of(2, 300)
    expected = [attention.q(inputs), attention.k(inputs), attention.v(inputs)]
    for buffer in attention.buffers():
        buffer.zero_()
    assert all(
        torch.equal(mine, its)
        for mine, its in zip((twin.q(inputs), twin.k(inputs), twin.v(inputs)), expected, strict=True)
    )


class Small(nn.Module):
    def __init__(self, packed_random):
        super().__init__()
        self.embedding = PackedEmbedding(PackedWeight(packed_random((50, 300), 64)), dtype=torch.float32)
        self.linear = layer_of(packed_random)

    def forward(self, ids):
        return self.linear(self.embedding(ids)).relu()


def test_compiled_and_exported_graphs_compute_the_same(packed_random):
    model, ids = Small(packed_random), torch.tensor([[3, 49], [0, 3]])
    expected = model(ids)
    assert torch.equal(torch.compile(model, backend="aot_eager", fullgraph=True)(ids), expected)
    graph = torch.export.export(model, (ids,))
    assert torch.equal(graph.module()(ids), expected)
    names = {str(node.target) for node in graph.graph.nodes}
    assert {"laq.linear.default", "laq.rows.default"} <= names


def test_operators_pass_the_checks_of_torch(packed_random):
    model = Small(packed_random)
    packed = model.linear.packed
    sizes = packed.n_rows, packed.n_columns, packed.grid.group_size
    checks = ("test_schema", "test_faketensor")
    arguments = (inputs_of(2, 300), model.linear.bias.detach(), 0, *packed.sections(), *sizes)
    torch.library.opcheck(torch.ops.laq.linear.default, arguments, test_utils=checks)
    packed = model.embedding.packed
    sizes = packed.n_rows, packed.n_columns, packed.grid.group_size
    arguments = (
        torch.tensor([[3, 49]]),
        model.embedding.row_index,
        torch.bfloat16,
        *packed.sections(),
        *sizes,
    )
    torch.library.opcheck(torch.ops.laq.rows.default, arguments, test_utils=checks)


def test_state_loaded_later_is_what_runs(packed_random):
    layer, other = (layer_of(packed_random, seed=seed) for seed in (0, 1))
    inputs = inputs_of(2, 300)
    before = layer(inputs)
    layer.load_state_dict(other.state_dict())
    assert torch.equal(layer(inputs), other(inputs))
    assert not torch.equal(before, other(inputs))


def test_state_that_is_not_a_packed_matrix_is_refused_before_a_kernel_sees_it(packed_random):
    layer = layer_of(packed_random)
    layer(inputs_of(2, 300))
    state = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    state["packed.groups"][0] = 99
    layer.load_state_dict(state)
    with pytest.raises(FormatError, match="tile"):
        layer(inputs_of(2, 300))


@pytest.mark.parametrize("width", [10, 299, 301])
def test_inputs_of_another_width_are_refused(packed_random, width):
    with pytest.raises(RequestError, match="300"):
        layer_of(packed_random)(inputs_of(2, width))


def test_buffers_replaced_for_a_call_are_the_ones_that_run(packed_random):
    layer, other = (layer_of(packed_random, seed=seed) for seed in (0, 1))
    inputs = inputs_of(2, 300)
    before = layer(inputs)
    state = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    assert torch.equal(torch.func.functional_call(layer, state, (inputs,)), other(inputs))
    assert torch.equal(layer(inputs), before)


def test_sections_of_another_type_are_refused(packed_random):
    layer = layer_of(packed_random)
    state = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    state["packed.tile_starts"] = state["packed.tile_starts"].to(torch.int16)
    layer.load_state_dict(state, assign=True)
    with pytest.raises(FormatError, match="tile_starts"):
        layer(inputs_of(2, 300))


def test_a_graph_checks_what_was_loaded_after_it_was_compiled(packed_random):
    model, ids = Small(packed_random), torch.tensor([[3, 49], [0, 3]])
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    compiled(ids)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state["linear.packed.groups"][0] = 99
    model.load_state_dict(state)
    with pytest.raises(FormatError, match="tile"):
        compiled(ids)


def test_a_graph_refuses_ids_out_of_range(packed_random):
    compiled = torch.compile(Small(packed_random), backend="aot_eager", fullgraph=True)
    with pytest.raises(IndexError):
        compiled(torch.tensor([[-1, 3]]))


def test_tracing_records_the_operators(packed_random):
    model, ids = Small(packed_random), torch.tensor([[3, 49], [0, 3]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(model, (ids,))
    other = torch.tensor([[7, 8], [9, 10]])
    assert torch.equal(traced(other), model(other))


def test_autocast_gives_the_type_that_it_gives_dense_layers(packed_random):
    layer = layer_of(packed_random)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(inputs_of(2, 300)).dtype == torch.bfloat16


def test_a_bias_that_wants_a_gradient_gets_it(packed_random):
    layer = layer_of(packed_random)
    layer.bias.requires_grad_()
    layer(inputs_of(2, 300)).sum().backward()
    assert torch.equal(layer.bias.grad, torch.full((100,), 2.0))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # torch's own, inside
def test_forward_mode_derivatives_are_kept(packed_random):
    layer, inputs = layer_of(packed_random, bias=False), inputs_of(2, 300)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(inputs, torch.ones_like(inputs))
        tangent = torch.autograd.forward_ad.unpack_dual(layer(dual)).tangent
    torch.testing.assert_close(tangent, layer(torch.ones_like(inputs)), rtol=1e-3, atol=1e-2)


def test_lazily_negated_inputs_are_negated(packed_random):
    layer = layer_of(packed_random)
    negated = torch.imag(torch.complex(inputs_of(2, 300), inputs_of(2, 300)).conj())
    assert torch.equal(layer(negated), layer(-inputs_of(2, 300)))


@pytest.mark.parametrize("device", ["meta"])
def test_default_devices_do_not_lead_the_kernels_astray(packed_random, device):
    layer, inputs = layer_of(packed_random), inputs_of(2, 300)
    expected = layer(inputs)
    with torch.device(device):
        assert torch.equal(layer(inputs), expected)


def test_weights_elsewhere_than_their_input_are_refused(packed_random):
    layer, inputs = layer_of(packed_random), inputs_of(2, 300)
    layer(inputs)
    layer.to("meta")
    with pytest.raises(RequestError, match="meta"):
        layer(inputs)


def test_gradient_reaches_the_input(packed_random):
    layer = layer_of(packed_random)
    inputs = inputs_of(2, 300).requires_grad_()
    layer(inputs).sum().backward()
    torch.testing.assert_close(
        inputs.grad, layer.packed.dequantize().sum(0).expand(2, -1), rtol=1e-4, atol=1e-3
    )


def test_absent_tiles_compute_alike(packed_random):
    choices = np.array([[5, 3, 0], [8, 0, 1], [0, 0, 0]])
    layer = PackedLinear(PackedWeight(packed_random((40, 150), 64, choices=choices)), None)
    inputs = inputs_of(7, 150)
    with rounding_activations([layer], 16):
        assert relative_error(layer(inputs), expected_of(layer, inputs)) < 5e-5
