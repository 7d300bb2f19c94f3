"""What holds for archives of every kind."""

import numpy as np
import pytest

import laq
from laq.core.errors import LaqError
from laq.io.archive import open_archive

SHARD = "packed-00001-of-00001.safetensors"


@pytest.fixture
def opened_as_saved():
    """Compare every section with what was packed; returns the opened archive."""

    def check(result, folder):
        archive = open_archive(folder)
        for entry in archive.manifest.weights:
            mine, opened = result.packed[entry.name].sections(), archive.packed(entry).sections()
            assert list(opened) == list(mine)
            assert all(np.array_equal(opened[name], mine[name]) for name in mine)
        return archive

    return check


@pytest.fixture
def refused_when_flipped():
    """Flip bytes of a copied archive, one at a time: none may load."""

    def check(folder, copied, network):
        whole = (folder / SHARD).read_bytes()
        for position in np.random.default_rng(0).integers(0, len(whole), 60).tolist():
            data = bytearray(whole)
            data[position] ^= 37
            (copied / SHARD).write_bytes(data)
            with pytest.raises(LaqError):
                laq.load(copied, module=network())

    return check
