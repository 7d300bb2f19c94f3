"""Scales and zero points as they are stored, as numbers, and as kernels take them; part of the reference."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from laq.core.formats.trellis import MIDDLE
from laq.core.groups import TILE_ROWS, TileGrid
from laq.core.packing import (
    E8M0_BIAS,
    LOG_SCALE_BIAS,
    ZERO_POINT_BITS,
    PackedTensor,
    n_scale_bases,
    tile_row_blocks,
)
from laq.core.qtensor import LOG4_SPAN, QTensor, decode_scales, zero_point_code, zero_point_value
from laq.core.scale_units import ScalePer, ScaleUnits, scale_units
from laq.core.scheme import LOG_STEPS, ScaleFormat

UInt8Array = npt.NDArray[np.uint8]
Base = npt.NDArray[np.float16]


def by_tile(per_group: npt.NDArray[Any], grid: TileGrid) -> npt.NDArray[Any]:
    """Return what rows of groups have in the order of tiles: [padded_rows, n_groups] to [n_tiles, 16]."""
    return (
        per_group.reshape(grid.n_row_blocks, TILE_ROWS, grid.n_groups)
        .transpose(0, 2, 1)
        .reshape(-1, TILE_ROWS)
    )


def store_scales(
    tensor: QTensor, order: npt.NDArray[np.int64], tags: UInt8Array
) -> tuple[npt.NDArray[Any], Base | None]:
    """Return the sections `scales` and `scale_base`.

    order : int64 [n_stored], flat indices of the stored tiles        tags : uint8 [n_stored]
    """
    per, blocks = tensor.scale_per, order // tensor.grid.n_groups
    units = scale_units(tags, blocks, per)
    scales = _shared(by_tile(tensor.scales, tensor.grid)[order], units, per)
    if tensor.scale_format is ScaleFormat.FLOAT16:
        return scales, None
    steps = scales.astype(np.int64)
    if tensor.scale_format is ScaleFormat.E8M0:
        octaves, rest = np.divmod(steps, LOG_STEPS)
        assert not rest.any(), "scales that are no powers of two"
        return (octaves + E8M0_BIAS).astype(np.uint8), None
    of_entries = np.zeros(len(units.first), np.int64) if per is ScalePer.TENSOR else blocks[units.first]
    stored, base = _above_base(steps, of_entries, n_scale_bases(tensor.grid, per))
    if tensor.scale_format is ScaleFormat.LOG4:
        stored = _pack_log4(stored)
    return stored.astype(np.uint8), base


def store_zero_points(tensor: QTensor, order: npt.NDArray[np.int64], tags: UInt8Array) -> UInt8Array:
    """Return the section `zero_points`; for the arguments see `store_scales`."""
    zero_points = by_tile(tensor.zero_points, tensor.grid)[order]
    if tensor.scale_per is ScalePer.GROUP:
        return _pack_zero_points(zero_points, tags)
    units = scale_units(tags, order // tensor.grid.n_groups, tensor.scale_per)
    shared = _shared(zero_points, units, tensor.scale_per)
    return zero_point_code(shared, ZERO_POINT_BITS[tags[units.first], None])


def _shared(of_tiles: npt.NDArray[Any], units: ScaleUnits, per: ScalePer) -> npt.NDArray[Any]:
    """[n_stored, 16] to [n_entries, 16 or 1]: what tiles of an entry, and its rows, agree in."""
    found = of_tiles[units.first, : per.stored_rows]
    assert (found[units.entry] == of_tiles).all(), "scales that are to be shared differ"
    return found


def _above_base(
    steps: npt.NDArray[np.int64], blocks: npt.NDArray[np.int64], n_blocks: int
) -> tuple[npt.NDArray[np.int64], Base]:
    """Log steps as bytes above a power of two of their row block.

    steps : int64 [n_stored, 16]        blocks : int64 [n_stored], row block of each tile
    """
    highest = np.full(n_blocks, -(1 << 15), np.int64)
    np.maximum.at(highest, blocks, steps.max(1, initial=-(1 << 15)))
    highest[highest == -(1 << 15)] = 0
    octaves = np.clip(-(-(highest - 127) // LOG_STEPS), -24, 15)  # float16 holds 2 ** -24 .. 2 ** 15
    stored = steps - octaves[blocks, None] * LOG_STEPS + LOG_SCALE_BIAS
    assert ((stored >= 0) & (stored <= 255)).all(), "log scales of a row block span more than 32 octaves"
    return stored, np.ldexp(np.float64(1), octaves).astype(np.float16)


def _pack_log4(steps: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """A byte of the tile, then four bits a row, the even row lower; [n, 16] to [n, 9]."""
    base = np.maximum(steps.max(1, keepdims=True, initial=LOG4_SPAN) - LOG4_SPAN, 0)
    above = steps - base
    assert (above >= 0).all(), "log scales of a tile span more than two octaves"
    return np.concatenate([base, above[:, 0::2] | above[:, 1::2] << 4], axis=1)


def unpack_log4(stored: UInt8Array) -> UInt8Array:
    """Return the steps of each row of each tile; uint8 [n, 9] to uint8 [n, 16].

    Examples
    --------
    >>> unpack_log4(np.uint8([[100, 0x10, 0x32, 0x54, 0x76, 0x98, 0xBA, 0xDC, 0xFE]]))[0, [0, 1, 15]].tolist()
    [100, 101, 115]
    """
    halves = np.stack([stored[:, 1:] & 15, stored[:, 1:] >> 4], axis=2)
    return np.asarray(halves.reshape(-1, TILE_ROWS) + stored[:, :1])


def stored_scales(packed: PackedTensor) -> npt.NDArray[np.float32]:
    """Return the scale of each row of each stored tile, or of each entry; float32 [n_stored, 16]."""
    if packed.scale_format is ScaleFormat.FLOAT16:
        return decode_scales(packed.scales.astype(np.float16), ScaleFormat.FLOAT16)
    return decode_scales(_log_steps(packed).astype(np.int16), packed.scale_format)


def _log_steps(packed: PackedTensor) -> npt.NDArray[np.int64]:
    """Scales in eighths of an octave; [n_stored, 16], or [n_entries, 16 or 1]."""
    stored = packed.scales.view(np.uint8)
    if packed.scale_base is None:
        return (stored.astype(np.int64) - E8M0_BIAS) * LOG_STEPS
    _, exponent = np.frexp(packed.scale_base.astype(np.float32))
    first = _units(packed).first
    one_base = packed.scale_per is ScalePer.TENSOR
    bases = np.zeros(len(first), np.int64) if one_base else tile_row_blocks(packed)[first]
    octaves = exponent.astype(np.int64)[bases, None] - 1
    if packed.scale_format is ScaleFormat.LOG4:
        stored = unpack_log4(stored)
    return octaves * LOG_STEPS + stored.astype(np.int64) - LOG_SCALE_BIAS


def _units(packed: PackedTensor) -> ScaleUnits:
    return scale_units(packed.bits, tile_row_blocks(packed), packed.scale_per)


def expanded(packed: PackedTensor) -> PackedTensor:
    """Return the same matrix with scales as kernels read them, of each row of each tile: the same values.

    Powers of two become eighths of an octave above a base, a byte each as before. Where all rows of every
    tile are alike enough they are stored as LOG4.
    """
    is_group = packed.scale_per is ScalePer.GROUP
    if is_group and packed.scale_format is not ScaleFormat.E8M0:
        return packed
    zero_points = packed.zero_points if is_group else _expanded_zero_points(packed)
    common = replace(packed, zero_points=zero_points, scale_per=ScalePer.GROUP)
    if packed.scale_format is ScaleFormat.FLOAT16:
        return replace(common, scales=_of_tiles(packed, packed.scales))
    steps = _of_tiles(packed, _log_steps(packed))
    stored, base = _above_base(steps, tile_row_blocks(packed), packed.grid.n_row_blocks)
    scale_format = ScaleFormat.LOG8
    if not is_group and (np.ptp(stored, axis=1) <= LOG4_SPAN).all():
        stored, scale_format = _pack_log4(stored), ScaleFormat.LOG4
    return replace(common, scale_format=scale_format, scales=stored.astype(np.uint8), scale_base=base)


def _expanded_zero_points(packed: PackedTensor) -> UInt8Array:
    codes = _of_tiles(packed, packed.zero_points)
    return _pack_zero_points(zero_point_value(codes, ZERO_POINT_BITS[packed.bits, None]), packed.bits)


def _of_tiles(packed: PackedTensor, entries: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """[n_entries, 16 or 1] to [n_stored, 16]."""
    found = entries[_units(packed).entry]
    return np.ascontiguousarray(np.broadcast_to(found, (len(found), TILE_ROWS)))


def _pack_zero_points(zero_points: npt.NDArray[np.float32], tags: UInt8Array) -> UInt8Array:
    """16 zero points a tile, as wide as its codes; [n_stored, 16] to uint8 [sum of 2 * widths]."""
    shifts, bits = np.arange(8, dtype=np.uint8), ZERO_POINT_BITS[tags]
    codes = zero_point_code(zero_points, bits[:, None])
    planes = (codes[:, :, None] >> shifts) & 1  # [n, 16, 8], least significant bit first
    kept = shifts[None, None, :] < bits[:, None, None]
    return np.packbits(planes[np.broadcast_to(kept, planes.shape)], bitorder="little")


def unpack_zero_points(stored: UInt8Array, tags: UInt8Array) -> npt.NDArray[np.float32]:
    """Return zero points float32 [n_stored, 16] from their packed bits; only those of integers are stored."""
    bits = ZERO_POINT_BITS[tags]
    planes = np.zeros((len(bits), TILE_ROWS, 8), np.uint8)
    kept = np.broadcast_to(np.arange(8)[None, None, :] < bits[:, None, None], planes.shape)
    planes[kept] = np.unpackbits(stored, bitorder="little")
    codes = np.packbits(planes, axis=2, bitorder="little")[:, :, 0]
    return np.where(bits[:, None] > 0, zero_point_value(codes, bits[:, None]), np.float32(MIDDLE))
