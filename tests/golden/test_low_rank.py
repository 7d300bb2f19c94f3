"""The bytes of a correction stay what they were when version 3 was released."""

import json
from pathlib import Path

import numpy as np

from laq.core.low_rank import LowRank

GOLDEN = json.loads((Path(__file__).parent / "low_rank_v3.json").read_text())
SHAPE, RANK = (18, 283), 3


def factors():
    row, column, k = np.arange(SHAPE[0]), np.arange(SHAPE[1]), np.arange(RANK)
    rows = (((5 * row[:, None] + 3 * k) % 11) - 5) * 0.25
    columns = (((7 * k[:, None] + 2 * column) % 13) - 6) * 2.0 ** -(5 * k[:, None])
    return rows.astype(np.float32), columns.astype(np.float32)


def stored():
    """The correction as a reader finds it."""
    sections = {
        name: np.frombuffer(bytes.fromhex(text), dtype).reshape(shape)
        for name, (dtype, shape, text) in GOLDEN["sections"].items()
    }
    return LowRank(sections["low_rank"], sections["low_rank_scales"])


def test_sections_keep_their_bytes():
    found = LowRank.of(*factors()).sections()
    assert list(found) == list(GOLDEN["sections"])
    for name, array in found.items():
        dtype, shape, text = GOLDEN["sections"][name]
        assert (array.dtype.str, list(array.shape), array.tobytes().hex()) == (dtype, shape, text)


def test_stored_sections_decode_to_the_same_values():
    low_rank = stored()
    assert low_rank.problems(*SHAPE) == []
    values = low_rank.dequantize(*SHAPE)
    assert np.allclose(values[0, :8], GOLDEN["values"]["first_row_start"], rtol=1e-6)
    assert np.allclose(values[-1, -8:], GOLDEN["values"]["last_row_end"], rtol=1e-6)
    rows, columns = factors()
    assert np.abs(values - rows @ columns).max() < 0.01 * np.abs(rows @ columns).max()
