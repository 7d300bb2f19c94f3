"""A quantized matrix as bytes: the sections of docs/FORMAT.md and their sizes."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from laq.core.correction import Amount, Correction
from laq.core.errors import FormatError
from laq.core.formats import CANDIDATES, PALETTES, payload_bytes
from laq.core.formats.table import PALETTE_BYTES
from laq.core.formats.trellis import TAG as TRELLIS_TAG
from laq.core.groups import TILE_ROWS, TileGrid
from laq.core.permutation import IndexArray, index_dtype, is_permutation
from laq.core.product import ProductTensor
from laq.core.qtensor import LOG4_SPAN
from laq.core.scale_units import ScalePer, scale_units
from laq.core.scheme import ScaleFormat

BRICK_COLUMNS = 32
UNIT_BYTES = 16
"""Every tile takes a multiple of this."""

TAGS = np.array([candidate.tag for candidate in CANDIDATES], np.uint8)
"""What the tile table says of every candidate format, indexed by choice; 0 where nothing is stored."""

CODE_BITS = np.zeros(256, np.uint8)
CODE_BITS[TAGS] = [candidate.code_bits for candidate in CANDIDATES]
"""Width of the codes of a tile, indexed by tag."""

PALETTE_TAGS = np.array(list(PALETTES), np.uint8)
"""Tags of tiles whose entries are stored with the weight."""

ZERO_POINT_BITS = np.zeros(256, np.uint8)
ZERO_POINT_BITS[TAGS] = [candidate.zero_point_bits for candidate in CANDIDATES]
"""Width of the zero points of a tile, indexed by tag."""

LOG_SCALE_BIAS = 128
"""Stored log scale = steps above the row block's base + this bias, one byte."""

E8M0_BIAS = 127
"""Stored power of two = its exponent + this bias, one byte."""

E8M0_NAN = 255
E8M0_EXPONENTS = range(-40, 31)
"""Exponents that log scales reach: kernels take powers of two as such."""

E8M0_SPAN = 31
"""Octaves between the smallest and the largest power of two of a row block."""


@cache
def tile_bytes(group_size: int) -> npt.NDArray[np.int64]:
    """Return the bytes that the codes of a tile take, indexed by tag.

    Examples
    --------
    >>> tile_bytes(64)[[0, 4, 20, 82]].tolist()
    [0, 512, 512, 208]
    """
    sizes = np.zeros(256, np.int64)
    sizes[TAGS] = [payload_bytes(candidate, group_size) for candidate in CANDIDATES]
    return sizes


@dataclass(frozen=True, slots=True)
class PackedTensor:
    """The stored sections of one matrix; see docs/FORMAT.md for the reason of each rule.

    Parameters
    ----------
    grid : TileGrid
        Shape and group size.
    scale_format : ScaleFormat
        How `scales` are stored.
    payload : uint8 [payload_bytes]
        Tiles of each row block by falling tag, then by column group; absent tiles left out.
    bits : uint8 [n_stored]
        Tag of every stored tile: the width of its codes, and a multiple of 16 for what they stand for.
    groups : uint16 [n_stored]
        Column group of every stored tile.
    scales : uint8 [n_stored, 16] for LOG8 and E8M0, uint8 [n_stored, 9] for LOG4, float16 [n_stored, 16] for
        FLOAT16
        Scale of each row of each stored tile; for LOG4 a byte of the tile, then four bits a row.
    scale_base : float16 [n_row_blocks], or None
        Power of two that LOG8 and LOG4 count from.
    zero_points : uint8 [sum of 2 * zero point bits]
        16 zero points a tile of integers, each as wide as its codes, little-endian bit order.
    row_offsets : uint64 [n_row_blocks]
        Byte of the payload where each row block starts.
    row_permutation, column_permutation : uint16 or uint32, or None
        Source index of each stored row and column; None if they keep their order.
    palettes : uint8 [`PALETTE_BYTES`], or None
        Learned entries of 2, 3 and 4 bits; None if no tile uses them.
    correction : Correction or None
        What is added to the matrix.
    scale_per : ScalePer
        What scales serve. If not a group, `scales` and `zero_points` are [n_entries, 16 or 1], a byte for
        each zero point, see `laq.core.scale_units`; with a scale for the weight there is one base.
    """

    grid: TileGrid
    scale_format: ScaleFormat
    payload: npt.NDArray[np.uint8]
    bits: npt.NDArray[np.uint8]
    groups: npt.NDArray[np.uint16]
    scales: npt.NDArray[np.uint8] | npt.NDArray[np.float16]
    scale_base: npt.NDArray[np.float16] | None
    zero_points: npt.NDArray[np.uint8]
    row_offsets: npt.NDArray[np.uint64]
    row_permutation: IndexArray | None
    column_permutation: IndexArray | None
    palettes: npt.NDArray[np.uint8] | None = None
    correction: Correction | None = None
    scale_per: ScalePer = ScalePer.GROUP

    def sections(self) -> dict[str, npt.NDArray[Any]]:
        """Return the stored arrays by section name, in file order."""
        named = {field.name: getattr(self, field.name) for field in fields(self)[2:-2]}
        correction = {} if self.correction is None else self.correction.sections()
        return {name: array for name, array in named.items() if array is not None} | correction

    @property
    def size_bytes(self) -> int:
        """Bytes of all sections."""
        return sum(int(array.nbytes) for array in self.sections().values())


StoredTensor = PackedTensor | ProductTensor
"""One matrix as an archive holds it."""


@dataclass(frozen=True, slots=True)
class SectionSpec:
    """Name, dtype and shape of a stored section, known before its data are."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes of the section."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


def section_specs(
    grid: TileGrid,
    scale_format: ScaleFormat,
    choices: npt.NDArray[np.uint8],
    *,
    has_row_permutation: bool,
    amount: Amount | None = None,
    scale_per: ScalePer = ScalePer.GROUP,
) -> list[SectionSpec]:
    """Return what packing will store for these choices, except the column permutation (shared).

    Parameters
    ----------
    grid : TileGrid
        Shape and group size.
    scale_format : ScaleFormat
        How scales are stored.
    choices : uint8 [n_row_blocks, n_groups]
        Candidate format of every tile.
    has_row_permutation : bool
        Whether rows are sorted.
    amount : Amount or None
        Of the correction.
    scale_per : ScalePer
        What scales serve.
    """
    tags = TAGS[choices]
    n_stored = int((tags > 0).sum())
    scales: tuple[int, ...] = (n_stored, *scale_format.tile_shape)
    zero_points: tuple[int, ...] = (int(ZERO_POINT_BITS[tags].sum(dtype=np.int64)) * TILE_ROWS // 8,)
    if scale_per is not ScalePer.GROUP:
        units = scale_units(tags[tags > 0], np.nonzero(tags)[0], scale_per)
        scales = zero_points = (len(units.first), scale_per.stored_rows)
    specs = [
        SectionSpec("payload", np.dtype(np.uint8), (int(tile_bytes(grid.group_size)[tags].sum()),)),
        SectionSpec("bits", np.dtype(np.uint8), (n_stored,)),
        SectionSpec("groups", np.dtype(np.uint16), (n_stored,)),
        SectionSpec("scales", scale_format.dtype, scales),
        SectionSpec("zero_points", np.dtype(np.uint8), zero_points),
        SectionSpec("row_offsets", np.dtype(np.uint64), (grid.n_row_blocks,)),
    ]
    if scale_format.has_base:
        n_bases = n_scale_bases(grid, scale_per)
        specs.append(SectionSpec("scale_base", np.dtype(np.float16), (n_bases,)))
    if has_row_permutation:
        specs.append(SectionSpec("row_permutation", index_dtype(grid.n_rows), (grid.n_rows,)))
    if uses_palettes(tags):
        specs.append(SectionSpec("palettes", np.dtype(np.uint8), (PALETTE_BYTES,)))
    added = [] if amount is None else amount.sections(grid.n_rows, grid.n_columns)
    return specs + [SectionSpec(*section) for section in added]


def n_scale_bases(grid: TileGrid, scale_per: ScalePer) -> int:
    """Return how many powers of two log scales count from."""
    return 1 if scale_per is ScalePer.TENSOR else grid.n_row_blocks


def uses_palettes(tags: npt.NDArray[np.uint8]) -> bool:
    """Say whether any tile looks its codes up in the entries of its weight."""
    return bool(np.isin(tags, PALETTE_TAGS).any())


def tile_offsets(bits: npt.NDArray[np.uint8], grid: TileGrid) -> npt.NDArray[np.int64]:
    """Return the payload byte where each stored tile starts, and the end as a last element.

    bits : uint8 [n_stored], tags        Returns int64 [n_stored + 1]
    """
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(tile_bytes(grid.group_size)[bits])])


def zero_point_offsets(bits: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """Return the byte where the zero points of each stored tile start, and the end as a last element.

    bits : uint8 [n_stored], tags        Returns int64 [n_stored + 1]
    """
    sizes = ZERO_POINT_BITS[bits].astype(np.int64) * (TILE_ROWS // 8)
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])


def tile_row_blocks(packed: PackedTensor) -> npt.NDArray[np.int64]:
    """Return the row block of every stored tile, from where its bytes lie; int64 [n_stored]."""
    starts = tile_offsets(packed.bits, packed.grid)[:-1]
    return np.searchsorted(packed.row_offsets.astype(np.int64), starts, side="right") - 1


def check_packed(packed: PackedTensor, *, name: str) -> None:
    """Check everything that a kernel will rely on.

    Parameters
    ----------
    packed : PackedTensor
        Sections as read from a file.
    name : str
        Named in the error.

    Raises
    ------
    FormatError
        If a width, group index, offset, size or permutation is out of range.
    """
    problems = [*_tile_problems(packed), *_permutation_problems(packed)]
    if packed.correction is not None:
        problems += packed.correction.problems(packed.grid.n_rows, packed.grid.n_columns)
    if problems:
        raise FormatError(
            f"{name}: {'; '.join(problems)}",
            hint="the archive is damaged: copy or quantize it again; `laq verify` checks it",
        )


def _tile_problems(packed: PackedTensor) -> list[str]:
    grid, n_stored = packed.grid, len(packed.bits)
    if n_stored and not np.isin(packed.bits, TAGS[1:]).all():
        return [f"tags of tiles outside of {', '.join(map(str, sorted(set(TAGS[1:].tolist()))))}"]
    problems = []
    found = None if packed.palettes is None else packed.palettes.shape
    if found != (PALETTE_BYTES,) and (found is not None or uses_palettes(packed.bits)):
        problems.append(f"palettes have shape {found}, expected {(PALETTE_BYTES,)}")
    end = int(tile_offsets(packed.bits, grid)[-1])
    if len(packed.payload) != end:
        problems.append(f"payload has {len(packed.payload)} bytes, its tile table says {end}")
    if packed.groups.shape != (n_stored,) or (n_stored and int(packed.groups.max()) >= grid.n_groups):
        problems.append(f"column group index beyond the {grid.n_groups} groups")
    shared = packed.scale_per is not ScalePer.GROUP  # those are checked once row blocks are known
    expected = (n_stored, *packed.scale_format.tile_shape)
    if shared:
        problems += _sharing_problems(packed)
    elif packed.scales.shape != expected:
        problems.append(f"scales have shape {packed.scales.shape}, expected {expected}")
    elif packed.scale_format is ScaleFormat.LOG4 and (packed.scales[:, 0] > 255 - LOG4_SPAN).any():
        problems.append(f"the byte of a tile's scales is above {255 - LOG4_SPAN}")
    n_zero_bytes = int(zero_point_offsets(packed.bits)[-1])
    if not shared and len(packed.zero_points) != n_zero_bytes:
        problems.append(f"zero points have {len(packed.zero_points)} bytes, expected {n_zero_bytes}")
    if not problems:
        problems += _row_block_problems(packed)
    return problems


def _sharing_problems(packed: PackedTensor) -> list[str]:
    if (packed.bits >= TRELLIS_TAG).any():
        return ["tiles that are no integers share scales"]
    if packed.scale_format is ScaleFormat.LOG4:
        return ["scales of four bits are shared"]
    return []


def _row_block_problems(packed: PackedTensor) -> list[str]:
    grid = packed.grid
    offsets = packed.row_offsets.astype(np.int64)
    boundaries = tile_offsets(packed.bits, grid)
    if offsets.shape != (grid.n_row_blocks,) or offsets[0] != 0 or not np.isin(offsets, boundaries).all():
        return ["row block offsets do not fall on tiles"]
    if (np.diff(offsets) < 0).any():
        return ["row block offsets fall"]
    keys = tile_row_blocks(packed) * grid.n_groups + packed.groups
    if len(np.unique(keys)) != len(keys):
        return ["a tile is stored twice"]
    return _scale_problems(packed)


def _scale_problems(packed: PackedTensor) -> list[str]:
    """Scales and bases of sound row blocks."""
    blocks = tile_row_blocks(packed)
    if packed.scale_per is not ScalePer.GROUP:
        units = scale_units(packed.bits, blocks, packed.scale_per)
        expected = (len(units.first), packed.scale_per.stored_rows)
        if not packed.scales.shape == packed.zero_points.shape == expected:
            return [f"scales and zero points have not the shape {expected}"]
        if (packed.zero_points >> ZERO_POINT_BITS[packed.bits[units.first], None]).any():
            return ["zero points are wider than their codes"]
        blocks = blocks[units.first]
    base = packed.scale_base
    n_bases = n_scale_bases(packed.grid, packed.scale_per)
    if base is not None and (base.shape != (n_bases,) or not _is_power_of_two(base).all()):
        return ["scale base is not a positive power of two for each row block"]
    if packed.scale_format is ScaleFormat.FLOAT16 and not np.isfinite(packed.scales).all():
        return ["scales are not finite"]
    return _exponent_problems(packed, blocks) if packed.scale_format is ScaleFormat.E8M0 else []


def _exponent_problems(packed: PackedTensor, blocks: npt.NDArray[np.int64]) -> list[str]:
    if (packed.scales == E8M0_NAN).any():
        return [f"scales are not numbers: code {E8M0_NAN}"]
    exponents = packed.scales.astype(np.int64) - E8M0_BIAS
    if not np.isin(exponents, E8M0_EXPONENTS).all():
        return [f"scales outside of 2 ** {E8M0_EXPONENTS[0]} to 2 ** {E8M0_EXPONENTS[-1]}"]
    highest = np.full(packed.grid.n_row_blocks, E8M0_EXPONENTS[0])
    np.maximum.at(highest, blocks, exponents.max(1, initial=E8M0_EXPONENTS[0]))
    if (highest[blocks, None] - exponents > E8M0_SPAN).any():
        return [f"scales of a row block span more than {E8M0_SPAN} octaves"]
    return []


def _is_power_of_two(values: npt.NDArray[np.float16]) -> npt.NDArray[np.bool_]:
    mantissa, _ = np.frexp(values.astype(np.float32))
    return np.asarray(np.isfinite(values) & (mantissa == np.float32(0.5)))


def _permutation_problems(packed: PackedTensor) -> list[str]:
    problems = []
    for axis, permutation, n in (
        ("row", packed.row_permutation, packed.grid.n_rows),
        ("column", packed.column_permutation, packed.grid.n_columns),
    ):
        if permutation is not None and (len(permutation) != n or not is_permutation(permutation)):
            problems.append(f"{axis} permutation does not hold each of {n} indices once")
    return problems
