"""Packing by the native kernels, or as `reference` defines it; and the codes of tiles from their lines."""

from __future__ import annotations

from functools import partial

import numpy as np
import numpy.typing as npt

from laq.core.groups import TILE_ROWS, TileGrid
from laq.core.packing import PackedTensor, tile_offsets
from laq.core.qtensor import QTensor, UInt8Array
from laq.kernels import native, reference


def pack(tensor: QTensor) -> PackedTensor:
    """Return the bytes of a quantized matrix; see `laq.kernels.reference.pack`."""
    library = native.library()
    if library is None:
        return reference.pack(tensor)
    return reference.pack(tensor, pack_codes=partial(_pack_codes, library))


def _pack_codes(
    library: native.Library,
    codes: UInt8Array,
    grid: TileGrid,
    order: npt.NDArray[np.int64],
    tags: UInt8Array,
) -> UInt8Array:
    codes, tags = np.ascontiguousarray(codes), np.ascontiguousarray(tags)
    block, group = np.divmod(order, grid.n_groups)
    code_starts = block * (TILE_ROWS * grid.padded_columns) + group * grid.group_size
    payload_starts = tile_offsets(tags, grid)
    payload = np.empty(int(payload_starts[-1]), np.uint8)
    tiles = native.Tiles(
        n_tiles=len(tags),
        group_size=grid.group_size,
        bits=tags.ctypes.data,
        code_starts=code_starts.ctypes.data,
        stride=grid.padded_columns,
        payload_starts=payload_starts.ctypes.data,
    )
    library.pack(tiles, codes.ctypes.data, payload.ctypes.data)
    return payload
