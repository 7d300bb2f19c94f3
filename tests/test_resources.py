"""Memory and disk are looked at before calibration starts."""

import shutil
from collections import namedtuple

import psutil
import pytest
import torch
from torch import nn

from laq.core.errors import NetworkError, ResourceError
from laq.networks import describe
from laq.resources import (
    DENSE_BYTES,
    PLAN_BYTES,
    WORKING_BYTES,
    check_distillation,
    check_resources,
)

Memory = namedtuple("Memory", "available total")


@pytest.fixture
def network():
    return describe(nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64)))


def batches():
    return [(torch.zeros(1, 64),)]


def test_enough_is_enough(network):
    check_resources(network, batches())


def test_too_little_memory_is_refused_with_the_amount(network, monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: Memory(WORKING_BYTES // 2, 1 << 40))
    with pytest.raises(ResourceError, match=r"needs about 1\.1 GB more memory, 0\.5 GB are free"):
        check_resources(network, batches())


def test_too_little_disk_is_refused_with_the_folder(network, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 90, 10))
    with pytest.raises(ResourceError, match="parks up to") as error:
        check_resources(network, batches())
    assert "TMPDIR" in error.value.hint


def test_distillation_wants_the_dense_network_too(network, monkeypatch):
    needed = WORKING_BYTES + (PLAN_BYTES + DENSE_BYTES) * network.n_params
    monkeypatch.setattr(psutil, "virtual_memory", lambda: Memory(needed, 1 << 40))
    check_distillation(network)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: Memory(needed - 1, 1 << 40))
    with pytest.raises(ResourceError, match="GB more memory"):
        check_distillation(network)


def test_distillation_of_what_has_nothing_to_tune_is_refused_at_once():
    with pytest.raises(NetworkError, match="norm gains or biases"):
        check_distillation(describe(nn.Sequential(nn.Linear(64, 64, bias=False), nn.ReLU())))
