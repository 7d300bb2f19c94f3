"""Outliers and mixed group sizes on disk: what was predicted, opened as it was, refused when damaged."""

import json
import shutil

import numpy as np
import pytest
import torch
from torch import nn

import laq
from laq.core.correction import Amount, Kind
from laq.core.curve import Curves
from laq.core.errors import FormatError, LaqError, RequestError
from laq.core.plan import Plan
from laq.io.archive import folder_bytes, open_archive, verify_hashes
from laq.io.manifest import MANIFEST
from laq.io.safetensors import RawTensor, open_tensors, write_tensors

SHARD = "packed-00001-of-00001.safetensors"
SHARE = 0.01


class Network(nn.Module):
    """An embedding and three linears, two of which share an input; some weights are far beyond the others."""

    def __init__(self):
        super().__init__()
        self.embedding, self.last = nn.Embedding(40, 192), nn.Linear(96, 48)
        self.first, self.second = nn.Linear(192, 96), nn.Linear(192, 96)

    def forward(self, ids):
        inputs = self.embedding(ids)
        return self.last(torch.relu(self.first(inputs)) + self.second(inputs))


def network():
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        made = Network()
        for linear in (made.first, made.second, made.last):
            flat = linear.weight.view(-1)
            flat[torch.randperm(len(flat))[: len(flat) // 120]] *= 12
        return made


def batches():
    generator = torch.Generator().manual_seed(0)
    return [(torch.randint(0, 40, (64,), generator=generator),) for _ in range(6)]


def quantized(**options):
    options = {"bpw": 9.0, "group_size": 32} | options
    return laq.quantize(network(), data=batches(), compare=False, **options)


ALL = {"outliers": "auto", "group_size": "auto", "low_rank": "auto"}
"""For each weight the way that is worth its bytes."""

CHOICES = {
    "outliers": {"outliers": SHARE},
    "group sizes": {"group_size": "auto"},
    "all": ALL,
    "powers of two": ALL | {"scale_format": "e8m0", "formats": "all,residual_binary"},
    "outliers and mxfp4": {"outliers": SHARE, "formats": "mxfp4"},
    "tile": ALL | {"scale_per": "tile", "formats": "integer"},
    "channel": ALL | {"scale_per": "channel", "formats": "integer", "unit": "row"},
    "tensor": ALL | {"scale_per": "tensor", "formats": "integer", "unit": "tensor"},
}


@pytest.fixture(scope="module", params=CHOICES)
def result(request):
    return quantized(**CHOICES[request.param])


@pytest.fixture(scope="module")
def folder(result, tmp_path_factory):
    return result.save(tmp_path_factory.mktemp("ways") / "out")


@pytest.fixture(scope="module")
def outlier_folder(tmp_path_factory):
    return quantized(outliers=SHARE).save(tmp_path_factory.mktemp("outliers") / "out")


def test_what_is_opened_is_what_was_saved(result, folder, opened_as_saved):
    archive = opened_as_saved(result, folder)
    planned = {weight.name: (weight.grid, weight.amount) for weight in result.plan.weights}
    assert planned == {entry.name: (entry.grid, entry.amount) for entry in archive.manifest.weights}
    assert verify_hashes(archive) == []


def test_the_folder_is_within_the_plan_and_the_prediction_is_tight(result, folder):
    assert folder_bytes(folder) <= result.plan.size_bytes <= result.plan.budget_bytes
    assert result.plan.size_bytes - folder_bytes(folder) < 768


def test_the_loaded_module_computes_what_the_result_computes(result, folder):
    ids = batches()[0][0]
    with torch.inference_mode():
        assert torch.equal(laq.load(folder, module=network())(ids), result.model(ids))


def test_a_plan_that_was_saved_makes_the_same_bytes(result, tmp_path):
    result.plan.save(tmp_path / "plan.json")
    plan = Plan.open(tmp_path / "plan.json")
    assert [(w.grid, w.amount) for w in plan.weights] == [(w.grid, w.amount) for w in result.plan.weights]
    again = laq.apply(network(), plan, laq.calibrate(network(), batches()))
    for name, packed in again.packed.items():
        before, after = result.packed[name].sections(), packed.sections()
        assert list(before) == list(after)
        assert all(np.array_equal(before[section], after[section]) for section in before), name


def test_the_same_request_gives_the_same_bytes(outlier_folder, tmp_path):
    again = quantized(outliers=SHARE).save(tmp_path / "again")
    assert (again / SHARD).read_bytes() == (outlier_folder / SHARD).read_bytes()


def test_linears_have_the_share_that_was_asked_for(outlier_folder):
    amounts = {entry.name: entry.amount for entry in open_archive(outlier_folder).manifest.weights}
    of_share = Amount(Kind.OUTLIERS, round(SHARE * 192 * 96))
    assert amounts["embedding.weight"] is None
    assert amounts["first.weight"] == amounts["second.weight"] == of_share


def test_weights_far_beyond_the_others_are_worth_their_bytes():
    without, taken = quantized(bpw=8.0), quantized(bpw=8.0, outliers="auto")
    assert any(weight.amount for weight in taken.plan.weights)
    assert taken.plan.predicted_loss_nats < 0.8 * without.plan.predicted_loss_nats
    assert taken.record.kl_nats < 0.9 * without.record.kl_nats


def test_only_outliers_need_the_fourth_version(outlier_folder, tmp_path):
    assert json.loads((outlier_folder / MANIFEST).read_text())["version"] == 4
    plain = quantized(group_size="auto", scale_format="log8").save(tmp_path / "plain")
    content = json.loads((plain / MANIFEST).read_text())
    assert content["version"] in (1, 2)
    assert all("outliers" not in weight for weight in content["weights"])


@pytest.fixture(scope="module")
def curves():
    return laq.measure(
        network(), laq.calibrate(network(), batches()), group_size="auto", outliers="auto", low_rank="auto"
    )


def test_curves_keep_every_way(curves, tmp_path):
    curves.save(tmp_path / "curves")
    opened = Curves.open(tmp_path / "curves")
    assert (opened.stored.group_size, opened.outliers, opened.low_rank) == ("auto", "auto", "auto")
    mine, read = ((*one.weights, *one.alternatives) for one in (curves, opened))
    for before, after in zip(mine, read, strict=True):
        assert (before.name, before.grid, before.amount) == (after.name, after.grid, after.amount)
        assert np.array_equal(before.loss_nats, after.loss_nats)
        assert (before.row_permutation is None) == (after.row_permutation is None)
    assert {weight.grid.group_size for weight in curves.weights} == {64}
    sizes = {way.grid.group_size for way in mine if way.name == "first.weight"}
    assert sizes == {32, 64, 128}


def test_more_ways_never_predict_more(curves):
    budget = int(0.3 * curves.original_bytes)
    chosen = laq.allocate(curves, size=budget)
    for size in (32, 64, 128):
        alone = [
            way
            for way in (*curves.weights, *curves.alternatives)
            if way.grid.group_size == size and not way.amount
        ]
        plain = laq.allocate(
            Curves(
                **{
                    name: getattr(curves, name)
                    for name in curves.__slots__
                    if name not in ("weights", "alternatives")
                },
                weights=tuple(alone),
            ),
            size=budget,
        )
        assert chosen.predicted_loss_nats <= plain.predicted_loss_nats * 1.001
    assert chosen.size_bytes <= budget


def test_the_smallest_budget_counts_all_group_sizes(curves):
    from laq.allocation.common import size_range
    from laq.core.target import Unit

    smallest, _ = size_range(curves, unit=Unit.TILE, floor=True)
    assert laq.allocate(curves, size=smallest).size_bytes <= smallest
    with pytest.raises(LaqError, match="out of range"):
        laq.allocate(curves, size=smallest - 1)


def test_a_measurement_of_other_ways_is_refused(tmp_path):
    stats = laq.calibrate(network(), batches())
    stats.save(tmp_path / "stats")
    laq.measure(network(), stats, group_size="auto", outliers=0.02).save(tmp_path / "curves")
    with pytest.raises(LaqError, match=r"'auto'.*'0\.02'\), asked for .*'32'.*'0'\)"):
        quantized(measured=tmp_path)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"outliers": "much"}, "hint: choose a number up to"),
        ({"outliers": 0.5}, "hint: choose a number up to"),
        ({"outliers": 0.01, "low_rank": 2}, "beside the same tiles"),
        ({"group_size": "most"}, "choose one of: 32, 64, 128, auto"),
        ({"group_size": "auto", "mixes": 32}, "measured by fisher, without mixes"),
        ({"outliers": 0.01, "sensitivity": "hessian"}, "measured by fisher, without mixes"),
        ({"outliers": 0.01, "formats": "product"}, "neither corrections nor groups"),
    ],
)
def test_what_cannot_be_is_refused_before_the_slow_work(options, problem):
    with pytest.raises(RequestError, match=problem):
        laq.quantize("no-such-network", bpw=4.0, **options)


def changed(folder, *, tensors=None, **fields):
    """Rewrite sections and keys of the first linear."""
    content = json.loads((folder / MANIFEST).read_text())
    (entry,) = [entry for entry in content["weights"] if entry["name"] == "first.weight"]
    entry |= fields
    (folder / MANIFEST).write_text(json.dumps(content))
    held = {name: RawTensor.of(raw.array().copy()) for name, raw in open_tensors(folder / SHARD).items()}
    for name, array in (tensors or {}).items():
        held.pop(name, None)
        if array is not None:
            held[name] = RawTensor.of(array)
    write_tensors(folder / SHARD, held, metadata={"format": "laq"})


@pytest.mark.parametrize(
    ("fields", "tensors", "problem"),
    [
        ({"outliers": 185}, {}, "outliers has shape .*, outliers 185 needs"),
        ({"outliers": 10**6}, {}, r"outliers 1000000 of shape \(96, 192\)"),
        ({"outliers": "184"}, {}, "outliers '184'"),
        ({"rank": 2}, {}, "two corrections"),
        ({"kind": "embedding"}, {}, "a correction of a weight that is 'embedding'"),
        ({"product": "product4x2"}, {}, "a correction of a product code"),
        ({}, {"first.weight.outliers": None}, "outliers is missing"),
        ({}, {"first.weight.outliers": np.zeros(5, np.int8)}, "holds int8"),
        ({}, {"first.weight.outliers": np.zeros((1, 5), np.uint8)}, "of 2 axes"),
        ({}, {"first.weight.outliers": np.zeros(309, np.uint8)}, "size below"),
        ({}, {"first.weight.outliers": np.full(309, 200, np.uint8)}, "runs do not hold 184"),
    ],
)
def test_damage_is_named(outlier_folder, tmp_path, fields, tensors, problem):
    copied = shutil.copytree(outlier_folder, tmp_path / "copy")
    changed(copied, tensors=tensors, **fields)
    with pytest.raises(FormatError, match=problem):
        laq.load(copied, module=network())


def test_outliers_in_an_earlier_version_are_damage(outlier_folder, tmp_path):
    copied = shutil.copytree(outlier_folder, tmp_path / "copy")
    content = json.loads((copied / MANIFEST).read_text())
    (copied / MANIFEST).write_text(json.dumps(content | {"version": 3}))
    with pytest.raises(FormatError, match="outliers in version 3"):
        open_archive(copied)


def test_flipped_bytes_are_refused(outlier_folder, tmp_path, refused_when_flipped):
    copied = shutil.copytree(outlier_folder, tmp_path / "copy")
    refused_when_flipped(outlier_folder, copied, network)


def test_plans_say_the_group_size_that_transforms_searched_with(curves, tmp_path):
    plan = laq.allocate(curves, bpw=9.0)
    assert plan.group_size == 64
    plan.save(tmp_path / "plan.json")
    assert Plan.open(tmp_path / "plan.json").group_size == 64
