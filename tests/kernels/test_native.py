"""Every tier of the native kernels: the same bits, within the bound of rounded inputs, no way to crash."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from laq.core.errors import FormatError, RequestError
from laq.core.packing import tile_row_blocks, zero_point_offsets
from laq.core.scheme import ScaleFormat
from laq.kernels import native
from laq.kernels.reference import dequantize, pack
from laq.kernels.scales import expanded

LIBRARY = native.library()
pytestmark = [
    pytest.mark.skipif(LIBRARY is None, reason="native kernels are not built here"),
    pytest.mark.usefixtures("tier_is_put_back"),
]
EVERY_CHOICE = [1, 2, 3, 4, 5, 6, 7, 8, None]
"""Each candidate format alone, and all of them mixed."""


def address(array):
    return None if array is None else array.ctypes.data


class Held:
    """A matrix as the kernels take it, and the arrays it points into."""

    def __init__(self, packed):
        self.packed = packed
        base = packed.scale_base
        self.octaves = None if base is None else (np.frexp(base.astype(np.float32))[1] - 1).astype(np.int8)
        starts = np.searchsorted(tile_row_blocks(packed), np.arange(packed.grid.n_row_blocks + 1))
        self.starts = starts.astype(np.int32)
        self.zero_offsets = zero_point_offsets(packed.bits)[starts[:-1]]
        rows, columns = packed.row_permutation, packed.column_permutation
        self.matrix = native.Matrix(
            n_rows=packed.grid.n_rows,
            n_columns=packed.grid.n_columns,
            group_size=packed.grid.group_size,
            scale_format=native.SCALE_FORMATS[packed.scale_format],
            n_tiles=len(packed.bits),
            payload_bytes=len(packed.payload),
            zero_point_bytes=len(packed.zero_points),
            payload=address(packed.payload),
            bits=address(packed.bits),
            groups=address(packed.groups),
            scales=address(packed.scales),
            octaves=address(self.octaves),
            zero_points=address(packed.zero_points),
            tile_starts=address(self.starts),
            zero_offsets=address(self.zero_offsets),
            row_offsets=address(packed.row_offsets),
            row_permutation=address(rows),
            column_permutation=address(columns),
            row_index_bytes=0 if rows is None else rows.itemsize,
            column_index_bytes=0 if columns is None else columns.itemsize,
            palettes=address(packed.palettes),
        )


@pytest.fixture
def held(random_qtensor):
    def make(shape=(200, 173), group_size=64, *, sorts=True, **options):
        tensor = random_qtensor(shape, group_size, sorts_rows=sorts, sorts_columns=sorts, **options)
        return Held(expanded(pack(tensor)))

    return make


def multiply(several, inputs, bits, *, biases=None, type_code=native.FLOAT32):
    several = several if isinstance(several, list) else [several]
    outputs = [np.zeros((len(inputs), h.packed.grid.n_rows), inputs.dtype) for h in several]
    code = LIBRARY.linear(
        native.matrices([h.matrix for h in several]),
        len(several),
        inputs.ctypes.data,
        type_code,
        len(inputs),
        inputs.strides[0] // inputs.itemsize,
        native.addresses([output.ctypes.data for output in outputs]),
        None if biases is None else native.addresses([None if b is None else b.ctypes.data for b in biases]),
        bits,
    )
    assert code == 0
    return outputs


def inputs_for(h, n, seed=0):
    return np.random.default_rng(seed).standard_normal((n, h.packed.grid.n_columns)).astype(np.float32)


def bound(h, inputs, bits):
    """Half a step of the rounded inputs against the sizes of the weights, and the float32 sums."""
    weights = np.abs(dequantize(h.packed).astype(np.float64))
    limit = 32512 if bits == 16 else 127
    columns = h.packed.column_permutation
    order = np.arange(inputs.shape[1]) if columns is None else columns.astype(np.int64)
    steps = np.zeros_like(inputs, dtype=np.float64)
    for start in range(0, inputs.shape[1], h.packed.grid.group_size):
        group = order[start : start + h.packed.grid.group_size]
        steps[:, group] = np.abs(inputs[:, group]).max(1, keepdims=True) / limit
    return (steps / 2 * 1.001) @ weights.T + 1e-5 * (np.abs(inputs) @ weights.T) + 1e-30


@pytest.mark.parametrize("scale_format", ScaleFormat)
@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("choices", EVERY_CHOICE)
def test_all_tiers_give_the_same_bits_within_the_bound(held, choices, group_size, scale_format):
    h = held((100, 5 * group_size + 13), group_size, choices=choices, scale_format=scale_format)
    exact = dequantize(h.packed).astype(np.float64)
    for n in (1, 2, 3, 4, 13, 130):
        inputs = inputs_for(h, n)
        for bits in (8, 16):
            found = []
            for tier in LIBRARY.tiers:
                LIBRARY.use_tier(tier)
                found += multiply(h, inputs, bits)
            assert all(np.array_equal(found[0], other) for other in found[1:])
            assert (np.abs(found[0] - inputs @ exact.T) <= bound(h, inputs, bits)).all()


@pytest.mark.parametrize(
    "shape", [(1, 1), (16, 64), (17, 70), (576, 1536), (1536, 576), (70_000, 40)], ids=str
)
@pytest.mark.parametrize("sorts", [True, False], ids=["sorted", "unsorted"])
def test_any_shape_computes_what_the_reference_computes(held, shape, sorts):
    h = held(shape, sorts=sorts)
    inputs = inputs_for(h, 3)
    expected = inputs.astype(np.float64) @ dequantize(h.packed).T.astype(np.float64)
    assert (np.abs(multiply(h, inputs, 16)[0] - expected) <= bound(h, inputs, 16)).all()


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("n", [1, 4, 5])
def test_siblings_give_what_each_gives_alone(random_qtensor, n, bits):
    tensors = [random_qtensor((rows, 173), 64, sorts_rows=True, seed=rows) for rows in (64, 16, 100)]
    several = [Held(pack(tensor)) for tensor in tensors]
    inputs = inputs_for(several[0], n)
    together = multiply(several, inputs, bits)
    for h, output in zip(several, together, strict=True):
        assert np.array_equal(output, multiply(h, inputs, bits)[0])


def test_strangers_are_refused_as_siblings(held):
    one, other = held((16, 64)), held((16, 65))
    inputs = inputs_for(other, 1)
    outputs = [np.zeros((1, 16), np.float32) for _ in range(2)]
    arguments = native.matrices([one.matrix, other.matrix]), 2, inputs.ctypes.data, native.FLOAT32, 1, 65
    code = LIBRARY.linear(*arguments, native.addresses([o.ctypes.data for o in outputs]), None, 8)
    with pytest.raises(RequestError, match="do not fit together"):
        native.raise_problem(code, name="w")


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("n", [1, 3, 6])
def test_biases_are_added_to_rows_of_the_source(held, n, bits):
    h = held()
    inputs = inputs_for(h, n)
    bias = np.arange(200, dtype=np.float32)
    assert np.array_equal(multiply(h, inputs, bits, biases=[bias])[0], multiply(h, inputs, bits)[0] + bias)


def to_bfloat16(values):
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def from_bfloat16(halves):
    return (halves.astype(np.uint32) << 16).view(np.float32)


@pytest.mark.parametrize("n", [1, 4, 6])
def test_half_types_are_read_exactly_and_written_rounded(held, n):
    h = held()
    halves = to_bfloat16(inputs_for(h, n))
    expected = to_bfloat16(multiply(h, from_bfloat16(halves), 16)[0])
    assert np.array_equal(multiply(h, halves, 16, type_code=native.BFLOAT16)[0], expected)
    with np.errstate(over="ignore"):
        small = (inputs_for(h, n) * np.float32(1e-4)).astype(np.float16)  # subnormals among them
        expected = multiply(h, small.astype(np.float32), 16)[0].astype(np.float16)
    assert np.array_equal(multiply(h, small, 16, type_code=native.FLOAT16)[0], expected)


@pytest.mark.parametrize("choices", [5, 3, None])
@pytest.mark.parametrize(
    "values", [[np.nan], [np.inf], [-np.inf], [np.inf, -np.inf], [np.inf, np.nan]], ids=str
)
def test_inputs_that_are_not_finite_act_as_in_a_float_product(held, choices, values):
    h = held(choices=choices, seed=3)
    inputs = inputs_for(h, 3)
    untouched = multiply(h, inputs, 16)[0]
    inputs[1, [7, 100][: len(values)]] = values
    with np.errstate(invalid="ignore"):
        expected = inputs @ dequantize(h.packed).T
    found = multiply(h, inputs, 16)[0]
    assert np.array_equal(np.isnan(found), np.isnan(expected))
    infinite = np.isinf(expected)
    assert np.array_equal(np.isinf(found), infinite)
    assert np.array_equal(found[infinite], expected[infinite])
    assert np.array_equal(found[[0, 2]], untouched[[0, 2]])


def test_no_inputs_give_no_outputs(held):
    assert multiply(held(), np.empty((0, 173), np.float32), 8)[0].shape == (0, 200)


@pytest.mark.parametrize("size", [0.0, 1e-42, 1e-30, 1e30, 1e35])
def test_extreme_inputs_stay_within_the_bound(held, size):
    h = held(choices=5)
    inputs = np.clip(inputs_for(h, 2), -1, 1) * np.float32(size)
    expected = inputs.astype(np.float64) @ dequantize(h.packed).T.astype(np.float64)
    fits = np.abs(expected) < 3e38
    with np.errstate(over="ignore", invalid="ignore"):
        difference = np.abs(multiply(h, inputs, 16)[0] - expected)
    assert (difference <= bound(h, inputs, 16) + 1e-25)[fits].all()


def test_inputs_may_lie_apart(held):
    h = held()
    wide = np.random.default_rng(0).standard_normal((4, 300)).astype(np.float32)
    inputs = wide[:, 50:223]
    assert np.array_equal(multiply(h, inputs, 8)[0], multiply(h, inputs.copy(), 8)[0])


@pytest.mark.parametrize("n", [1, 40])
def test_number_of_threads_changes_nothing(held, n):
    h = held((3000, 1000))
    inputs = inputs_for(h, n)
    found = []
    for threads in (1, 2, 7, 2):
        LIBRARY.set_threads(threads)
        assert LIBRARY.threads == threads
        found += multiply(h, inputs, 8)
    assert all(np.array_equal(found[0], other) for other in found[1:])


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system does not tell")
def test_calling_thread_keeps_its_cores(held):
    LIBRARY.set_threads(3)
    h, before = held((2000, 700)), os.sched_getaffinity(0)
    for n in (1, 4, 40):
        multiply(h, inputs_for(h, n), 8)
    assert os.sched_getaffinity(0) == before


def test_calls_from_several_python_threads_do_not_mix(held):
    LIBRARY.set_threads(2)
    several = [held((2000, 700), seed=seed) for seed in range(4)]
    inputs = [inputs_for(h, 1 + seed, seed) for seed, h in enumerate(several)]
    expected = [multiply(h, x, 8)[0] for h, x in zip(several, inputs, strict=True)]

    def work(i):
        return all(
            np.array_equal(multiply(several[i % 4], inputs[i % 4], 8)[0], expected[i % 4]) for _ in range(5)
        )

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(work, range(40)))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_kernels_work_in_a_forked_child(held):
    LIBRARY.set_threads(3)
    h = held((2000, 700))
    inputs = inputs_for(h, 1)
    expected = multiply(h, inputs, 8)[0]
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(multiply(h, inputs, 8)[0], expected) else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert np.array_equal(multiply(h, inputs, 8)[0], expected)


@pytest.mark.parametrize("choices", EVERY_CHOICE)
def test_rows_are_those_of_the_dequantized_matrix(held, choices):
    h = held((50, 173), choices=choices)
    stored = np.array([0, 49, 17, 17, 3], np.int64)
    out = np.empty((5, 173), np.float32)
    code = LIBRARY.rows(h.matrix, stored.ctypes.data, 5, out.ctypes.data, native.FLOAT32)
    assert code == 0
    source = h.packed.row_permutation[stored]
    assert np.array_equal(out, dequantize(h.packed)[source])


@pytest.mark.parametrize("row", [-1, 50])
def test_rows_out_of_range_are_refused(held, row):
    h = held((50, 173))
    stored, out = np.array([row], np.int64), np.empty((1, 173), np.float32)
    assert LIBRARY.rows(h.matrix, stored.ctypes.data, 1, out.ctypes.data, native.FLOAT32) != 0


def width_of_seven(h):
    h.packed.bits[0] = 7


def group_out_of_range(h):
    h.packed.groups[0] = 3


def group_twice(h):
    h.packed.groups[1] = h.packed.groups[0]


def falling_starts(h):
    h.starts[1] = h.starts[2] + 1


def offset_elsewhere(h):
    h.packed.row_offsets[1] += 64


def starts_beyond(h):
    h.starts[-1] += 1


def short_payload(h):
    h.matrix.payload_bytes -= 64


def short_zero_points(h):
    h.matrix.zero_point_bytes -= 1


def octave_out_of_range(h):
    h.octaves[0] = 16


def column_twice(h):
    h.packed.column_permutation[0] = h.packed.column_permutation[1]


def row_out_of_range(h):
    h.packed.row_permutation[0] = 60_000


def no_rows(h):
    h.matrix.n_rows = 0


def odd_group_size(h):
    h.matrix.group_size = 48


def no_payload(h):
    h.matrix.payload = None


DAMAGES = [
    width_of_seven,
    group_out_of_range,
    group_twice,
    falling_starts,
    starts_beyond,
    offset_elsewhere,
    short_payload,
    short_zero_points,
    octave_out_of_range,
    column_twice,
    row_out_of_range,
    no_rows,
    odd_group_size,
    no_payload,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found_before_a_kernel_runs(held, damage):
    h = held(choices=5)
    LIBRARY.check(h.matrix, name="w")
    damage(h)
    with pytest.raises(FormatError, match=r"^w: "):
        LIBRARY.check(h.matrix, name="w")


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32 - 1))
def test_whatever_passes_the_check_runs(random_qtensor, seed):
    generator = np.random.default_rng(seed)
    shape, group_size = generator.integers(1, 200, 2), int(generator.choice([32, 64, 128]))
    tensor = random_qtensor(tuple(int(n) for n in shape), group_size, sorts_rows=True, sorts_columns=True)
    h = Held(pack(tensor))
    places = [
        h.packed.bits,
        h.packed.groups,
        h.starts,
        h.packed.row_offsets,
        h.octaves,
        h.packed.scales,
        h.packed.column_permutation,
        h.packed.row_permutation,
    ]
    for _ in range(generator.integers(1, 4)):
        raw = places[generator.integers(len(places))].view(np.uint8).reshape(-1)
        if len(raw):
            raw[generator.integers(len(raw))] = generator.integers(256)
    try:
        LIBRARY.check(h.matrix, name="w")
    except FormatError:
        return
    for n, bits in ((1, 16), (2, 8), (13, 16)):
        found = []
        for tier in LIBRARY.tiers:
            LIBRARY.use_tier(tier)
            found += multiply(h, inputs_for(h, n), bits)
        assert all(np.array_equal(found[0], other) for other in found[1:])
    stored, out = np.arange(shape[0], dtype=np.int64), np.empty(tuple(shape), np.float32)
    code = LIBRARY.rows(h.matrix, stored.ctypes.data, len(stored), out.ctypes.data, native.FLOAT32)
    assert code == 0
    base = np.ldexp(np.float32(1), h.octaves.astype(np.int32)).astype(np.float16)
    expected = dequantize(replace(h.packed, scale_base=base))
    assert np.array_equal(out, expected[h.packed.row_permutation[stored]])


def test_environment_chooses_the_tier(monkeypatch):
    monkeypatch.setenv(native.ENVIRONMENT, "scalar")
    native.library.cache_clear()
    try:
        assert native.library().tier == "scalar"
        monkeypatch.setenv(native.ENVIRONMENT, native.WITHOUT)
        native.library.cache_clear()
        assert native.library() is None
        assert native.status() == native.Status("", LIBRARY.tiers, "LAQ_KERNELS=torch")
        monkeypatch.setenv(native.ENVIRONMENT, "sse9")
        native.library.cache_clear()
        with pytest.raises(RequestError, match="sse9") as caught:
            native.library()
        assert "scalar" in str(caught.value.hint)
    finally:
        native.library.cache_clear()
