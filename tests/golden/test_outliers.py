"""The bytes of outliers stay what they were when version 4 was released."""

import json
from pathlib import Path

import numpy as np

from laq.core.outliers import Outliers

GOLDEN = json.loads((Path(__file__).parent / "outliers_v4.json").read_text())
SHAPE = (18, 283)


def elements():
    k = np.arange(GOLDEN["n"])
    signs = np.where(k % 3 == 0, -1, 1)
    values = signs * (1 + (7 * k) % 5 / 4) * 2.0 ** -(k % 9)
    return k * 137 + (k * k) % 11, values.astype(np.float32)


def test_outliers_keep_their_bytes():
    made = Outliers.of(*elements(), SHAPE[0] * SHAPE[1])
    assert made.data.tobytes().hex() == GOLDEN["outliers"]


def test_stored_outliers_decode_to_the_same_values():
    stored = Outliers(GOLDEN["n"], np.frombuffer(bytes.fromhex(GOLDEN["outliers"]), np.uint8))
    assert stored.problems(*SHAPE) == []
    positions, values = stored.elements()
    assert np.array_equal(positions, elements()[0])
    assert values.tolist() == GOLDEN["values"]
