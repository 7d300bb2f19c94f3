"""A packed linear with outliers multiplies by tiles plus outliers, wherever it runs."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from laq.core.errors import FormatError
from laq.core.groups import TileGrid
from laq.core.outliers import Outliers
from laq.kernels import native
from laq.kernels.reference import dequantize
from laq.runtime.arena import Arena
from laq.runtime.correction import OutlierCorrection
from laq.runtime.decoding import Decoder
from laq.runtime.linear import PackedLinear
from laq.runtime.packed import PackedWeight
from laq.runtime.replace import packed_copy

SHAPE, N = (50, 96), 37
needs_kernels = pytest.mark.skipif(native.library() is None, reason="native kernels are not built here")


def outliers_of(shape, n, *, seed=0, size=4.0):
    generator = np.random.default_rng(seed)
    positions = np.sort(generator.choice(shape[0] * shape[1], n, replace=False))
    values = size * generator.choice([-1, 1], n) * 2 ** generator.uniform(-3, 0, n)
    return Outliers.of(positions, values.astype(np.float32), shape[0] * shape[1])


def correction(shape=SHAPE, n=N, **options):
    return OutlierCorrection(outliers_of(shape, n, **options), TileGrid(*shape, 32), memory=Arena())


@pytest.fixture
def packed(packed_random):
    return replace(packed_random(SHAPE, 32), correction=outliers_of(SHAPE, N))


@pytest.fixture
def layer(packed):
    return PackedLinear(PackedWeight(packed), torch.linspace(-1, 1, SHAPE[0]))


def inputs(*lead, width=SHAPE[1], dtype=torch.float32):
    return torch.randn(*lead, width, generator=torch.Generator().manual_seed(0)).to(dtype)


def expected(packed, given):
    return given.double() @ torch.from_numpy(dequantize(packed)).double().T + torch.linspace(-1, 1, SHAPE[0])


@pytest.mark.parametrize("lead", [(), (1,), (7,), (2, 3), (0,)])
def test_outputs_are_those_of_the_whole_matrix(layer, packed, lead):
    given = inputs(*lead)
    error = (layer(given).double() - expected(packed, given)).norm()
    assert error <= 0.01 * expected(packed, given).norm()


def test_outputs_in_torch_are_those_of_the_whole_matrix(decoded, layer, packed):
    given = inputs(4)
    assert torch.allclose(layer(given).double(), expected(packed, given), atol=1e-3)


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("shape", "n", "n_inputs"), [((1, 1), 1, 1), ((300, 70000), 900, 3), ((64, 512), 20000, 40)]
)
def test_native_products_are_added_up_in_the_order_of_elements(dtype, shape, n, n_inputs):
    outliers = outliers_of(shape, n)
    given = inputs(n_inputs, width=shape[1], dtype=dtype)
    found = correction(shape, n)(given)
    positions, values = outliers.elements()
    sums = np.zeros((n_inputs, shape[0]), np.float32)
    for position, value in zip(positions.tolist(), values, strict=True):
        row, column = divmod(position, shape[1])
        sums[:, row] += value * given[:, column].float().numpy()
    assert torch.equal(found, torch.from_numpy(sums).to(dtype))


@needs_kernels
def test_inputs_with_gaps_are_read_as_they_lie():
    layer, wide = correction(), inputs(5, width=2 * SHAPE[1])
    for given in (wide[:, : SHAPE[1]], wide[:, ::2], inputs(SHAPE[1], width=5).T, torch._neg_view(inputs(2))):
        assert torch.equal(layer(given), layer(given.clone().contiguous()))


@needs_kernels
@pytest.mark.parametrize(
    ("buffer", "place", "value"),
    [
        ("columns", 5, SHAPE[1]),
        ("columns", 0, -1),
        ("starts", 3, 30),
        ("starts", -1, N + 1),
        ("starts", 0, 1),
    ],
)
def test_damaged_buffers_are_refused_not_read(buffer, place, value):
    damaged = correction()
    getattr(damaged, buffer)[place] = value
    with pytest.raises(FormatError, match="outliers: "):
        damaged(inputs(2))


@needs_kernels
def test_buffers_of_another_type_are_refused():
    damaged = correction()
    damaged.values = damaged.values.float()
    with pytest.raises(FormatError, match="other types or lengths"):
        damaged(inputs(2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_cast_layer_keeps_its_outliers(layer, packed, dtype):
    cast = layer.to(dtype)
    assert cast.packed.correction.values.dtype == torch.int16
    found = cast(inputs(3).to(dtype))
    assert found.dtype == dtype
    error = (found.double() - expected(packed, inputs(3))).norm()
    assert error < 0.02 * expected(packed, inputs(3)).norm()


def test_gradients_of_the_input_flow_through_both(layer, packed):
    given = inputs(2).requires_grad_()
    layer(given).sum().backward()
    whole = torch.from_numpy(dequantize(packed)).sum(0).expand(2, -1)
    assert torch.allclose(given.grad, whole, atol=1e-3)


def test_a_weight_dequantizes_with_its_outliers(packed):
    assert np.abs(dequantize(packed) - dequantize(replace(packed, correction=None))).max() > 1
    assert torch.allclose(PackedWeight(packed).dequantize(), torch.from_numpy(dequantize(packed)), atol=1e-5)


def test_a_copy_is_of_its_own(layer):
    twin, given = copy.deepcopy(layer), inputs(2)
    before = layer(given)
    assert torch.equal(twin(given), before)
    twin.packed.correction.values.zero_()
    assert torch.equal(layer(given), before)
    assert not torch.equal(twin(given), before)


def test_a_state_dict_carries_the_outliers(layer, packed):
    state = layer.state_dict()
    assert {f"packed.correction.{name}" for name in ("starts", "columns", "values")} <= set(state)
    twin = PackedLinear(
        PackedWeight(replace(packed, correction=outliers_of(SHAPE, N, seed=9))), torch.zeros(SHAPE[0])
    )
    twin.load_state_dict(state)
    assert torch.equal(twin(inputs(2)), layer(inputs(2)))


@needs_kernels
def test_a_graph_has_the_outliers(layer):
    exported = torch.export.export(layer, (inputs(3),)).module()
    assert torch.allclose(exported(inputs(3)), layer(inputs(3)), atol=1e-5)


@needs_kernels
def test_repeated_tokens_have_the_outliers(packed_llama, packed_random):
    network, without = packed_llama
    packed = {}
    for weight in network.weights:
        tiles = packed_random(weight.shape, 32, choices=7)
        added = outliers_of(weight.shape, 60, size=0.3) if weight.kind == "linear" else None
        packed[weight.name] = replace(tiles, correction=added)
    module, ids, found = packed_copy(network, packed), torch.arange(3, 12)[None], {}
    for name, one, repeats in (
        ("own", module, False),
        ("repeated", module, True),
        ("without", without, False),
    ):
        decoder = Decoder(one, max_tokens=40, repeats=repeats)
        decoder.read(ids)
        found[name] = torch.cat([decoder.next(token).clone() for token in range(20, 40)])
        assert decoder.is_native == repeats, decoder.reason
    scale = found["own"].norm()
    assert (found["repeated"] - found["own"]).norm() < 1e-4 * scale
    assert (found["without"] - found["own"]).norm() > 0.1 * scale
