"""Steps compute what the operations of torch compute that they were made from, again and again."""

import ctypes
import re
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from laq.core.errors import RequestError
from laq.kernels import native
from laq.kernels.steps import Attention, Kind, Lookup, Product, Step
from laq.runtime.lowering import lower
from laq.runtime.recording import NotRecordableError, Recording

pytestmark = pytest.mark.skipif(native.library() is None, reason="native kernels are not built here")

TYPES = [torch.float32, torch.bfloat16, torch.float16]
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 1.6e-2, torch.float16: 2e-3}


@pytest.fixture(params=native.library().tiers if native.library() else ())
def tier(request, tier_is_put_back):
    native.library().use_tier(request.param)
    return request.param


def random(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def repeated(function, *inputs):
    """Record a function, change its inputs in place, repeat it: what it gives then, and what torch does."""
    recording = Recording()
    with torch.no_grad(), recording:
        result = function(*inputs)
    program = lower(recording.events, inputs)
    for tensor in inputs:
        if tensor.is_floating_point():
            tensor.copy_(tensor.flip(0) * 0.7 + 0.1)
        elif tensor.dtype == torch.bool:
            tensor.logical_not_()
        else:
            tensor.copy_(tensor.flip(0))
    program.run()
    found = result.clone()
    with torch.no_grad():
        expected = function(*inputs)
    return found, expected


def check(function, *inputs, exact=False):
    found, expected = repeated(function, *inputs)
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    if exact or not expected.is_floating_point():
        assert torch.equal(found, expected)
    else:
        tolerance = TOLERANCE[expected.dtype]
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance, equal_nan=True)


UNARY = {
    "negate": torch.neg,
    "absolute": torch.abs,
    "square": lambda x: x**2,
    "cube": lambda x: x**3,
    "sqrt": lambda x: torch.sqrt(x.abs()),
    "rsqrt": lambda x: torch.rsqrt(x.abs() + 0.1),
    "reciprocal": lambda x: torch.reciprocal(x.abs() + 0.1),
    "exp": torch.exp,
    "cos": torch.cos,
    "sin": torch.sin,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu by tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "relu": torch.relu,
    "plus a number": lambda x: x + 3,
    "times a number": lambda x: x * -0.5,
    "a number less": lambda x: 1 - x,
    "over a number": lambda x: x / 7,
    "clone": lambda x: x.transpose(0, 1).clone(memory_format=torch.contiguous_format),
    "slices": lambda x: torch.cat((-x[..., 3:], x[..., :3]), -1),
    "stack": lambda x: torch.stack((x, -x), 1),
    "in place": lambda x: x.clone().add_(1).mul_(2),
    "fill what is negative": lambda x: x.masked_fill(x < 0, 0.25),
    "where": lambda x: torch.where(x > 0, x, x * 0.01),
    "comparisons": lambda x: (x >= 0.5) & ~(x == 1.0) | (x < -1) | (x <= -2) & (x != 0),
    "softmax": lambda x: functional.softmax(x, -1),
    "mean": lambda x: x.mean(-1, keepdim=True),
    "sum": lambda x: x.sum(-1),
    "as integers": lambda x: (x * 10).long(),
    "as float32": lambda x: x.float(),
}


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("name", UNARY)
def test_functions_of_one_tensor(name, dtype):
    check(UNARY[name], random(3, 5, 37, dtype=dtype))


BINARY = {
    "add": torch.add,
    "subtract": torch.sub,
    "multiply": torch.mul,
    "divide": lambda a, b: a / (b.abs() + 0.5),
    "power": lambda a, b: torch.pow(a.abs() + 0.1, b),
    "minimum": torch.minimum,
    "maximum": torch.maximum,
    "matrix": lambda a, b: torch.matmul(a, b.transpose(-1, -2)),
    "copy into": lambda a, b: (a + 0).copy_(b),
}


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("name", BINARY)
def test_functions_of_two_tensors(name, dtype):
    check(BINARY[name], random(4, 6, 19, dtype=dtype), random(4, 6, 19, dtype=dtype, seed=1))


@pytest.mark.parametrize("shapes", [((4, 1, 19), (1, 6, 1)), ((19,), (4, 6, 19)), ((1,), (3, 700))], ids=str)
def test_shapes_are_broadcast(shapes):
    one, other = shapes
    check(torch.mul, random(*one), random(*other, seed=1), exact=True)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 0.0, 1e30, -1e30])
@pytest.mark.parametrize("name", ["exp", "silu", "sigmoid", "tanh", "relu", "comparisons"])
def test_extreme_values_give_what_torch_gives(name, value):
    function = UNARY[name]
    inputs = torch.full((4,), value)
    recording = Recording()
    with torch.no_grad(), recording:
        result = function(inputs)
    expected = result.clone()
    result.fill_(1)
    lower(recording.events, [inputs]).run()
    torch.testing.assert_close(result, expected, equal_nan=True)


def test_integers_stay_integers():
    check(lambda x: (x * 3 + 2**53 + 1) - 5, torch.arange(7), exact=True)
    check(lambda x: x.unsqueeze(0) <= x.unsqueeze(1), torch.arange(7), exact=True)
    check(lambda x: x.float() * 0.5, torch.arange(7), exact=True)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_layer_norm(dtype):
    weight, bias = random(37, dtype=dtype, seed=1), random(37, dtype=dtype, seed=2)
    check(lambda x: functional.layer_norm(x, (37,), weight, bias), random(2, 3, 37, dtype=dtype))
    check(lambda x: functional.layer_norm(x, (37,)), random(2, 3, 37, dtype=dtype))


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("n_inputs", [1, 3])
def test_dense_linear(n_inputs, dtype, tier):
    weight, bias = random(70, 37, dtype=dtype, seed=1), random(70, dtype=dtype, seed=2)
    check(lambda x: functional.linear(x, weight, bias), random(n_inputs, 37, dtype=dtype))


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize(("n_queries", "n_keys", "width"), [(1, 1, 16), (3, 50, 24), (2, 1000, 64)])
def test_attention(n_queries, n_keys, width, dtype, tier):
    keys, values = random(2, 4, n_keys, width, dtype=dtype, seed=1), random(2, 4, n_keys, width, dtype=dtype)
    mask = (torch.arange(n_keys) <= max(0, n_keys - 4)).view(1, 1, 1, n_keys)
    query = random(2, 4, n_queries, width, dtype=dtype, seed=2)
    attend = functional.scaled_dot_product_attention
    check(lambda q: attend(q, keys, values), query.clone())
    check(lambda q: attend(q, keys, values, attn_mask=mask), query.clone())
    check(lambda q: attend(q, keys, values, attn_mask=torch.where(mask, 0.5, -3.0).to(dtype)), query.clone())


def test_all_tiers_give_the_same_bits(tier_is_put_back):
    library = native.library()
    keys, query, weight = random(1, 2, 77, 40), random(1, 2, 3, 40, seed=1), random(50, 40, seed=2)

    def function(q):
        return functional.linear(functional.scaled_dot_product_attention(q, keys, keys), weight)

    recording = Recording()
    with torch.no_grad(), recording:
        result = function(query)
    program, found = lower(recording.events, [query]), []
    for name in library.tiers:
        library.use_tier(name)
        result.fill_(0.123)
        program.run()
        found.append(result.clone())
    assert all(torch.equal(found[0], other) for other in found[1:])


def test_rows_of_a_table():
    table = random(11, 37, seed=1)
    check(lambda ids: functional.embedding(ids, table), torch.tensor([[3, 0, 10]]), exact=True)


def test_memory_that_lives_on_is_changed_at_every_run():
    cache, counter, value = torch.zeros(2, 8, 3), torch.tensor(0), random(2, 1, 3)
    recording = Recording()
    with torch.no_grad(), recording:
        place = torch.arange(1) + counter
        counter.add_(1)
        cache.index_copy_(1, place, value)
    program = lower(recording.events, [value])
    for index in range(1, 8):
        value.fill_(index)
        program.run()
    assert counter == 8
    assert torch.equal(cache[:, 1:, 0], torch.arange(1.0, 8.0).expand(2, 7))
    with pytest.raises(RequestError, match="recorded step"):
        program.run()  # the ninth place of eight


def test_packed_linears_of_one_input_run_as_one(packed_random):
    from laq.runtime.linear import PackedLinear
    from laq.runtime.packed import PackedWeight

    layers = [
        PackedLinear(PackedWeight(packed_random((40, 130), 64)), torch.ones(40) if bias else None)
        for bias in (False, True, True)
    ]
    inputs = random(1, 130)

    def function(x):
        one, other = layers[0](x), functional.silu(layers[1](x))
        return torch.cat((one, other, layers[2](x + 0)), -1)

    recording = Recording()
    with torch.no_grad(), recording:
        result = function(inputs)
    program = lower(recording.events, [inputs])
    linears = [step for step in program.steps if step.kind == Kind.LINEAR]
    assert len(linears) == 2  # the third reads memory of its own
    inputs.mul_(-2)
    program.run()
    with torch.no_grad():
        assert torch.allclose(result, function(inputs), rtol=1e-5, atol=1e-6)


def refused(function, *inputs, match):
    recording = Recording()
    with torch.no_grad(), recording:
        function(*inputs)
    with pytest.raises(NotRecordableError, match=match):
        lower(recording.events, inputs)


def test_what_cannot_be_repeated_is_named():
    x = random(4, 5)
    refused(lambda x: torch.sort(x)[0], x, match="aten.sort")
    refused(lambda x: x.double() * 2, x, match="float64")
    refused(lambda x: torch.add(x, x, alpha=2), x, match="factor")
    refused(lambda x: float(x.sum(-1)[0]), x, match="_local_scalar_dense")
    refused(lambda x: x.mean(), x, match="aten.mean")
    refused(lambda x: torch.zeros(4, 5).add_(x), x, match="made anew")
    fixed = torch.ones(4, 5)
    refused(lambda x: fixed.clone().masked_fill_(x < 0, 0.25), x, match="made anew")
    refused(lambda x: torch.native_layer_norm(x, [5], None, None, 1e-5)[1] * 2, x, match="made anew")
    refused(lambda x: x + torch.rand(5), x, match="random")
    refused(lambda x: (x * 10).long() ** 3, x, match="integers")
    grouped = random(1, 2, 7, 16)
    attend = functional.scaled_dot_product_attention
    refused(lambda q: attend(q, grouped, grouped, enable_gqa=True), random(1, 4, 1, 16), match="heads")
    odd = torch.ones(2, 3, 2, 3, 2).permute(4, 3, 2, 1, 0)
    refused(lambda x: x[:2, :3, None, None, None].expand(2, 3, 2, 3, 2) * odd, x, match="5 axes")


def test_results_given_as_memory_are_computed():
    buffer = torch.empty(4, 5)
    check(lambda x: torch.mul(x, 2.0, out=buffer) + 1, random(4, 5), exact=True)


def test_numbers_are_compared_as_the_tensor_is_stored():
    x = torch.tensor([0.1, 0.3, 0.5]).bfloat16()
    for function in (lambda x: x == 0.1, lambda x: x <= 0.3, lambda x: x < 0.5):
        recording = Recording()
        with torch.no_grad(), recording:
            result = function(x)
        expected = result.clone()
        result.logical_not_()
        lower(recording.events, [x]).run()
        assert torch.equal(result, expected)


def test_empty_parts_are_joined_as_torch_does():
    check(lambda x: torch.cat([torch.tensor([]), x, x[:0]], 0), random(4, 5), exact=True)


def test_keys_that_are_not_numbers_show():
    keys = random(1, 2, 7, 16)
    keys[0, 0, 3, 5] = float("nan")
    check(lambda q: functional.scaled_dot_product_attention(q, keys, keys), random(1, 2, 2, 16))


def test_linears_of_some_of_the_inputs_run_alone(packed_random):
    from laq.runtime.linear import PackedLinear
    from laq.runtime.packed import PackedWeight

    layers = [PackedLinear(PackedWeight(packed_random((40, 130), 64)), None) for _ in range(2)]

    def partly(x):
        y = x * 1
        return torch.cat((layers[0](y), layers[1](y[:1])))

    def changed(x):
        y = x * 1
        first = layers[0](y)
        y[:, 64:].masked_fill_(y[:, 64:] > 1.0, 0.0)
        return first + layers[1](y)

    for function in (partly, changed):
        found, expected = repeated(function, random(3, 130))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_memory_of_weights_outlives_their_move():
    layer = torch.nn.Linear(64, 64)
    inputs = random(1, 64)
    recording = Recording()
    with torch.no_grad(), recording:
        result = layer(inputs)
    program, expected = lower(recording.events, [inputs]), result.clone()
    layer.to(torch.bfloat16)
    hold = [torch.full((64, 64), float("nan")) for _ in range(50)]
    program.run()
    torch.testing.assert_close(result, expected)
    assert len(hold) == 50


def test_rows_out_of_range_are_refused(packed_random):
    from laq.runtime.embedding import PackedEmbedding
    from laq.runtime.packed import PackedWeight

    table = PackedEmbedding(PackedWeight(packed_random((40, 130), 64)), dtype=torch.float32)
    ids = torch.tensor([7])
    recording = Recording()
    with torch.no_grad(), recording:
        table(ids)
    program = lower(recording.events, [ids])
    table.row_index[7] = 55
    with pytest.raises(RequestError, match="recorded step"):
        program.run()


def test_kinds_and_layouts_are_those_of_the_header():
    header = (Path(__file__).parents[2] / "csrc/laq.h").read_text(encoding="utf-8")
    names = re.findall(r"LAQ_([A-Z_]+)", header[header.index("LAQ_COPY") - 4 : header.index("} laq_step")])
    known = [name for name in dict.fromkeys(names) if name in Kind.__members__]
    assert known == list(Kind.__members__)
    sizes = [ctypes.sizeof(kind) for kind in (Step, Attention, Product, Lookup, native.Outliers)]
    assert sizes == [232, 72, 64, 24, 56]  # csrc/steps.cpp asserts the same


def test_empty_memory_may_be_filled():
    def function(x):
        out = torch.empty(8, 5)
        out[:4].copy_(x)
        out[4:].copy_(x * 2)
        return out

    check(function, random(4, 5), exact=True)
