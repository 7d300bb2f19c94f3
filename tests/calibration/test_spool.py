"""Parked tensors come back as they were, and their folder vanishes with the last reference."""

import gc

import numpy as np
import pytest
import torch

from laq.calibration.spool import Spool


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_tensors_come_back_as_they_were(dtype):
    tensor = torch.arange(12).to(dtype).reshape(3, 4).T
    spool = Spool()
    spool.put("a", tensor)
    assert torch.equal(spool.get("a"), tensor)
    assert spool.get("a").dtype == dtype


def test_dropped_tensors_leave_no_file():
    spool = Spool()
    spool.put("a", torch.ones(3))
    spool.drop("a")
    assert list(spool.folder.iterdir()) == []


def test_parked_arrays_are_scaled_and_outlive_the_spool():
    spool = Spool()
    folder = spool.folder
    array = np.random.default_rng(0).standard_normal((5, 5))
    parked = spool.park_array("m", array, 0.5)
    np.testing.assert_allclose(parked, (array * 0.5).astype(np.float32))
    del spool
    gc.collect()
    assert folder.exists()
    assert parked.sum() == parked.sum()
    del parked
    gc.collect()
    assert not folder.exists()
