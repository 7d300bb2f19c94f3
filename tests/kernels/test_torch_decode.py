"""Decoding in torch equals the reference bit for bit, whole or by any choice of row blocks."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from laq.core.groups import GROUP_SIZES, TILE_ROWS
from laq.core.qtensor import zero_point_value
from laq.core.scheme import ScaleFormat
from laq.kernels.reference import dequantize, pack, pack_bricks
from laq.kernels.torch_decode import decode_bricks, decode_zero_points
from laq.runtime.packed import PackedWeight


def same_bits(mine, other):
    return np.array_equal(np.asarray(mine).view(np.uint32), np.asarray(other).view(np.uint32))


@pytest.mark.parametrize("bits", range(1, 9))
def test_bricks_of_every_width_decode(bits):
    codes = np.random.default_rng(bits).integers(0, 1 << bits, (3, 16, 64)).astype(np.uint8)
    lines = torch.from_numpy(pack_bricks(codes, bits))
    assert np.array_equal(decode_bricks(lines, bits).numpy(), codes)


@pytest.mark.parametrize("bits", range(1, 9))
def test_zero_points_of_every_width_decode(bits):
    codes = np.random.default_rng(bits).integers(0, 1 << bits, (5, 16)).astype(np.uint8)
    planes = (codes[:, :, None] >> np.arange(bits)) & 1
    stored = np.packbits(planes.reshape(5, -1), axis=1, bitorder="little")
    expected = zero_point_value(codes, np.full((5, 1), bits, np.uint8))
    assert np.array_equal(decode_zero_points(torch.from_numpy(stored), bits).numpy(), expected)


@given(
    rows=st.integers(1, 50),
    columns=st.integers(1, 300),
    group_size=st.sampled_from(GROUP_SIZES),
    scale_format=st.sampled_from(ScaleFormat),
    sorts=st.tuples(st.booleans(), st.booleans()),
    seed=st.integers(0, 2**32),
)
def test_dequantize_equals_the_reference(
    random_qtensor, rows, columns, group_size, scale_format, sorts, seed
):
    tensor = random_qtensor(
        (rows, columns),
        group_size,
        scale_format=scale_format,
        sorts_rows=sorts[0],
        sorts_columns=sorts[1],
        seed=seed,
    )
    packed = pack(tensor)
    assert same_bits(PackedWeight(packed).dequantize(), dequantize(packed))


@pytest.mark.parametrize("scale_format", ScaleFormat)
@pytest.mark.parametrize("blocks", [[], [0], [3], [2, 0], [1, 1, 3], [3, 2, 1, 0]])
def test_any_choice_of_row_blocks_decodes(random_qtensor, blocks, scale_format):
    packed = pack(random_qtensor((60, 150), 64, scale_format=scale_format, seed=5))
    whole = np.zeros((64, 192), np.float32)
    whole[:60, :150] = dequantize(packed)
    decoded = PackedWeight(packed).decode(torch.tensor(blocks, dtype=torch.int64)).numpy()
    assert decoded.shape == (TILE_ROWS * len(blocks), 192)
    for position, block in enumerate(blocks):
        n = min(16, 60 - 16 * block)
        mine = np.ascontiguousarray(decoded[16 * position : 16 * position + n, :150])
        assert same_bits(mine, whole[16 * block : 16 * block + n, :150].copy())


def test_absent_matrix_decodes_to_zero(random_qtensor):
    weight = PackedWeight(pack(random_qtensor((17, 100), 64, choices=0)))
    assert weight.dequantize().shape == (17, 100)
    assert not weight.dequantize().any()


def test_column_groups_beyond_the_range_of_int16_decode(random_qtensor):
    n_groups = (1 << 15) + 3
    choices = np.zeros((1, n_groups), np.uint8)
    choices[0, [0, 1 << 14, n_groups - 1]] = 1
    packed = pack(random_qtensor((1, 32 * n_groups), 32, choices=choices))
    assert same_bits(PackedWeight(packed).dequantize(), dequantize(packed))
