"""Decoding of whole row blocks in torch, equal to `reference` bit for bit; works on any device."""

from __future__ import annotations

import torch

from laq.core.formats import PALETTES, TABLES, TRELLISES
from laq.core.formats.table import TRITS_OF_BYTE
from laq.core.formats.trellis import CHAINS, TAG, WINDOW_BITS
from laq.core.groups import LINE_BYTES, TILE_ROWS
from laq.core.packing import BRICK_COLUMNS
from laq.core.qtensor import NARROW_BITS
from laq.kernels.reference import FIELD_WIDTHS, SLOTS, padded_table


def decode_bricks(lines: torch.Tensor, bits: int) -> torch.Tensor:
    """Return codes uint8 [n, 16, 32 * bricks] from lines uint8 [n, bricks, bits, 64]."""
    n, n_bricks = lines.shape[:2]
    lanes: torch.Tensor | None = None
    first = 0
    for field in FIELD_WIDTHS[bits]:
        stored = lines[:, :, first : first + field]
        per_line = SLOTS // field
        mask = (1 << field) - 1
        parts = [stored if field == 8 else (stored >> (field * i)) & mask for i in range(per_line)]
        values = torch.stack(parts, 3).view(n, n_bricks, SLOTS, LINE_BYTES)
        lanes = values if lanes is None else (lanes << field) | values
        first += field
    assert lanes is not None
    split = lanes.view(n, n_bricks, SLOTS, TILE_ROWS, 4).permute(0, 3, 1, 2, 4)
    return split.reshape(n, TILE_ROWS, n_bricks * BRICK_COLUMNS)


def decode_trits(stored: torch.Tensor, group_size: int) -> torch.Tensor:
    """Return codes uint8 [n, 16, group_size] from tiles of three values, uint8 [n, bytes of a tile]."""
    n, n_slots = len(stored), TILE_ROWS * group_size // LINE_BYTES
    end = n_slots // TRITS_OF_BYTE * LINE_BYTES
    rest = stored[:, :end].reshape(n, -1, 1, LINE_BYTES).int()
    trits = []
    for _ in range(TRITS_OF_BYTE):
        trits.append((3 * rest) >> 8)
        rest = (3 * rest) & 255
    in_lines = torch.cat(trits, 2).view(n, -1, LINE_BYTES).to(torch.uint8)
    left = (stored[:, end:, None] >> (2 * torch.arange(4, device=stored.device)).to(torch.uint8)) & 3
    lanes = torch.cat([in_lines, left.reshape(n, -1, LINE_BYTES)], 1)
    return lanes.view(n, n_slots, TILE_ROWS, 4).transpose(1, 2).reshape(n, TILE_ROWS, group_size)


def decode_levels(codes: torch.Tensor, tag: int, palettes: torch.Tensor | None = None) -> torch.Tensor:
    """Return what codes uint8 [n, 16, group_size] stand for: themselves, or entries of a table."""
    if tag < TAG:
        return codes
    if tag in PALETTES:
        assert palettes is not None
        return palettes[PALETTES[tag].entries][codes.long()]
    if tag in TABLES:
        entries = torch.from_numpy(padded_table(TABLES[tag])).to(codes.device)
        return entries[codes.long()]
    trellis, (n, _, group_size) = TRELLISES[tag - TAG], codes.shape
    chains = codes.view(n, TILE_ROWS, -1, CHAINS).transpose(1, 2).reshape(n, -1, CHAINS).int()
    windows = chains.clone()
    for back in range(1, -(-WINDOW_BITS // trellis.code_bits)):
        windows[:, back:] |= chains[:, :-back] << (trellis.code_bits * back)
    table = torch.from_numpy(trellis.table.copy()).to(codes.device)
    levels = table[(windows & (len(table) - 1)).long()]
    return levels.view(n, group_size // CHAINS, TILE_ROWS, CHAINS).transpose(1, 2).reshape(codes.shape)


def decode_zero_points(stored: torch.Tensor, bits: int) -> torch.Tensor:
    """Return zero points float32 [n, 16] from their packed bytes uint8 [n, 2 * bits]."""
    words = torch.zeros((len(stored), 2), dtype=torch.int64, device=stored.device)
    halves = stored.view(-1, 2, bits).long()  # eight zero points fill exactly `bits` bytes
    for byte in range(bits):
        words |= halves[:, :, byte] << (8 * byte)
    shifts = torch.arange(8, device=stored.device) * bits
    codes = ((words[:, :, None] >> shifts) & ((1 << bits) - 1)).view(-1, TILE_ROWS).float()
    return (codes + ((1 << (bits - 1)) - 1)) / 2 if bits <= NARROW_BITS else codes


def decode_log4(stored: torch.Tensor) -> torch.Tensor:
    """Return log steps uint8 [n, 16] from a byte of the tile and four bits a row, uint8 [n, 9]."""
    halves = torch.stack([stored[:, 1:] & 15, stored[:, 1:] >> 4], 2)
    return halves.view(-1, TILE_ROWS) + stored[:, :1]
