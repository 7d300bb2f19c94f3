"""Damaged buffers: refused before a kernel sees them, or every tier computes what numpy computes.

`make sanitize` runs all of it under AddressSanitizer and UndefinedBehaviorSanitizer.
"""

import numpy as np
import pytest
import torch

from laq.core.errors import FormatError
from laq.core.groups import TileGrid
from laq.core.packing import PackedTensor, check_packed
from laq.core.scheme import ScaleFormat
from laq.kernels import native
from laq.kernels.reference import dequantize, pack
from laq.runtime.calls import call_linear, call_rows
from laq.runtime.packed import SECTIONS, PackedWeight, checked_matrix

LIBRARY = native.library()
pytestmark = pytest.mark.skipif(LIBRARY is None, reason="native kernels are not built here")

SHAPES = [(1, 1, 32), (16, 64, 64), (17, 70, 32), (40, 200, 64), (90, 129, 128), (33, 300, 32)]
"""Rows, columns, group size."""

PER_TEST = 250
N_TESTS = 24


@pytest.fixture(scope="module")
def sound(random_qtensor):
    """Buffers of sound weights, by section."""
    found = []
    for rows, columns, group_size in SHAPES:
        for scale_format in ScaleFormat:
            for sorts in (True, False):
                tensor = random_qtensor(
                    (rows, columns),
                    group_size,
                    scale_format=scale_format,
                    sorts_rows=sorts,
                    sorts_columns=sorts,
                )
                weight = PackedWeight(pack(tensor))
                arrays = {
                    name: None if buffer is None else buffer.numpy()
                    for name, buffer in zip(SECTIONS, weight.sections(), strict=True)
                }
                found.append((weight.grid, arrays))
    return found


def as_packed(grid: TileGrid, arrays) -> PackedTensor:
    """The same bytes as the reference takes them."""
    octaves = arrays["scale_base"]
    scales = arrays["scales"]
    log4 = scales.shape[1:] == ScaleFormat.LOG4.tile_shape
    log = ScaleFormat.LOG4 if log4 else ScaleFormat.LOG8
    scales = scales if log4 else scales.reshape(-1, 16)

    def index(name):
        array = arrays[name]
        return None if array is None else array.reshape(-1).view(f"u{array.itemsize}")

    return PackedTensor(
        grid=grid,
        scale_format=ScaleFormat.FLOAT16 if octaves is None else log,
        payload=arrays["payload"].reshape(-1),
        bits=arrays["bits"].reshape(-1),
        groups=index("groups"),
        scales=scales.view(np.float16) if octaves is None else scales,
        scale_base=None if octaves is None else np.ldexp(1.0, octaves.reshape(-1)).astype(np.float16),
        zero_points=arrays["zero_points"].reshape(-1),
        row_offsets=index("row_offsets"),
        row_permutation=index("row_permutation"),
        column_permutation=index("column_permutation"),
        palettes=None if arrays["palettes"] is None else arrays["palettes"].reshape(-1),
    )


def bound(weights, order, inputs, *, group_size, bits):
    """Half a step of the rounded inputs against the sizes of the weights, and float32 sums."""
    sizes = np.abs(weights.astype(np.float64))
    steps = np.zeros(inputs.shape)
    for start in range(0, inputs.shape[1], group_size):
        group = order[start : start + group_size]
        steps[:, group] = np.abs(inputs[:, group]).max(1, keepdims=True) / (32512 if bits == 16 else 127)
    return (steps / 2 * 1.001) @ sizes.T + 1e-5 * (np.abs(inputs) @ sizes.T) + 1e-30


def check_products(grid, matrix, packed, generator):
    weights = dequantize(packed)
    columns = packed.column_permutation
    order = np.arange(grid.n_columns) if columns is None else columns.astype(np.int64)
    for n, bits in ((1, 16), (2, 8), (13, 16)):
        inputs = generator.standard_normal((n, grid.n_columns)).astype(np.float32)
        found = []
        for tier in LIBRARY.tiers:
            LIBRARY.use_tier(tier)
            found += call_linear(native.matrices([matrix]), [None], torch.from_numpy(inputs), bits)
        assert all(torch.equal(found[0], other) for other in found[1:])
        difference = np.abs(found[0].numpy() - inputs.astype(np.float64) @ weights.T.astype(np.float64))
        assert (difference <= bound(weights, order, inputs, group_size=grid.group_size, bits=bits)).all()
    rows = packed.row_permutation
    where = None if rows is None else torch.from_numpy(np.argsort(rows).astype(np.int32))
    for tier in LIBRARY.tiers:
        LIBRARY.use_tier(tier)
        decoded = call_rows(matrix, torch.arange(grid.n_rows), where, torch.float32)
        assert np.array_equal(decoded.numpy(), weights)


@pytest.mark.parametrize(
    "first", [0, *(pytest.param(n * PER_TEST, marks=pytest.mark.slow) for n in range(1, N_TESTS))]
)
def test_damaged_buffers_are_refused_or_computed_as_numpy_does(sound, damaged, first, tier_is_put_back):
    n_run = 0
    for seed in range(first, first + PER_TEST):
        generator = np.random.default_rng(seed)
        grid, arrays = sound[seed % len(sound)]
        arrays = damaged(arrays, generator, group_size=grid.group_size)
        sections = [None if array is None else torch.from_numpy(array) for array in arrays.values()]
        sizes = {"n_rows": grid.n_rows, "n_columns": grid.n_columns, "group_size": grid.group_size}
        try:
            checked = checked_matrix(sections, **sizes)
        except FormatError:
            continue
        n_run += 1
        packed = as_packed(grid, arrays)
        check_packed(packed, name="w")  # what the kernels accept, archives may hold
        check_products(grid, checked.matrix, packed, generator)
    assert PER_TEST // 20 < n_run < PER_TEST, "mutations are all refused, or none"
