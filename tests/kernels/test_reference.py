"""Packing loses nothing, lays bytes out as docs/FORMAT.md says, and matmul is dequantize followed by @."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laq.core.formats import CANDIDATES
from laq.core.groups import GROUP_SIZES, TILE_ROWS
from laq.core.packing import TAGS, check_packed, section_specs
from laq.core.qtensor import decode_scales
from laq.core.scheme import ScaleFormat
from laq.kernels.reference import (
    dequantize,
    matmul,
    pack,
    pack_bricks,
    stored_order,
    unpack_bricks,
    unpack_tiles,
)
from laq.kernels.scales import stored_scales, unpack_zero_points

SHAPES = [(1, 1), (1, 200), (16, 64), (17, 129), (16, 31), (33, 300)]
INT4 = 5
TRITS = 82
PALETTE_STARTS = {34: 0, 35: 4, 36: 12}
"""Tags of learned entries, and where they lie."""


def literal_fields(bits):
    """Widths of the fields of a code, most significant first."""
    if bits == 8:
        return [8]
    return [f for f, present in ((4, bits >= 4), (2, bits & 2), (1, bits & 1)) if present]


def literal_brick(codes, bits):
    """The lines of one brick [16, 32], code by code."""
    lines = bytearray(64 * bits)
    for r in range(16):
        for k in range(32):
            slot, lane = k >> 2, 4 * r + (k & 3)
            remaining, first_line = bits, 0
            for f in literal_fields(bits):
                remaining -= f
                field = (int(codes[r, k]) >> remaining) % (1 << f)
                per_line = 8 // f
                line = first_line + slot // per_line
                lines[64 * line + lane] |= field << (f * (slot % per_line))
                first_line += f
    return bytes(lines)


def literal_trits(codes):
    """A tile [16, group_size] of three values: five slots a byte, then two bits a code, lane by lane."""
    n_slots, stored = codes.shape[1] // 4, b""
    lanes = [[int(codes[lane // 4, 4 * s + lane % 4]) for lane in range(64)] for s in range(n_slots)]
    while len(lanes) >= 5:
        five, lanes = lanes[:5], lanes[5:]
        numbers = [int("".join(str(slot[lane]) for slot in five), 3) for lane in range(64)]
        stored += bytes(math.ceil(256 * number / 243) for number in numbers)
    for slot in lanes:
        stored += bytes(sum(slot[4 * i + k] << 2 * k for k in range(4)) for i in range(16))
    return stored


def literal_sections(tensor):
    """Payload, tile table, zero points and row offsets of a matrix, tile by tile."""
    grid, size = tensor.grid, tensor.grid.group_size
    payload, tags, groups, zero_bits, offsets = b"", [], [], [], []
    for block in range(grid.n_row_blocks):
        offsets.append(len(payload))
        rows = slice(16 * block, 16 * block + 16)
        stored = [(-CANDIDATES[tensor.choices[block, g]].tag, g) for g in range(grid.n_groups)]
        for minus_tag, g in sorted(stored):
            tag, bits = -minus_tag, -minus_tag % 16
            if tag == 0:
                continue
            tags.append(tag)
            groups.append(g)
            if tag == TRITS:
                payload += literal_trits(tensor.codes[rows, g * size : (g + 1) * size])
            else:
                for first in range(g * size, (g + 1) * size, 32):
                    payload += literal_brick(tensor.codes[rows, first : first + 32], bits)
            if tag > 16:
                assert (tensor.zero_points[rows, g] == 128).all()
                continue
            for zero in tensor.zero_points[rows, g].tolist():
                code = int(zero) if bits > 3 else int(2 * zero - (2 ** (bits - 1) - 1))
                zero_bits += [(code >> i) & 1 for i in range(bits)]
    zero_bytes = bytes(
        sum(bit << i for i, bit in enumerate(zero_bits[n : n + 8])) for n in range(0, len(zero_bits), 8)
    )
    return payload, tags, groups, zero_bytes, offsets


def literal_levels(tensor):
    """Codes, or the entries that they name; in a trellis the last eight bits do, down rows, then slots."""
    levels, size = tensor.codes.astype(np.float32), tensor.grid.group_size
    for block, group in np.argwhere(TAGS[tensor.choices] > 16):
        candidate = CANDIDATES[tensor.choices[block, group]]
        bits = candidate.code_bits
        tile = slice(16 * block, 16 * block + 16), slice(group * size, (group + 1) * size)
        if candidate.tag in PALETTE_STARTS:
            levels[tile] = tensor.palettes[PALETTE_STARTS[candidate.tag] + tensor.codes[tile]]
            continue
        table = candidate.table
        if candidate.tag > 32:
            levels[tile] = table[tensor.codes[tile]]
            continue
        for chain in range(4):
            window = 0
            for column in range(group * size + chain, (group + 1) * size, 4):
                for row in range(16 * block, 16 * block + 16):
                    window = (window << bits | int(tensor.codes[row, column])) % 256
                    levels[row, column] = table[window]
    return levels


def literal_values(tensor):
    """scale * (code - zero_point) of every element, in the source's order."""
    grid = tensor.grid
    present = np.kron(tensor.choices > 0, np.ones((TILE_ROWS, grid.group_size)))
    scales = decode_scales(tensor.scales, tensor.scale_format)
    spread = [np.repeat(part, grid.group_size, 1) for part in (scales, tensor.zero_points)]
    values = np.where(present, (literal_levels(tensor) - spread[1]) * spread[0], 0).astype(np.float32)
    result = np.zeros((grid.n_rows, grid.n_columns), np.float32)
    for r in range(grid.n_rows):
        for c in range(grid.n_columns):
            row = r if tensor.row_permutation is None else int(tensor.row_permutation[r])
            column = c if tensor.column_permutation is None else int(tensor.column_permutation[c])
            result[row, column] = values[r, c]
    return result


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("group_size", GROUP_SIZES)
def test_every_width_survives_packing_and_unpacking(bits, group_size):
    codes = np.random.default_rng(bits).integers(0, 1 << bits, (3, 16, group_size)).astype(np.uint8)
    lines = pack_bricks(codes, bits)
    assert lines.shape == (3, group_size // 32, bits, 64)
    assert np.array_equal(unpack_bricks(lines, bits), codes)


@pytest.mark.parametrize("bits", range(1, 9))
def test_bricks_lie_as_the_rules_say_code_by_code(bits):
    codes = np.random.default_rng(bits).integers(0, 1 << bits, (2, 16, 64)).astype(np.uint8)
    packed = pack_bricks(codes, bits)
    for tile in range(2):
        for brick in range(2):
            expected = literal_brick(codes[tile][:, 32 * brick : 32 * brick + 32], bits)
            assert packed[tile, brick].tobytes() == expected


@pytest.mark.parametrize(("bits", "coarse_bits"), [(3, 2), (5, 4), (6, 4), (7, 6)])
def test_first_fields_alone_are_a_coarser_code(bits, coarse_bits):
    codes = np.random.default_rng(bits).integers(0, 1 << bits, (1, 16, 32)).astype(np.uint8)
    first_lines = pack_bricks(codes, bits)[:, :, :coarse_bits]
    assert np.array_equal(unpack_bricks(first_lines, coarse_bits), codes >> (bits - coarse_bits))


@pytest.mark.parametrize("scale_format", ScaleFormat)
@pytest.mark.parametrize("shape", SHAPES)
def test_sections_lie_as_the_rules_say_tile_by_tile(random_qtensor, shape, scale_format):
    tensor = random_qtensor(shape, 64, scale_format=scale_format, seed=3)
    packed = pack(tensor)
    payload, tags, groups, zero_bytes, offsets = literal_sections(tensor)
    assert packed.payload.tobytes() == payload
    assert packed.bits.tolist() == tags
    assert packed.groups.tolist() == groups
    assert packed.zero_points.tobytes() == zero_bytes
    assert packed.row_offsets.tolist() == offsets


@given(
    rows=st.integers(1, 50),
    columns=st.integers(1, 300),
    group_size=st.sampled_from(GROUP_SIZES),
    scale_format=st.sampled_from(ScaleFormat),
    seed=st.integers(0, 2**32),
)
def test_packing_keeps_codes_scales_and_zero_points(
    random_qtensor, rows, columns, group_size, scale_format, seed
):
    tensor = random_qtensor((rows, columns), group_size, scale_format=scale_format, seed=seed)
    packed, grid = pack(tensor), tensor.grid
    check_packed(packed, name="w")
    order = stored_order(TAGS[tensor.choices])
    block, group = order // grid.n_groups, order % grid.n_groups
    tiles = tensor.codes.reshape(grid.n_row_blocks, 16, grid.n_groups, group_size)[block, :, group]
    per_tile = [
        array.reshape(grid.n_row_blocks, 16, grid.n_groups)[block, :, group]
        for array in (decode_scales(tensor.scales, scale_format), tensor.zero_points)
    ]
    assert np.array_equal(unpack_tiles(packed), tiles)
    assert np.array_equal(stored_scales(packed), per_tile[0])
    assert np.array_equal(unpack_zero_points(packed.zero_points, packed.bits), per_tile[1])


@given(
    rows=st.integers(1, 50),
    columns=st.integers(1, 300),
    group_size=st.sampled_from(GROUP_SIZES),
    scale_format=st.sampled_from(ScaleFormat),
    sorts_rows=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_sizes_are_known_before_packing(
    random_qtensor, rows, columns, group_size, scale_format, sorts_rows, seed
):
    tensor = random_qtensor(
        (rows, columns), group_size, scale_format=scale_format, sorts_rows=sorts_rows, seed=seed
    )
    packed = pack(tensor)
    specs = section_specs(tensor.grid, scale_format, tensor.choices, has_row_permutation=sorts_rows)
    found = {name: (array.dtype, array.shape) for name, array in packed.sections().items()}
    assert {spec.name: (spec.dtype, spec.shape) for spec in specs} == found
    assert sum(spec.size_bytes for spec in specs) == packed.size_bytes


@pytest.mark.parametrize("sorts_columns", [False, True])
@pytest.mark.parametrize("sorts_rows", [False, True])
@pytest.mark.parametrize("scale_format", ScaleFormat)
@pytest.mark.parametrize("shape", SHAPES)
def test_dequantize_is_scale_times_code_minus_zero_point(
    random_qtensor, shape, scale_format, sorts_rows, sorts_columns
):
    tensor = random_qtensor(
        shape, 32, scale_format=scale_format, sorts_rows=sorts_rows, sorts_columns=sorts_columns, seed=1
    )
    assert np.array_equal(dequantize(pack(tensor)), literal_values(tensor))


@pytest.mark.parametrize("scale_format", ScaleFormat)
def test_matrix_of_absent_tiles_is_zero_and_stores_no_tile(random_qtensor, scale_format):
    packed = pack(random_qtensor((17, 100), 64, scale_format=scale_format, choices=0))
    check_packed(packed, name="w")
    assert len(packed.payload) == len(packed.bits) == len(packed.zero_points) == 0
    assert not dequantize(packed).any()


def test_absent_tiles_are_zero_beside_others(random_qtensor):
    choices = np.full((2, 3), INT4)
    choices[1, 2] = 0
    matrix = dequantize(pack(random_qtensor((32, 192), 64, choices=choices)))
    assert not matrix[16:, 128:].any()
    assert matrix[16:, :128].any()
    assert matrix[:16, 128:].any()


@given(rows=st.integers(1, 40), columns=st.integers(1, 100), n=st.integers(1, 4), seed=st.integers(0, 2**32))
def test_matmul_is_dequantize_then_multiply(random_qtensor, rows, columns, n, seed):
    packed = pack(random_qtensor((rows, columns), 32, sorts_rows=True, sorts_columns=True, seed=seed))
    inputs = np.random.default_rng(seed).standard_normal((n, columns)).astype(np.float32)
    matrix = dequantize(packed)
    expected = [
        [sum(float(x) * float(w) for x, w in zip(i, row, strict=True)) for row in matrix] for i in inputs
    ]
    size = np.abs(inputs.astype(np.float64)) @ np.abs(matrix.astype(np.float64)).T
    assert (np.abs(matmul(inputs, packed) - np.array(expected)) <= 1e-5 * size).all()


@pytest.mark.parametrize("highest", [-200, -120, 0, 127, 240])
def test_log_scales_keep_their_value_over_thirty_octaves(random_qtensor, highest):
    tensor = random_qtensor((16, 64), 64, choices=INT4)
    tensor.scales[:, 0] = np.linspace(max(highest - 239, -311), highest, 16).astype(np.int16)
    assert np.array_equal(
        stored_scales(pack(tensor))[0], decode_scales(tensor.scales[:, 0], ScaleFormat.LOG8)
    )


def test_packing_leaves_its_argument_alone(random_qtensor):
    tensor = random_qtensor((17, 100))
    before = [array.copy() for array in (tensor.codes, tensor.scales, tensor.zero_points, tensor.choices)]
    dequantize(pack(tensor))
    after = (tensor.codes, tensor.scales, tensor.zero_points, tensor.choices)
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
