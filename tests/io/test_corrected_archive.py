"""Corrections of low rank on disk: what was predicted, opened as it was, and refused when damaged."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import laq
from laq.core.correction import Amount, Kind
from laq.core.curve import Curves
from laq.core.errors import FormatError, LaqError
from laq.core.plan import Plan
from laq.io.archive import folder_bytes, open_archive, verify_hashes
from laq.io.manifest import MANIFEST
from laq.io.safetensors import RawTensor, open_tensors, write_tensors

SHARD = "packed-00001-of-00001.safetensors"


class Network(nn.Module):
    """An embedding and two linears, one product of which outweighs the rest."""

    def __init__(self):
        super().__init__()
        self.embedding, self.first, self.second = nn.Embedding(40, 64), nn.Linear(64, 96), nn.Linear(96, 48)

    def forward(self, ids):
        return self.second(torch.relu(self.first(self.embedding(ids))))


def network():
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        made = Network()
        for linear in (made.first, made.second):
            rows, columns = linear.weight.shape
            linear.weight += 0.4 * torch.outer(torch.randn(rows), torch.randn(columns))
        return made


def batches():
    generator = torch.Generator().manual_seed(0)
    return [(torch.randint(0, 40, (64,), generator=generator),) for _ in range(6)]


def quantized(low_rank=2, **options):
    return laq.quantize(
        network(), bpw=14.0, data=batches(), compare=False, group_size=32, low_rank=low_rank, **options
    )


@pytest.fixture(scope="module")
def result():
    return quantized()


@pytest.fixture(scope="module")
def folder(result, tmp_path_factory):
    return result.save(tmp_path_factory.mktemp("corrected") / "out")


@pytest.fixture
def copied(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def changed(folder, *, tensors=None, **fields):
    """Rewrite sections and keys of the first weight."""
    content = json.loads((folder / MANIFEST).read_text())
    content["weights"][1] |= fields
    (folder / MANIFEST).write_text(json.dumps(content))
    found = open_tensors(folder / SHARD)
    held = {name: RawTensor.of(raw.array().copy()) for name, raw in found.items()}
    for name, array in (tensors or {}).items():
        held.pop(name, None)
        if array is not None:
            held[name] = RawTensor.of(array)
    write_tensors(folder / SHARD, held, metadata={"format": "laq"})


def test_linears_have_the_rank_that_was_asked_for(result):
    assert {weight.name: weight.amount for weight in result.plan.weights} == {
        "embedding.weight": None,
        "first.weight": Amount(Kind.RANK, 2),
        "second.weight": Amount(Kind.RANK, 2),
    }


def test_what_is_opened_is_what_was_saved(result, folder, opened_as_saved):
    archive = opened_as_saved(result, folder)
    assert verify_hashes(archive) == []


def test_the_folder_is_within_the_plan_and_the_prediction_is_tight(result, folder):
    assert folder_bytes(folder) <= result.plan.size_bytes <= result.plan.budget_bytes
    assert result.plan.size_bytes - folder_bytes(folder) < 512


def test_the_loaded_module_computes_what_the_result_computes(result, folder):
    ids = batches()[0][0]
    with torch.inference_mode():
        assert torch.equal(laq.load(folder, module=network())(ids), result.model(ids))


def test_the_same_request_gives_the_same_bytes(folder, tmp_path):
    again = quantized().save(tmp_path / "again")
    assert (again / SHARD).read_bytes() == (folder / SHARD).read_bytes()


def test_one_product_that_outweighs_the_rest_is_worth_its_bytes(result):
    without = quantized(low_rank=0)
    assert result.plan.predicted_loss_nats < 0.8 * without.plan.predicted_loss_nats
    assert result.record.kl_nats < 0.9 * without.record.kl_nats


def test_the_third_version_has_corrections_and_others_stay_what_they_were(folder, tmp_path):
    assert json.loads((folder / MANIFEST).read_text())["version"] == 3
    plain = quantized(low_rank=0, scale_format="log8").save(tmp_path / "plain")
    content = json.loads((plain / MANIFEST).read_text())
    assert content["version"] in (1, 2)
    assert all("rank" not in weight for weight in content["weights"])


def test_plans_and_curves_keep_ranks(result, tmp_path):
    result.plan.save(tmp_path / "plan.json")
    assert [weight.amount and weight.amount.n for weight in Plan.open(tmp_path / "plan.json").weights] == [
        None,
        2,
        2,
    ]
    stats = laq.calibrate(network(), batches())
    curves = laq.measure(network(), stats, group_size=32, low_rank="auto")
    curves.save(tmp_path / "curves")
    opened = Curves.open(tmp_path / "curves")
    ranks = [(weight.name, weight.amount.n) for weight in opened.alternatives]
    assert ranks == [(f"{name}.weight", rank) for name in ("first", "second") for rank in (1, 2, 4)]
    assert opened.low_rank == "auto"
    for mine, read in zip(curves.alternatives, opened.alternatives, strict=True):
        assert np.array_equal(mine.loss_nats, read.loss_nats)


def test_more_rank_predicts_less_loss_of_every_format_but_the_finest():
    stats = laq.calibrate(network(), batches())
    curves = laq.measure(network(), stats, group_size=32, low_rank="auto")
    by_rank = {
        one.amount.n if one.amount else 0: one.loss_nats[3].sum()  # two bits
        for one in (*curves.weights, *curves.alternatives)
        if one.name == "first.weight"
    }
    assert by_rank[1] < 0.7 * by_rank[0]
    assert by_rank[4] < by_rank[1]


def test_a_measurement_with_another_rank_is_refused(tmp_path):
    stats = laq.calibrate(network(), batches())
    stats.save(tmp_path / "stats")
    laq.measure(network(), stats, group_size=32, low_rank=2).save(tmp_path / "curves")
    with pytest.raises(LaqError, match=r"low rank, outliers .*'2', '0'\), asked for .*'0', '0'\)"):
        quantized(low_rank=0, measured=tmp_path)


@pytest.mark.parametrize("low_rank", ["much", -1, 1000])
def test_what_is_no_rank_is_refused_before_the_slow_work(low_rank):
    with pytest.raises(LaqError, match="hint: choose a number"):
        laq.quantize("no-such-network", bpw=4.0, low_rank=low_rank)


@pytest.mark.parametrize(
    ("fields", "tensors", "problem"),
    [
        ({"rank": 3}, {}, r"low_rank has shape \(2, 160\), rank 3 needs \(3, 160\)"),
        ({"rank": 65}, {}, "rank 65 of shape"),
        ({"rank": "2"}, {}, "rank '2'"),
        ({"rank": True}, {}, "rank True"),
        ({"kind": "embedding"}, {}, "a correction of a weight that is 'embedding'"),
        ({}, {"first.weight.low_rank": None}, "low_rank is missing"),
        ({}, {"first.weight.low_rank": np.zeros((2, 160), np.uint8)}, "holds uint8"),
        ({}, {"first.weight.low_rank": np.zeros((2, 159), np.int8)}, r"needs \(2, 160\)"),
        ({}, {"first.weight.low_rank_scales": np.array([np.inf, 1], np.float16)}, "not finite"),
    ],
)
def test_damage_is_named(copied, fields, tensors, problem):
    changed(copied, tensors=tensors, **fields)
    with pytest.raises(FormatError, match=problem):
        laq.load(copied, module=network())


@pytest.mark.parametrize("version", [1, 2])
def test_a_correction_in_an_earlier_version_is_damage(copied, version):
    content = json.loads((copied / MANIFEST).read_text())
    (copied / MANIFEST).write_text(json.dumps(content | {"version": version}))
    with pytest.raises(FormatError, match=f"rank in version {version}"):
        open_archive(copied)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.floats(0, 1, exclude_max=True), value=st.integers(1, 255))
def test_a_flipped_byte_is_refused(folder, copied, position, value):
    data = bytearray((folder / SHARD).read_bytes())
    start = data.index(b"}")  # the end of the metadata, of which nothing is read
    data[start + int(position * (len(data) - start))] ^= value
    (copied / SHARD).write_bytes(data)
    with pytest.raises(LaqError):
        laq.load(copied, module=network())


def test_a_packed_tensor_without_its_correction_is_another(result):
    packed = result.packed["first.weight"]
    assert packed.size_bytes - replace(packed, correction=None).size_bytes == 2 * (96 + 64 + 2)
