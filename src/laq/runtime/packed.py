"""A packed matrix as a module: buffers hold the archive's bytes, rows are decoded when they are needed."""

from __future__ import annotations

import copy
import ctypes
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from laq.core.errors import FormatError, RequestError
from laq.core.formats.table import PALETTE_BYTES, TRITS
from laq.core.formats.trellis import MIDDLE
from laq.core.groups import LINE_BYTES, TILE_ROWS, TileGrid
from laq.core.packing import (
    CODE_BITS,
    LOG_SCALE_BIAS,
    UNIT_BYTES,
    ZERO_POINT_BITS,
    PackedTensor,
    tile_bytes,
    tile_offsets,
    tile_row_blocks,
    zero_point_offsets,
)
from laq.core.scheme import LOG_STEPS, ScaleFormat
from laq.kernels import native
from laq.kernels.scales import expanded
from laq.kernels.torch_decode import (
    decode_bricks,
    decode_levels,
    decode_log4,
    decode_trits,
    decode_zero_points,
)
from laq.runtime.arena import Arena, Memory
from laq.runtime.calls import call_unpack, can_unpack
from laq.runtime.correction import correction_of

DECODE_ELEMENTS = 1 << 21
"""Weights decoded at a time: bounds the float32 temporary to 8 MB."""


SECTIONS = (
    "payload",
    "bits",
    "groups",
    "scales",
    "scale_base",
    "zero_points",
    "tile_starts",
    "zero_offsets",
    "row_offsets",
    "row_permutation",
    "column_permutation",
    "palettes",
)
"""Buffers of a packed weight, in the order in which operators take them."""

_IN_ORDER = operator.itemgetter(*SECTIONS)

OPTIONAL = ("scale_base", "row_permutation", "column_permutation", "palettes")


@dataclass(frozen=True, slots=True)
class CheckedMatrix:
    """A matrix as the native kernels take it, and the buffers that were checked.

    Parameters
    ----------
    matrix : Matrix
        Sizes and addresses.
    alone : array of Matrix
        The same, as `Library.linear` takes it.
    sections : tuple of Tensor or None
        Buffers in the order of `SECTIONS`, kept so that the addresses stay theirs.
    given : tuple of Tensor
        Those that are not None.
    versions : tuple of int
        How often each had been changed when it was checked.
    """

    matrix: native.Matrix
    alone: ctypes.Array[native.Matrix]
    sections: tuple[torch.Tensor | None, ...]
    given: tuple[torch.Tensor, ...]
    versions: tuple[int, ...]

    def is_of(self, sections: Sequence[torch.Tensor | None]) -> bool:
        """Say whether these are the buffers that were checked, unchanged."""
        return all(map(operator.is_, self.sections, sections)) and self.versions == versions_of(self.given)


_VERSION = operator.attrgetter("_version")


def versions_of(buffers: Sequence[torch.Tensor]) -> tuple[int, ...]:
    """Return how often each buffer was changed; -1 where torch does not count, in inference mode."""
    try:
        return tuple(map(_VERSION, buffers))  # asked for at every call: it must be fast
    except RuntimeError:
        return tuple(-1 if buffer.is_inference() else buffer._version for buffer in buffers)


def checked_matrix(
    sections: Sequence[torch.Tensor | None], *, n_rows: int, n_columns: int, group_size: int
) -> CheckedMatrix:
    """Check buffers in the order of `SECTIONS` and return them as the native kernels take them.

    Raises
    ------
    FormatError
        If they are not a packed matrix.
    RequestError
        If they do not lie in the memory of the processor.
    """
    library = native.library()
    assert library is not None
    named = dict(zip(SECTIONS, sections, strict=True))
    n_blocks = TileGrid(n_rows, n_columns, group_size).n_row_blocks
    _check_arrays(named, n_rows=n_rows, n_columns=n_columns, n_blocks=n_blocks)
    at = {name: None if section is None else section.data_ptr() for name, section in named.items()}
    payload, bits, zero_points = (_given(named, name) for name in ("payload", "bits", "zero_points"))
    rows, columns = named["row_permutation"], named["column_permutation"]
    matrix = native.Matrix(
        n_rows=n_rows,
        n_columns=n_columns,
        group_size=group_size,
        scale_format=native.SCALE_FORMATS[_scale_format_of(named)],
        n_tiles=len(bits),
        payload_bytes=payload.numel(),
        zero_point_bytes=len(zero_points),
        payload=at["payload"],
        bits=at["bits"],
        groups=at["groups"],
        scales=at["scales"],
        octaves=at["scale_base"],
        zero_points=at["zero_points"],
        tile_starts=at["tile_starts"],
        zero_offsets=at["zero_offsets"],
        row_offsets=at["row_offsets"],
        row_permutation=at["row_permutation"],
        column_permutation=at["column_permutation"],
        row_index_bytes=0 if rows is None else rows.element_size(),
        column_index_bytes=0 if columns is None else columns.element_size(),
        palettes=at["palettes"],
    )
    library.check(matrix, name="packed weight")
    given = tuple(section for section in sections if section is not None)
    return CheckedMatrix(matrix, native.matrices([matrix]), tuple(sections), given, versions_of(given))


def _given(named: Mapping[str, torch.Tensor | None], name: str) -> torch.Tensor:
    section = named[name]
    if section is None:
        raise FormatError(f"packed weight: no {name}", hint="load its state dict again")
    return section


def _scale_format_of(named: Mapping[str, torch.Tensor | None]) -> ScaleFormat:
    """How scales are stored: only logarithms count from a base, and LOG4 has nine bytes a tile."""
    if named["scale_base"] is None:
        return ScaleFormat.FLOAT16
    is_log4 = _given(named, "scales").shape[1:] == ScaleFormat.LOG4.tile_shape
    return ScaleFormat.LOG4 if is_log4 else ScaleFormat.LOG8


def _check_arrays(
    named: Mapping[str, torch.Tensor | None], *, n_rows: int, n_columns: int, n_blocks: int
) -> None:
    """Types and lengths: what the kernels cannot see in an address."""
    scale_format, n_tiles = _scale_format_of(named), len(_given(named, "bits"))
    n_scales = n_tiles * scale_format.tile_shape[0]
    indices = (torch.int16, torch.int32)
    expected = {
        "payload": ((torch.uint8,), None),
        "bits": ((torch.uint8,), n_tiles),
        "groups": ((torch.int16,), n_tiles),
        "scales": ((torch.uint8 if scale_format.is_log else torch.int16,), n_scales),
        "zero_points": ((torch.uint8,), None),
        "tile_starts": ((torch.int32,), n_blocks + 1),
        "zero_offsets": ((torch.int64,), n_blocks),
        "row_offsets": ((torch.int64,), n_blocks),
        "scale_base": ((torch.int8,), n_blocks),
        "row_permutation": (indices, n_rows),
        "column_permutation": (indices, n_columns),
        "palettes": ((torch.uint8,), PALETTE_BYTES),
    }
    problems = []
    for name, (dtypes, length) in expected.items():
        section = named[name]
        if section is None and name not in OPTIONAL:
            problems.append(f"no {name}")
        elif section is not None:
            if section.device.type != "cpu":
                raise RequestError(
                    f"a packed weight lies on {section.device}, its input on the processor",
                    hint="move both to the same device",
                )
            if section.dtype not in dtypes or not section.is_contiguous():
                problems.append(f"{name} of {section.dtype}, expected contiguous {dtypes[0]}")
            if length is not None and section.numel() != length:
                problems.append(f"{name} holds {section.numel()} values, expected {length}")
    if problems:
        raise FormatError(f"packed weight: {'; '.join(problems)}", hint="load its state dict again")


class PackedWeight(nn.Module):
    """The packed bytes of one matrix, and the decoding of any of its row blocks.

    Parameters
    ----------
    packed : PackedTensor
        Checked sections.
    memory : Memory, optional
        Where they go; without it an `Arena` of their own. Weights of one network share one.

    Attributes
    ----------
    correction : Correction or None
        What is added to the tiles: by `dequantize` and by linears, not by `decode`.
    """

    payload: torch.Tensor
    bits: torch.Tensor
    groups: torch.Tensor
    scales: torch.Tensor
    scale_base: torch.Tensor | None
    zero_points: torch.Tensor
    tile_starts: torch.Tensor
    zero_offsets: torch.Tensor
    row_offsets: torch.Tensor
    column_permutation: torch.Tensor | None
    row_permutation: torch.Tensor | None
    palettes: torch.Tensor | None

    def __init__(self, packed: PackedTensor, *, memory: Memory | None = None) -> None:
        super().__init__()
        packed = expanded(packed)
        self.grid: TileGrid = packed.grid
        self.scale_format: ScaleFormat = packed.scale_format
        memory = memory or Arena()
        place = memory.place
        self.register_buffer("payload", torch.from_numpy(place(packed.payload)).view(-1, UNIT_BYTES))
        self.register_buffer("bits", torch.from_numpy(place(packed.bits)))
        self.register_buffer("groups", torch.from_numpy(place(packed.groups).view(np.int16)))
        # float16 scales as their bits: casting a model converts floating-point buffers
        scales, base = place(packed.scales), packed.scale_base
        self.register_buffer(
            "scales", torch.from_numpy(scales if base is not None else scales.view(np.int16))
        )
        self.register_buffer("zero_points", torch.from_numpy(place(packed.zero_points)))
        self.register_buffer("scale_base", None if base is None else torch.from_numpy(_octaves(base)))
        blocks = tile_row_blocks(packed)
        starts = np.searchsorted(blocks, np.arange(packed.grid.n_row_blocks + 1))
        self.register_buffer("tile_starts", torch.from_numpy(starts.astype(np.int32)))
        zero_offsets = zero_point_offsets(packed.bits)[starts[:-1]]
        self.register_buffer("zero_offsets", torch.from_numpy(zero_offsets))
        self.register_buffer("row_offsets", torch.from_numpy(place(packed.row_offsets).view(np.int64)))
        columns, rows = packed.column_permutation, packed.row_permutation
        # a copy: siblings share the file's, and a change of one would not be seen by the others
        self.register_buffer("column_permutation", None if columns is None else _index(columns.copy()))
        self.register_buffer("row_permutation", None if rows is None else _index(place(rows)))
        palettes = packed.palettes
        self.register_buffer("palettes", None if palettes is None else torch.from_numpy(place(palettes)))
        added = packed.correction
        self.correction = None if added is None else correction_of(added, packed.grid, memory=memory)
        self._checked: CheckedMatrix | None = None
        assert int(tile_offsets(packed.bits, packed.grid)[-1]) == len(packed.payload)

    @property
    def n_rows(self) -> int:
        """Rows of the matrix."""
        return self.grid.n_rows

    @property
    def n_columns(self) -> int:
        """Columns of the matrix."""
        return self.grid.n_columns

    def decode(self, blocks: torch.Tensor) -> torch.Tensor:
        """Return the stored rows of some row blocks; int64 [n] to float32 [n * 16, padded_columns]."""
        grid = self.grid
        tiles, block_of = self._tiles_of(blocks)
        out = torch.zeros(len(blocks), grid.n_groups, TILE_ROWS, grid.group_size, device=self.payload.device)
        units, zero_bytes = self._positions(tiles, block_of, blocks)
        tags = self.bits[tiles]
        for tag in torch.unique(tags).tolist():
            which = (tags == tag).nonzero()[:, 0]
            values = self._levels(units[which], tag).float()
            values.sub_(self._zero_points(zero_bytes[which], tag))
            values.mul_(self._scales(tiles[which], blocks[block_of[which]])[:, :, None])
            out[block_of[which], self.groups[tiles[which]].long() & 0xFFFF] = (
                values  # int16 holds the bits of u16
            )
        return out.transpose(1, 2).reshape(len(blocks) * TILE_ROWS, grid.padded_columns)

    def dequantize(self) -> torch.Tensor:
        """Return the whole matrix in the source's order; float32 [n_rows, n_columns]."""
        blocks = torch.arange(self.grid.n_row_blocks, device=self.payload.device)
        stored = self.decode(blocks)[: self.n_rows, : self.n_columns]
        result = stored
        if self.row_permutation is not None:
            result = torch.empty_like(stored)
            result[index_of(self.row_permutation)] = stored
        if self.column_permutation is not None:
            rows, result = result, torch.empty_like(result)
            result[:, index_of(self.column_permutation)] = rows
        return result if self.correction is None else result + self.correction.dequantize()

    def matrix(self) -> native.Matrix:
        """Return this matrix as the native kernels take it; see `checked`."""
        return self.checked().matrix

    def checked(self) -> CheckedMatrix:
        """Return this matrix as the native kernels take it; checked again after buffers changed.

        Raises
        ------
        FormatError
            If what was loaded into the buffers is not a packed matrix.
        """
        sections = _IN_ORDER(self._buffers)  # as `sections`, three times as fast; graphs cannot trace it
        if self._checked is None or not self._checked.is_of(sections):
            sizes = {"n_rows": self.n_rows, "n_columns": self.n_columns, "group_size": self.grid.group_size}
            self._checked = checked_matrix(sections, **sizes)
        return self._checked

    def sections(self) -> tuple[torch.Tensor | None, ...]:
        """Return the buffers in the order of `SECTIONS`."""
        return tuple([self._buffers[name] for name in SECTIONS])

    def _tiles_of(self, blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Stored tiles of the row blocks, and the position in `blocks` that each belongs to."""
        starts, ends = self.tile_starts[blocks].long(), self.tile_starts[blocks + 1].long()
        counts = ends - starts
        block_of = torch.repeat_interleave(torch.arange(len(blocks), device=blocks.device), counts)
        first = torch.cumsum(counts, 0) - counts
        return torch.arange(len(block_of), device=blocks.device) - first[block_of] + starts[
            block_of
        ], block_of

    def _positions(
        self, tiles: torch.Tensor, block_of: torch.Tensor, blocks: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """First unit of payload and zero-point byte of each tile: where its row block starts, and sums."""
        tags, first = self.bits[tiles].long(), torch.searchsorted(block_of, block_of)

        def within_block(of_tag: npt.NDArray[np.integer[Any]]) -> torch.Tensor:
            sizes = torch.from_numpy(of_tag).to(tags.device)[tags]
            before = torch.cumsum(sizes, 0, dtype=torch.int64) - sizes
            return before - before[first]

        units = self.row_offsets[blocks] // UNIT_BYTES
        return (
            units[block_of] + within_block(tile_bytes(self.grid.group_size) // UNIT_BYTES),
            self.zero_offsets[blocks][block_of] + within_block(ZERO_POINT_BITS) * (TILE_ROWS // 8),
        )

    def _levels(self, first_units: torch.Tensor, tag: int) -> torch.Tensor:
        """Return what the codes of tiles stand for on the scale of zero points; uint8 [n, 16, group_size]."""
        if can_unpack(self.payload):
            self.matrix()  # checked: the kernels trust tags
            return call_unpack(self.payload, first_units, tag, self.grid.group_size, palettes=self.palettes)
        width, group_size = int(CODE_BITS[tag]), self.grid.group_size
        n_units = int(tile_bytes(group_size)[tag]) // UNIT_BYTES
        index = first_units[:, None] + torch.arange(n_units, device=first_units.device)
        stored = self.payload[index]
        if tag == TRITS.tag:
            return decode_levels(decode_trits(stored.flatten(1), group_size), tag)
        lines = stored.view(len(first_units), -1, width, LINE_BYTES)
        return decode_levels(decode_bricks(lines, width), tag, self.palettes)

    def _zero_points(self, first: torch.Tensor, tag: int) -> torch.Tensor | float:
        """Return what is taken from levels: float32 [n, 16, 1], or one number for all."""
        width = int(ZERO_POINT_BITS[tag])
        if width == 0:
            return float(MIDDLE)
        stored = self.zero_points[first[:, None] + torch.arange(2 * width, device=first.device)]
        return decode_zero_points(stored, width)[:, :, None]

    def _scales(self, tiles: torch.Tensor, blocks: torch.Tensor) -> torch.Tensor:
        """Scale of each row of each tile; float32 [n, 16]."""
        if self.scale_base is None:
            return self.scales[tiles].view(torch.float16).float()
        stored = self.scales[tiles]
        if self.scale_format is ScaleFormat.LOG4:
            stored = decode_log4(stored)
        steps = stored.int() - LOG_SCALE_BIAS
        octave = torch.div(steps, LOG_STEPS, rounding_mode="floor")
        factors = (
            torch.exp2(torch.arange(LOG_STEPS, dtype=torch.float64) / LOG_STEPS).float().to(steps.device)
        )
        exponent = octave + self.scale_base[blocks].int()[:, None]
        return torch.ldexp(factors[(steps - octave * LOG_STEPS).long()], exponent)

    def __deepcopy__(self, memo: dict[int, Any]) -> PackedWeight:
        """Copy the buffers; plain copying would go through pickling, which is refused."""
        twin = PackedWeight.__new__(PackedWeight)
        memo[id(self)] = twin
        nn.Module.__init__(twin)
        twin.grid, twin.scale_format, twin.training = self.grid, self.scale_format, self.training
        twin.correction = copy.deepcopy(self.correction, memo)
        twin._checked = None
        for name, buffer in self._buffers.items():
            twin.register_buffer(name, None if buffer is None else copy.deepcopy(buffer, memo))
        return twin

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        """Refuse to be pickled."""
        raise RequestError(
            "a packed model cannot be pickled",
            hint="save it with result.save(FOLDER), open it with laq.load(FOLDER); its state_dict() pickles",
        )


def _index(permutation: np.ndarray[Any, Any]) -> torch.Tensor:
    """A permutation as it is stored: torch lacks most operations of its types, but moves their bits."""
    return torch.from_numpy(permutation.view(np.dtype(f"i{permutation.itemsize}")))


def index_of(permutation: torch.Tensor) -> torch.Tensor:
    """Return a stored permutation as int64."""
    return permutation.long() & (0xFFFF if permutation.dtype == torch.int16 else 0xFFFFFFFF)


def _octaves(base: np.ndarray[Any, np.dtype[np.float16]]) -> np.ndarray[Any, np.dtype[np.int8]]:
    _, exponent = np.frexp(base.astype(np.float32))
    return np.asarray(exponent - 1, np.int8)
