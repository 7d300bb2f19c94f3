"""A packed linear with a correction multiplies by tiles plus correction, wherever it runs."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from laq.core.low_rank import LowRank
from laq.kernels import native
from laq.kernels.reference import dequantize
from laq.runtime.decoding import Decoder
from laq.runtime.linear import PackedLinear
from laq.runtime.packed import PackedWeight
from laq.runtime.replace import packed_copy

SHAPE, RANK = (50, 96), 3


@pytest.fixture
def packed(packed_random):
    generator = np.random.default_rng(5)
    factors = generator.integers(-127, 128, (RANK, sum(SHAPE))).astype(np.int8)
    return replace(packed_random(SHAPE, 32), correction=LowRank(factors, np.full(RANK, 0.01, np.float16)))


@pytest.fixture
def layer(packed):
    return PackedLinear(PackedWeight(packed), torch.linspace(-1, 1, SHAPE[0]))


def inputs(*lead):
    return torch.randn(*lead, SHAPE[1], generator=torch.Generator().manual_seed(0))


def expected(packed, given):
    return given.double() @ torch.from_numpy(dequantize(packed)).double().T + torch.linspace(-1, 1, SHAPE[0])


def test_the_correction_is_more_than_rounding(packed):
    tiles = dequantize(replace(packed, correction=None))
    assert np.linalg.norm(dequantize(packed) - tiles) > 0.5 * np.linalg.norm(tiles)


@pytest.mark.parametrize("lead", [(), (1,), (7,), (2, 3)])
def test_outputs_are_those_of_the_whole_matrix(layer, packed, lead):
    given = inputs(*lead)
    assert torch.allclose(layer(given).double(), expected(packed, given), rtol=0, atol=0.3)
    error = (layer(given).double() - expected(packed, given)).norm()
    assert error < 0.01 * expected(packed, given).norm()


def test_outputs_in_torch_are_those_of_the_whole_matrix(decoded, layer, packed):
    given = inputs(4)
    assert torch.allclose(layer(given).double(), expected(packed, given), atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_cast_layer_keeps_its_factors(layer, packed, dtype):
    cast = layer.to(dtype)
    assert cast.packed.correction.factors.dtype == torch.int8
    found = cast(inputs(3).to(dtype))
    assert found.dtype == dtype
    error = (found.double() - expected(packed, inputs(3))).norm()
    assert error < 0.02 * expected(packed, inputs(3)).norm()


def test_gradients_of_the_input_flow_through_both(layer, packed):
    given = inputs(2).requires_grad_()
    layer(given).sum().backward()
    whole = torch.from_numpy(dequantize(packed)).sum(0).expand(2, -1)
    assert torch.allclose(given.grad, whole, atol=1e-3)


def test_a_weight_dequantizes_with_its_correction(packed):
    whole = torch.from_numpy(dequantize(packed))
    assert torch.allclose(PackedWeight(packed).dequantize(), whole, atol=1e-5)


def test_a_copy_is_of_its_own(layer):
    twin, given = copy.deepcopy(layer), inputs(2)
    before = layer(given)
    assert torch.equal(twin(given), before)
    twin.packed.correction.factors.zero_()
    assert torch.equal(layer(given), before)
    assert not torch.equal(twin(given), before)


def test_a_state_dict_carries_the_correction(layer, packed):
    state = layer.state_dict()
    assert {"packed.correction.factors", "packed.correction.scales"} <= set(state)
    other = replace(packed, correction=LowRank(packed.correction.factors * 0, packed.correction.scales))
    twin = PackedLinear(PackedWeight(other), torch.zeros(SHAPE[0]))
    twin.load_state_dict(state)
    assert torch.equal(twin(inputs(2)), layer(inputs(2)))


def test_factors_stay_in_8_bits_in_memory(packed):
    own = [
        sum(t.numel() * t.element_size() for t in PackedWeight(one).buffers())
        for one in (packed, replace(packed, correction=None))
    ]
    assert own[0] - own[1] == RANK * (sum(SHAPE) + 2)


def corrected(packed, rank, generator):
    rows, columns = packed.grid.n_rows, packed.grid.n_columns
    factors = generator.integers(-127, 128, (rank, rows + columns)).astype(np.int8)
    return replace(packed, correction=LowRank(factors, np.full(rank, 0.003, np.float16)))


@pytest.fixture(scope="module")
def corrected_llama(packed_llama, packed_random):
    """The Llama of other tests, every linear with a correction; its tied embedding has none."""
    network, _ = packed_llama
    generator = np.random.default_rng(0)
    packed = {}
    for weight in network.weights:
        tiles = packed_random(weight.shape, 32, choices=7)
        packed[weight.name] = corrected(tiles, 2, generator) if weight.kind == "linear" else tiles
    return packed_copy(network, packed)


@pytest.mark.skipif(native.library() is None, reason="native kernels are not built here")
def test_repeated_tokens_have_the_correction(corrected_llama, packed_llama):
    ids = torch.arange(3, 12)[None]
    found = {}
    for name, module, repeats in (
        ("own code", corrected_llama, False),
        ("repeated", corrected_llama, True),
        ("without", packed_llama[1], False),
    ):
        decoder = Decoder(module, max_tokens=40, repeats=repeats)
        decoder.read(ids)
        found[name] = torch.cat([decoder.next(token).clone() for token in range(20, 40)])
        assert decoder.is_native == repeats
    scale = found["own code"].norm()
    assert (found["repeated"] - found["own code"]).norm() < 1e-4 * scale
    assert (found["without"] - found["own code"]).norm() > 0.1 * scale
