"""The definition of pack, unpack, dequantize and matmul, in numpy. docs/FORMAT.md says the same in words."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from laq.core.formats import PALETTES, TABLES, TRELLISES, Table
from laq.core.formats.table import TRITS, TRITS_OF_BYTE
from laq.core.formats.trellis import TAG, windows
from laq.core.groups import LINE_BYTES, TILE_ROWS, TileGrid
from laq.core.packing import (
    BRICK_COLUMNS,
    CODE_BITS,
    TAGS,
    PackedTensor,
    tile_bytes,
    tile_offsets,
    tile_row_blocks,
    uses_palettes,
)
from laq.core.permutation import inverse
from laq.core.qtensor import QTensor
from laq.kernels.scales import (
    expanded,
    store_scales,
    store_zero_points,
    stored_scales,
    unpack_zero_points,
)

FIELD_WIDTHS: dict[int, tuple[int, ...]] = {
    1: (1,),
    2: (2,),
    3: (2, 1),
    4: (4,),
    5: (4, 1),
    6: (4, 2),
    7: (4, 2, 1),
    8: (8,),
}
"""Fields of a code, most significant first: the first ones alone are a coarser code of the same weight."""

SLOTS = 8
"""A brick row is 8 slots of 4 columns: four bytes feed one 32-bit lane of an integer dot product."""

UInt8Array = npt.NDArray[np.uint8]
PackCodes = Callable[[UInt8Array, TileGrid, npt.NDArray[np.int64], UInt8Array], UInt8Array]


def pack_bricks(codes: UInt8Array, bits: int) -> UInt8Array:
    """Pack tiles of one width.

    Parameters
    ----------
    codes : uint8 [n, 16, group_size]
        Codes below 2 ** bits.
    bits : int
        Width, 1 to 8.

    Returns
    -------
    uint8 [n, group_size / 32, bits, 64]
        Lines of 64 bytes.
    """
    n, _, group_size = codes.shape
    n_bricks = group_size // BRICK_COLUMNS
    split = codes.reshape(n, TILE_ROWS, n_bricks, SLOTS, 4)
    lanes = split.transpose(0, 2, 3, 1, 4).reshape(
        n, n_bricks, SLOTS, LINE_BYTES
    )  # [n, bricks, slots, 4r + k]
    lines, shift = [], bits
    for field in FIELD_WIDTHS[bits]:
        shift -= field
        values = (lanes >> shift) & ((1 << field) - 1)
        per_line = values.reshape(n, n_bricks, field, SLOTS // field, LINE_BYTES)
        positions = (np.arange(SLOTS // field, dtype=np.uint8) * field)[:, None]
        lines.append(np.bitwise_or.reduce(per_line << positions, axis=3))
    return np.concatenate(lines, axis=2)


def unpack_bricks(lines: UInt8Array, bits: int) -> UInt8Array:
    """Undo `pack_bricks`: uint8 [n, bricks, bits, 64] to codes uint8 [n, 16, 32 * bricks]."""
    n, n_bricks = lines.shape[:2]
    lanes = np.zeros((n, n_bricks, SLOTS, LINE_BYTES), np.uint8)
    first = 0
    for field in FIELD_WIDTHS[bits]:
        stored = lines[:, :, first : first + field, None, :]
        positions = (np.arange(SLOTS // field, dtype=np.uint8) * field)[:, None]
        values = ((stored >> positions) & ((1 << field) - 1)).reshape(lanes.shape)
        lanes = ((lanes << field) | values).astype(np.uint8, copy=False)
        first += field
    split = lanes.reshape(n, n_bricks, SLOTS, TILE_ROWS, 4).transpose(0, 3, 1, 2, 4)
    return np.ascontiguousarray(split).reshape(n, TILE_ROWS, n_bricks * BRICK_COLUMNS)


def pack_trits(codes: UInt8Array) -> UInt8Array:
    """Pack tiles of three values: five slots to a line, the slots left with two bits a code.

    A byte is the number that five trits make, the first of most weight, as a fraction of 256 rounded up:
    multiplied by 3 it gives one trit after the other above its eight bits.

    Parameters
    ----------
    codes : uint8 [n, 16, group_size]
        0, 1 or 2.

    Returns
    -------
    uint8 [n, bytes of a tile]
        Lines of 64 bytes, then 16 bytes a slot.
    """
    lanes = _lanes(codes)
    n, n_slots = lanes.shape[:2]
    in_lines = n_slots - n_slots % TRITS_OF_BYTE
    by_line = lanes[:, :in_lines].reshape(n, -1, TRITS_OF_BYTE, LINE_BYTES).astype(np.int64)
    weights = 3 ** np.arange(TRITS_OF_BYTE)[::-1]
    numbers = (by_line * weights[:, None]).sum(2)
    lines = -(-256 * numbers // 3**TRITS_OF_BYTE)
    fours = lanes[:, in_lines:].reshape(n, -1, 4) << np.array([0, 2, 4, 6], np.uint8)
    left = np.bitwise_or.reduce(fours, axis=2)
    return np.concatenate([lines.reshape(n, -1).astype(np.uint8), left], axis=1)


def unpack_trits(stored: UInt8Array, group_size: int) -> UInt8Array:
    """Undo `pack_trits`: uint8 [n, bytes of a tile] to codes uint8 [n, 16, group_size]."""
    n, n_slots = len(stored), TILE_ROWS * group_size // LINE_BYTES
    end = n_slots // TRITS_OF_BYTE * LINE_BYTES
    rest = stored[:, :end].reshape(n, -1, 1, LINE_BYTES).astype(np.int64)
    trits = []
    for _ in range(TRITS_OF_BYTE):
        trits.append(3 * rest >> 8)
        rest = 3 * rest & 255
    in_lines = np.concatenate(trits, 2).reshape(n, -1, LINE_BYTES).astype(np.uint8)
    left = (stored[:, end:, None] >> np.array([0, 2, 4, 6], np.uint8)) & 3
    return _of_lanes(np.concatenate([in_lines, left.reshape(n, -1, LINE_BYTES)], 1))


def _lanes(codes: UInt8Array) -> UInt8Array:
    """[n, 16, group_size] to [n, slots, 64]: four neighbouring columns of 16 rows side by side."""
    n, rows, group_size = codes.shape
    split = codes.reshape(n, rows, group_size // 4, 4).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(split).reshape(n, group_size // 4, LINE_BYTES)


def _of_lanes(lanes: UInt8Array) -> UInt8Array:
    """Undo `_lanes`."""
    n, n_slots = lanes.shape[:2]
    split = lanes.reshape(n, n_slots, TILE_ROWS, 4).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(split).reshape(n, TILE_ROWS, 4 * n_slots)


def stored_order(tags: UInt8Array) -> npt.NDArray[np.int64]:
    """Return flat indices of the stored tiles: by row block, then falling tag, then column group.

    tags : uint8 [n_row_blocks, n_groups]
    """
    n_groups = tags.shape[1]
    order = np.argsort(-tags.astype(np.int16), axis=1, kind="stable")
    flat = (order + np.arange(len(tags))[:, None] * n_groups).ravel()
    return np.asarray(flat[tags.ravel()[flat] > 0])


def pack_codes(
    codes: UInt8Array, grid: TileGrid, order: npt.NDArray[np.int64], tags: UInt8Array
) -> UInt8Array:
    """Pack the stored tiles of a matrix one after the other.

    Parameters
    ----------
    codes : uint8 [padded_rows, padded_columns]
        Codes below 2 ** width of their tile.
    grid : TileGrid
        Shape and group size.
    order : int64 [n_stored]
        Flat indices of the stored tiles.
    tags : uint8 [n_stored]
        What the tile table says of them.

    Returns
    -------
    uint8 [payload_bytes]
        Lines of bits.
    """
    tiles = _tiles(codes, grid)[order]
    starts = tile_offsets(tags, grid)
    payload = np.empty(int(starts[-1]), np.uint8)
    for tag in np.unique(tags):
        which = np.flatnonzero(tags == tag)
        mine, width = tiles[which], int(CODE_BITS[tag])
        packed = pack_trits(mine) if tag == TRITS.tag else pack_bricks(mine, width).reshape(len(which), -1)
        payload[starts[which, None] + np.arange(packed.shape[1])] = packed
    return payload


def pack(tensor: QTensor, *, pack_codes: PackCodes = pack_codes) -> PackedTensor:
    """Return the bytes of a quantized matrix; `pack_codes` may be another way to the same payload."""
    grid, tags = tensor.grid, TAGS[tensor.choices]
    order = stored_order(tags)
    stored_tags = tags.ravel()[order]
    row_bytes = tile_bytes(grid.group_size)[tags].sum(1)
    scales, scale_base = store_scales(tensor, order, stored_tags)
    return PackedTensor(
        grid=grid,
        scale_format=tensor.scale_format,
        payload=pack_codes(tensor.codes, grid, order, stored_tags),
        bits=stored_tags,
        groups=(order % grid.n_groups).astype(np.uint16),
        scales=scales,
        scale_base=scale_base,
        zero_points=store_zero_points(tensor, order, stored_tags),
        row_offsets=(np.cumsum(row_bytes) - row_bytes).astype(np.uint64),
        row_permutation=tensor.row_permutation,
        column_permutation=tensor.column_permutation,
        palettes=tensor.palettes if uses_palettes(stored_tags) else None,
        scale_per=tensor.scale_per,
    )


def _tiles(codes: UInt8Array, grid: TileGrid) -> UInt8Array:
    """[padded_rows, padded_columns] to [n_tiles, 16, group_size]."""
    split = codes.reshape(grid.n_row_blocks, TILE_ROWS, grid.n_groups, grid.group_size)
    return np.ascontiguousarray(split.transpose(0, 2, 1, 3)).reshape(-1, TILE_ROWS, grid.group_size)


def unpack_tiles(packed: PackedTensor) -> UInt8Array:
    """Return the codes of the stored tiles; uint8 [n_stored, 16, group_size]."""
    grid = packed.grid
    codes = np.empty((len(packed.bits), TILE_ROWS, grid.group_size), np.uint8)
    starts = tile_offsets(packed.bits, grid)[:-1]
    for tag in np.unique(packed.bits):
        which, width = np.flatnonzero(packed.bits == tag), int(CODE_BITS[tag])
        n_bytes = int(tile_bytes(grid.group_size)[tag])
        lines = packed.payload[starts[which, None] + np.arange(n_bytes)]
        if tag == TRITS.tag:
            codes[which] = unpack_trits(lines, grid.group_size)
            continue
        shape = (len(which), grid.group_size // BRICK_COLUMNS, width, LINE_BYTES)
        codes[which] = unpack_bricks(lines.reshape(shape), width)
    return codes


def levels_of(codes: UInt8Array, tags: UInt8Array, palettes: UInt8Array | None = None) -> UInt8Array:
    """Return what codes stand for on the scale of zero points: themselves, or entries of a table.

    codes : uint8 [n, 16, group_size]        tags : uint8 [n]        Returns the shape of codes
    palettes : uint8 [`PALETTE_BYTES`] of the weight, or [n, `PALETTE_BYTES`] of the weight of each tile
    """
    levels = codes.copy()
    for tag in np.unique(tags[tags >= TAG]):
        which = tags == tag
        if tag in PALETTES:
            assert palettes is not None
            of_tiles = np.broadcast_to(palettes, (len(tags), palettes.shape[-1]))[which]
            mine = codes[which].reshape(len(of_tiles), -1)
            found = np.take_along_axis(of_tiles[:, PALETTES[tag].entries], mine, 1)
            levels[which] = found.reshape(-1, *codes.shape[1:])
        elif tag in TABLES:
            levels[which] = padded_table(TABLES[tag])[codes[which]]
        else:
            width = int(CODE_BITS[tag])
            levels[which] = TRELLISES[width].table[windows(codes[which], width)]
    return levels


def padded_table(table: Table) -> UInt8Array:
    """Return an entry for every code that its bits can hold.

    The fourth of three values is never written; it stands for one step beyond the last.
    """
    missing = np.arange(1, (1 << table.code_bits) - table.n_levels + 1, dtype=np.uint8)
    return np.concatenate([table.table, table.table[-1] + missing])


def dequantize(packed: PackedTensor) -> npt.NDArray[np.float32]:
    """Return the matrix in the source's order of rows and columns; float32 [n_rows, n_columns]."""
    grid, packed = packed.grid, expanded(packed)
    centred = levels_of(unpack_tiles(packed), packed.bits, packed.palettes).astype(np.float32)
    centred -= unpack_zero_points(packed.zero_points, packed.bits)[:, :, None]
    tiles = np.zeros((grid.n_row_blocks, grid.n_groups, TILE_ROWS, grid.group_size), np.float32)
    tiles[tile_row_blocks(packed), packed.groups] = centred * stored_scales(packed)[:, :, None]
    matrix = tiles.transpose(0, 2, 1, 3).reshape(grid.padded_rows, grid.padded_columns)
    matrix = matrix[: grid.n_rows, : grid.n_columns]
    if packed.row_permutation is not None:
        matrix = matrix[inverse(packed.row_permutation)]
    if packed.column_permutation is not None:
        matrix = matrix[:, inverse(packed.column_permutation)]
    if packed.correction is not None:
        matrix = matrix + packed.correction.dequantize(grid.n_rows, grid.n_columns)
    return np.ascontiguousarray(matrix)


def matmul(inputs: npt.NDArray[np.float32], packed: PackedTensor) -> npt.NDArray[np.float32]:
    """Return inputs @ W': float32 [n, n_columns] to float32 [n, n_rows]."""
    return inputs @ dequantize(packed).T
