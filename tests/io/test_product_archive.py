"""Weights in a product code on disk and back: dense linears and embeddings, priced as they are stored."""

import json
import shutil

import numpy as np
import pytest
import torch
from torch import nn

import laq
from laq.core.errors import FormatError, RequestError
from laq.core.plan import Plan
from laq.io.archive import folder_bytes, open_archive, verify_hashes
from laq.io.manifest import MANIFEST
from laq.io.safetensors import RawTensor, open_tensors, write_tensors

SHARD = "packed-00001-of-00001.safetensors"


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.first, self.second = nn.Embedding(90, 64), nn.Linear(64, 160), nn.Linear(160, 90)

    def forward(self, ids):
        return self.second(torch.relu(self.first(self.embedding(ids))))


def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Network()


def quantized(**options):
    generator = torch.Generator().manual_seed(0)
    data = [(torch.randint(0, 90, (64,), generator=generator),) for _ in range(6)]
    settings = {"bpw": 13.0, "formats": "product", "unit": "tensor", "compare": False} | options
    return laq.quantize(network(), data=data, **settings)


@pytest.fixture(scope="module")
def result():
    return quantized()


@pytest.fixture(scope="module")
def folder(result, tmp_path_factory):
    return result.save(tmp_path_factory.mktemp("product") / "out")


@pytest.fixture
def copied(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def test_every_weight_has_a_code_and_the_folder_is_within_the_plan(result, folder):
    assert all(weight.product is not None for weight in result.plan.weights)
    assert folder_bytes(folder) <= result.plan.size_bytes <= result.plan.budget_bytes
    # a weight's line in the header is counted as if it had tiles
    assert result.plan.size_bytes - folder_bytes(folder) < 1000 * len(result.plan.weights)
    assert verify_hashes(open_archive(folder)) == []


def test_what_is_opened_is_what_was_saved(result, folder, opened_as_saved):
    opened_as_saved(result, folder)


def test_the_loaded_module_is_dense_and_computes_what_the_result_computes(result, folder):
    loaded, ids = laq.load(folder, module=network()), torch.arange(90)
    assert type(loaded.first) is nn.Linear
    assert type(loaded.embedding) is nn.Embedding
    assert torch.equal(loaded.first.weight, torch.from_numpy(result.packed["first.weight"].dequantize()))
    with torch.inference_mode():
        assert torch.equal(loaded(ids), result.model(ids))
    assert result.record.kl_nats < 0.2
    assert not torch.equal(network().first.weight, loaded.first.weight)


def test_plans_keep_codes_and_more_bytes_lose_less(result, tmp_path):
    result.plan.save(tmp_path / "plan.json")
    opened = Plan.open(tmp_path / "plan.json")
    assert [w.product for w in opened.weights] == [w.product for w in result.plan.weights]
    small = quantized(bpw=10.5)
    assert small.plan.size_bytes < result.plan.size_bytes
    assert small.plan.predicted_loss_nats > result.plan.predicted_loss_nats


def test_the_same_request_gives_the_same_bytes(folder, tmp_path):
    again = quantized().save(tmp_path / "again")
    assert (again / SHARD).read_bytes() == (folder / SHARD).read_bytes()


def test_a_measurement_without_product_codes_makes_no_plan_of_them():
    data = [(torch.randint(0, 90, (64,), generator=torch.Generator().manual_seed(0)),) for _ in range(3)]
    curves = laq.measure(network(), laq.calibrate(network(), data))
    with pytest.raises(
        RequestError, match=r"nothing is known of product .*\nhint: measure again with --format product"
    ):
        laq.allocate(curves, bpw=13.0, formats="product")


def test_one_code_for_the_whole_network_is_refused():
    with pytest.raises(RequestError, match="for each weight\nhint: choose unit tensor"):
        quantized(unit="network")


@pytest.mark.parametrize(
    ("fields", "tensors", "problem"),
    [
        ({"product": "product5x2"}, {}, "no product code is called 'product5x2'"),
        ({"product": "product8x1"}, {}, "expected"),
        ({"rank": 2}, {}, "a correction of a product code"),
        ({"product": ""}, {}, "payload is missing"),
        ({}, {"first.weight.product_codes": None}, "product_codes is missing"),
        ({}, {"first.weight.product_scales": np.full(160, np.nan, np.float16)}, "not finite"),
        ({}, {"first.weight.product_scales": np.ones(160, np.float32)}, "holds float32"),
    ],
)
def test_damage_is_named(copied, fields, tensors, problem):
    content = json.loads((copied / MANIFEST).read_text())
    content["weights"][1] |= fields
    (copied / MANIFEST).write_text(json.dumps(content))
    held = {name: RawTensor.of(raw.array().copy()) for name, raw in open_tensors(copied / SHARD).items()}
    for name, array in tensors.items():
        held.pop(name)
        if array is not None:
            held[name] = RawTensor.of(array)
    write_tensors(copied / SHARD, held, metadata={"format": "laq"})
    with pytest.raises(FormatError, match=problem):
        laq.load(copied, module=network())


def test_flipped_bytes_are_refused(folder, copied, refused_when_flipped):
    refused_when_flipped(folder, copied, network)
