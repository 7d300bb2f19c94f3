"""A random quantized matrix of any shape, such as a quantizer could have chosen."""

import numpy as np
import pytest

from laq.core.formats import CANDIDATES
from laq.core.formats.table import PALETTE_BYTES
from laq.core.formats.trellis import MIDDLE
from laq.core.groups import TILE_ROWS, TileGrid
from laq.core.packing import TAGS, ZERO_POINT_BITS
from laq.core.permutation import index_dtype
from laq.core.qtensor import LOG4_SPAN, QTensor, zero_point_value
from laq.core.scheme import ScaleFormat


def _random_qtensor(
    shape,
    group_size=64,
    *,
    scale_format=ScaleFormat.LOG8,
    choices=None,
    sorts_rows=False,
    sorts_columns=False,
    seed=0,
):
    generator = np.random.default_rng(seed)
    grid = TileGrid(*shape, group_size)
    tiles = (grid.n_row_blocks, grid.n_groups)
    chosen = (
        generator.integers(0, len(CANDIDATES), tiles) if choices is None else np.broadcast_to(choices, tiles)
    )
    chosen = np.ascontiguousarray(chosen, np.uint8)
    levels = np.array([candidate.n_levels for candidate in CANDIDATES])[chosen]
    by_row = levels.repeat(TILE_ROWS, 0)
    codes = generator.integers(0, by_row.repeat(group_size, 1)).astype(np.uint8)
    bits = ZERO_POINT_BITS[TAGS[chosen]].repeat(TILE_ROWS, 0)
    zero_codes = generator.integers(0, 1 << bits.astype(np.int64)).astype(np.uint8)
    without = np.where((TAGS[chosen] > 0).repeat(TILE_ROWS, 0), MIDDLE, 0)
    zero_points = np.where(bits > 0, zero_point_value(zero_codes, bits), without).astype(np.float32)
    per_group = (grid.padded_rows, grid.n_groups)
    if scale_format is ScaleFormat.LOG8:
        scales = generator.integers(-100, 20, per_group).astype(np.int16)
    elif scale_format is ScaleFormat.LOG4:
        of_tiles = generator.integers(-100, 5, (grid.n_row_blocks, grid.n_groups)).repeat(TILE_ROWS, 0)
        scales = (of_tiles + generator.integers(0, LOG4_SPAN + 1, per_group)).astype(np.int16)
    elif scale_format is ScaleFormat.E8M0:
        scales = 8 * generator.integers(-20, 10, per_group).astype(np.int16)
    else:
        scales = np.exp2(generator.uniform(-14, 3, per_group)).astype(np.float16)
    rows = generator.permutation(grid.n_rows).astype(index_dtype(grid.n_rows)) if sorts_rows else None
    columns = (
        generator.permutation(grid.n_columns).astype(index_dtype(grid.n_columns)) if sorts_columns else None
    )
    palettes = generator.integers(0, 256, PALETTE_BYTES).astype(np.uint8)
    return QTensor(grid, scale_format, chosen, codes, scales, zero_points, rows, columns, palettes)


@pytest.fixture(scope="session")
def random_qtensor():
    """Return a function (shape, group_size, and options by keyword) -> QTensor."""
    return _random_qtensor
