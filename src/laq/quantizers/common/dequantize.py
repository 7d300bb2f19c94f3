"""From what a quantizer returned back to values."""

from __future__ import annotations

import numpy as np
import torch

from laq.core.groups import TILE_ROWS
from laq.core.packing import TAGS
from laq.core.scheme import ScaleFormat
from laq.kernels.reference import levels_of
from laq.quantizers import Codes
from laq.ranges.common.grid import decoded_scales


def dequantize_columns(
    codes: Codes,
    choices: torch.Tensor,
    scale_format: ScaleFormat,
    palettes: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return float32 [columns, rows].

    Parameters
    ----------
    codes : Codes
        What a quantizer returned.
    choices : uint8 [groups, row blocks]
        Candidate format of every tile.
    scale_format : ScaleFormat
        How scales are stored.
    palettes : uint8 [row blocks or 1, `laq.core.formats.table.PALETTE_BYTES`], or None
        Learned entries, where tiles use them.
    """
    n_groups, n_blocks = choices.shape
    group_size = len(codes.codes) // n_groups
    split = codes.codes.numpy().reshape(n_groups, group_size, n_blocks, TILE_ROWS)
    tiles = np.ascontiguousarray(split.transpose(0, 2, 3, 1)).reshape(-1, TILE_ROWS, group_size)
    learned = None
    if palettes is not None:  # of each tile
        learned = np.tile(np.broadcast_to(palettes.numpy(), (n_blocks, palettes.shape[1])), (n_groups, 1))
    levels = levels_of(tiles, TAGS[choices.numpy()].ravel(), learned)
    columns_first = levels.reshape(n_groups, n_blocks, TILE_ROWS, group_size).transpose(0, 3, 1, 2)
    centred = torch.from_numpy(columns_first.astype(np.float32, order="C").reshape(n_groups, group_size, -1))
    scales = decoded_scales(codes.scales, scale_format)
    centred.sub_(codes.zero_points[:, None]).mul_(scales[:, None])
    return centred.view(codes.codes.shape)
