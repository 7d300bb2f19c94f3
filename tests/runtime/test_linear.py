"""A packed linear computes what its dense twin computes; in torch here, natively in test_native.py."""

import numpy as np
import pytest
import torch
from torch import nn

from laq.core.scheme import ScaleFormat
from laq.runtime import linear as linear_module
from laq.runtime.linear import PackedLinear
from laq.runtime.packed import PackedWeight

pytestmark = pytest.mark.usefixtures("decoded")


def dense_twin(layer):
    twin = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    twin.weight.data = layer.packed.dequantize()
    if layer.bias is not None:
        twin.bias.data = layer.bias.data.clone()
    return twin


@pytest.fixture(params=[(1, 1), (16, 64), (17, 70), (100, 300)], ids=str)
def layer(request, packed_random):
    packed = packed_random(request.param, 64)
    return PackedLinear(PackedWeight(packed), torch.linspace(-1, 1, request.param[0]))


@pytest.mark.parametrize("leading", [(), (5,), (2, 3)])
def test_forward_equals_the_dense_layer_within_rounding(layer, leading):
    inputs = torch.randn(*leading, layer.in_features, generator=torch.Generator().manual_seed(0))
    twin = dense_twin(layer)
    expected = twin(inputs)
    bound = 1e-6 * layer.in_features * (inputs.abs().amax() * twin.weight.abs().amax() + 1)
    assert layer(inputs).shape == expected.shape
    assert (layer(inputs) - expected).abs().amax() <= bound


@pytest.mark.parametrize("scale_format", ScaleFormat)
@pytest.mark.parametrize("sorts", [False, True])
def test_mixed_and_absent_tiles_compute_alike(packed_random, scale_format, sorts):
    choices = np.array([[5, 3, 0], [8, 0, 1], [0, 0, 0]])
    packed = packed_random((40, 150), 64, choices=choices, scale_format=scale_format, sorts=sorts)
    layer = PackedLinear(PackedWeight(packed), None)
    inputs = torch.randn(7, 150, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(layer(inputs), dense_twin(layer)(inputs), rtol=1e-4, atol=1e-4)


def test_decoding_a_few_row_blocks_at_a_time_changes_nothing(packed_random, monkeypatch):
    layer = PackedLinear(PackedWeight(packed_random((100, 64), 64)), None)
    inputs = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    whole = layer(inputs)
    monkeypatch.setattr(linear_module, "DECODE_ELEMENTS", 1)
    torch.testing.assert_close(layer(inputs), whole, rtol=1e-6, atol=1e-5)


def test_output_has_the_type_of_the_input(layer):
    inputs = torch.ones(2, layer.in_features, dtype=torch.bfloat16)
    assert layer(inputs).dtype == torch.bfloat16


def test_gradient_reaches_the_input(layer):
    inputs = torch.ones(2, layer.in_features, requires_grad=True)
    layer(inputs).sum().backward()
    expected = layer.packed.dequantize().sum(0).expand(2, -1)
    torch.testing.assert_close(inputs.grad, expected, rtol=1e-4, atol=1e-4)


def test_nothing_in_it_is_trained(layer):
    assert not any(parameter.requires_grad for parameter in layer.parameters())


def test_sizes_are_shown(layer):
    assert f"in_features={layer.in_features}" in repr(layer)
