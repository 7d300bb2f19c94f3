"""A quantized matrix as arrays: codes, scales and zero points in the order of its tiles."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from laq.core.groups import TileGrid
from laq.core.permutation import IndexArray
from laq.core.scale_units import ScalePer
from laq.core.scheme import LOG_STEPS, ScaleFormat

UInt8Array = npt.NDArray[np.uint8]
LOG4_SPAN = 15
"""Steps of the log grid that four bits reach above the byte of a tile."""

NARROW_BITS = 3
"""Codes up to this width have zero points in halves around the middle: with few levels it matters whether
they lie symmetric about zero (4 levels on a Gaussian: error 0.119 of the variance, against 0.16)."""


def zero_point_code(values: npt.NDArray[np.float32], bits: npt.NDArray[np.uint8]) -> UInt8Array:
    """Return zero points as stored, in as many bits as the codes have.

    Wide codes store z itself; narrow ones store c with z = (2 ** (bits - 1) - 1 + c) / 2.

    Examples
    --------
    >>> zero_point_code(np.float32([0.5, 1.5, 7]), np.uint8([1, 2, 4])).tolist()
    [1, 2, 7]
    """
    width = bits.astype(np.int64)
    narrow = 2 * values - ((1 << np.maximum(width - 1, 0)) - 1)
    return np.where((width > 0) & (width <= NARROW_BITS), narrow, values).astype(np.uint8)


def zero_point_value(codes: UInt8Array, bits: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Undo `zero_point_code`.

    Examples
    --------
    >>> zero_point_value(np.uint8([1, 2, 7]), np.uint8([1, 2, 4])).tolist()
    [0.5, 1.5, 7.0]
    """
    width = bits.astype(np.int64)
    narrow = (codes + ((1 << np.maximum(width - 1, 0)) - 1)) / 2
    return np.where(width <= NARROW_BITS, narrow, codes).astype(np.float32)


@dataclass(frozen=True, slots=True)
class QTensor:
    """Codes and scales of one matrix, rows and columns permuted and padded.

    Parameters
    ----------
    grid : TileGrid
        Shape and group size.
    scale_format : ScaleFormat
        What `scales` holds.
    choices : uint8 [n_row_blocks, n_groups]
        Candidate format of every tile, an index into `laq.core.formats.CANDIDATES`.
    codes : uint8 [padded_rows, padded_columns]
        Unsigned codes, below the number of levels of their tile's format; zero where a tile is absent.
    scales : [padded_rows, n_groups], int16 (eighths of an octave), float16 for FLOAT16
        One scale a group; for LOG4 those of a tile lie within `LOG4_SPAN` of each other, for E8M0 all are
        whole octaves.
    zero_points : float32 [padded_rows, n_groups]
        The point on the scale of codes that stands for zero: a whole number, or for codes of up to
        `NARROW_BITS` bits a half, see `zero_point_code`; 128 where codes choose bytes of a table.
    row_permutation : uint16 or uint32 [n_rows], or None
        Source row of each stored row; None if rows keep their order.
    column_permutation : uint16 or uint32 [n_columns], or None
        Source column of each stored column; None if columns keep their order.
    palettes : uint8 [`laq.core.formats.table.PALETTE_BYTES`], or None
        Learned entries, for formats that use them.
    scale_per : ScalePer
        What shares scales and zero points: they are equal there in tiles of one format.
    """

    grid: TileGrid
    scale_format: ScaleFormat
    choices: UInt8Array
    codes: UInt8Array
    scales: npt.NDArray[np.int16] | npt.NDArray[np.float16]
    zero_points: npt.NDArray[np.float32]
    row_permutation: IndexArray | None
    column_permutation: IndexArray | None
    palettes: UInt8Array | None = None
    scale_per: ScalePer = ScalePer.GROUP


def decode_scales(
    scales: npt.NDArray[np.int16] | npt.NDArray[np.float16], scale_format: ScaleFormat
) -> npt.NDArray[np.float32]:
    """Return scales as float32.

    Log scales are the correctly rounded float32 of 2 ** (step / 8): a table of eight factors times an
    exact power of two, so that every backend gets the same bits.

    Examples
    --------
    >>> decode_scales(np.array([-8, 0, 4], np.int16), ScaleFormat.LOG8).tolist()
    [0.5, 1.0, 1.4142135381698608]
    """
    if scale_format is ScaleFormat.FLOAT16:
        return scales.astype(np.float32)
    factors = np.exp2(np.arange(LOG_STEPS) / LOG_STEPS).astype(np.float32)
    octave, step = np.divmod(scales.astype(np.int32), LOG_STEPS)
    return np.ldexp(factors[step], octave).astype(np.float32)
