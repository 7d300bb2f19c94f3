"""The main path on a tiny network in memory."""

import numpy as np
import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import laq
from laq.core.errors import BudgetError, DataError, NetworkError, RequestError


def tiny_llama(*, tied: bool = True) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=512,
        tie_word_embeddings=tied,
    )
    module = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 2:
                parameter.mul_(3)
    return module


def batches(**extra: object) -> list[dict[str, object]]:
    ids = torch.randint(0, 512, (9, 48), generator=torch.Generator().manual_seed(1))
    return [{"input_ids": row[None], **extra} for row in ids]


def test_a_cache_made_by_the_network_does_not_change_the_statistics():
    network = tiny_llama()
    without = laq.calibrate(network, batches(use_cache=False))
    with_cache = laq.calibrate(network, batches())
    for key, moments in without.moments.items():
        assert torch.equal(torch.tensor(moments.second), torch.tensor(with_cache.moments[key].second)), key


@pytest.mark.parametrize("tied", [True, False])
def test_a_kept_embedding_is_reloaded(tmp_path, tied):
    result = laq.quantize(
        tiny_llama(tied=tied), bpw=14.0, data=batches(use_cache=False), keep="embed_tokens", compare=False
    )
    result.save(tmp_path / "out")
    reloaded = laq.load(tmp_path / "out")
    ids = torch.arange(16)[None]
    with torch.inference_mode():
        assert torch.equal(reloaded(input_ids=ids).logits, result.model(input_ids=ids).logits)


def test_the_network_keeps_its_mode_and_dropout_does_not_reach_the_numbers():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(64, 128), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(128, 32))
    data = [(torch.randn(64, 64),) for _ in range(6)]
    first, second = (laq.quantize(module, bpw=16.0, data=data) for _ in range(2))
    assert first.record == second.record
    assert module.training


def test_max_kl_holds_on_the_selection_split():
    module = tiny_llama()
    result = laq.quantize(module, max_kl=0.005, data=batches(use_cache=False))
    kept = min(result.comparisons, key=lambda one: one.selection.kl_nats)
    assert kept.selection.kl_nats <= 0.005
    smaller = laq.quantize(module, size=int(0.97 * result.plan.budget_bytes), data=batches(use_cache=False))
    requested = next(one for one in smaller.comparisons if one.label == "tile")
    assert requested.selection.kl_nats > 0.005


def test_the_original_is_left_as_it_is():
    module = tiny_llama()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    laq.quantize(module, bpw=8.0, data=batches(use_cache=False))
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bpw": 4.0, "size": "1MB"},
        {"max_kl": 0.0},
        {"bpw": 4.0, "unit": "column"},
        {"bpw": 4.0, "quantizer": "best"},
        {"bpw": 4.0, "group_size": 48},
        {"bpw": 99.0},
        {"bpw": 0.1},
        {"bpw": 0.0},
        {"bpw": float("nan")},
        {"size": -5},
    ],
)
def test_wrong_requests_are_refused_before_any_work(options):
    with pytest.raises(laq.LaqError) as error:
        laq.quantize(tiny_llama(), data=batches(use_cache=False), **options)
    assert error.value.exit_code == 2
    assert error.value.hint


def test_a_failed_check_leaves_the_old_archive(tmp_path, monkeypatch):
    result = laq.quantize(tiny_llama(), bpw=12.0, data=batches(use_cache=False), compare=False)
    result.save(tmp_path / "out")
    before = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    monkeypatch.setattr("laq.runtime.result.folder_bytes", lambda folder: 1 << 40)
    with pytest.raises(laq.LaqError, match="over the budget"):
        result.save(tmp_path / "out")
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_plan_of_least_kl_on_the_selection_split_is_kept():
    result = laq.quantize(tiny_llama(), bpw=10.0, data=batches(use_cache=False))
    assert {"tile", "tensor", "uniform"} <= {one.label for one in result.comparisons}
    best = min(result.comparisons, key=lambda one: one.selection.kl_nats)
    assert result.plan is best.plan
    assert result.record == best.test
    assert all(one.plan.size_bytes <= result.plan.budget_bytes for one in result.comparisons)
    assert best.label in result.verdict
    assert result.verdict in repr(result)
    assert len(repr(result)) < 500


def test_selection_and_test_splits_are_other_tokens_than_calibration():
    result = laq.quantize(tiny_llama(), bpw=10.0, data=batches(use_cache=False))
    first = result.comparisons[0]
    hashes = {first.selection.data_hash, first.test.data_hash, result.provenance["data_hash"]}
    assert len(hashes) == 3


def test_a_long_source_still_fits_the_reserved_room(tmp_path):
    import dataclasses

    network = dataclasses.replace(laq.open_network(tiny_llama()), source="x" * 100_000)
    result = laq.quantize(network, bpw=12.0, data=batches(use_cache=False), compare=False)
    folder = result.save(tmp_path / "out")
    assert sum(file.stat().st_size for file in folder.iterdir()) <= result.plan.size_bytes


def test_a_packed_model_refuses_save_pretrained(tmp_path):
    model = laq.quantize(tiny_llama(), bpw=12.0, data=batches(use_cache=False), compare=False).model
    with pytest.raises(laq.LaqError, match="save_pretrained") as error:
        model.save_pretrained(tmp_path / "out")
    assert "result.save" in error.value.hint
    assert not (tmp_path / "out").exists()


def test_a_flipped_byte_is_found_when_loading(tmp_path):
    result = laq.quantize(tiny_llama(), bpw=12.0, data=batches(use_cache=False), compare=False)
    (file,) = result.save(tmp_path / "out").glob("*.safetensors")
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    with pytest.raises(laq.LaqError, match="differ from their checksums"):
        laq.load(tmp_path / "out")


def test_batches_may_be_single_tensors():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 32))
    inputs = torch.randn(6 * 64, 64)
    bare = laq.quantize(module, bpw=16.0, data=list(inputs.split(64)))
    wrapped = laq.quantize(module, bpw=16.0, data=[(part,) for part in inputs.split(64)])
    assert bare.record == wrapped.record
    with pytest.raises(laq.LaqError, match="one array"):
        laq.quantize(module, bpw=16.0, data=inputs)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"bpw": "4"}, "bpw='4' is str, not a number\nhint: for example bpw=4.0"),
        ({"max_kl": True}, "max_kl=True is bool"),
        ({"size": [60]}, "size=\\[60\\] is list"),
    ],
)
def test_limits_of_another_type_are_refused(options, words):
    with pytest.raises(RequestError, match=words):
        laq.quantize(nn.Linear(64, 64), data=[torch.zeros(2, 64)] * 3, **options)


def test_a_module_without_data_is_told_how_to_give_some():
    with pytest.raises(DataError, match=r"a module needs data\nhint: .*data="):
        laq.quantize(nn.Sequential(nn.Linear(64, 64)), bpw=12.0)


def test_a_class_instead_of_a_module_is_refused(tmp_path):
    module = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    laq.quantize(module, bpw=14.0, data=list(torch.randn(6, 8, 64)), compare=False).save(tmp_path / "out")
    with pytest.raises(RequestError, match="module is type, not a module\nhint: pass an instance"):
        laq.load(tmp_path / "out", module=nn.Sequential)


@pytest.mark.parametrize(("bpw", "words"), [(0.5, "the tables alone take"), (40.0, "the original takes")])
def test_a_limit_out_of_range_tells_the_side_it_is_on(bpw, words):
    with pytest.raises(BudgetError, match=words):
        laq.quantize(nn.Sequential(nn.Linear(64, 64)), bpw=bpw, data=list(torch.randn(6, 8, 64)))


@pytest.mark.parametrize("bpw", [4.0, 6.0, 7.0])
def test_many_classes_and_few_samples_do_not_starve_the_classes_that_none_of_them_is(bpw):
    torch.manual_seed(0)
    layers = [nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256)]
    found = laq.quantize(nn.Sequential(*layers), bpw=bpw, data=list(torch.randn(30, 32, 256)))
    kl = {one.label: one.test.kl_nats for one in found.comparisons}
    assert kl["tile"] < kl["uniform"]


def test_an_allocator_that_cannot_do_it_is_refused_before_the_slow_work(monkeypatch):
    monkeypatch.setattr("laq.measurement.calibrate", lambda *_, **__: pytest.fail("calibrated"))
    module = nn.Sequential(nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 64))
    with pytest.raises(RequestError, match=r"up to 4096 units exactly.*\nhint: use --unit tensor"):
        laq.quantize(module, bpw=4.0, data=list(torch.randn(6, 8, 4096)), allocator="ilp")


def test_another_allocator_is_named_in_the_result():
    module = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 64))
    found = laq.quantize(module, bpw=5.0, data=list(torch.randn(9, 16, 256)), unit="tensor", allocator="ilp")
    assert [one.label for one in found.comparisons] == ["tensor, ilp", "tensor", "uniform"]
    assert found.provenance["allocator"] == "ilp"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"range": "magic", "formats": "integer"}, "unknown range 'magic'"),
        ({"range": "hqq"}, "'hqq' is for integers alone"),
        ({"range": "absmax", "formats": "trellis"}, "'absmax' is for integers alone"),
    ],
)
def test_ranges_that_cannot_serve_are_refused_before_anything_is_opened(options, words):
    with pytest.raises(RequestError, match=words):
        laq.quantize(nn.Linear(64, 64), bpw=8.0, data=[], **options)


def test_a_range_is_used_and_recorded():
    module = tiny_llama()
    options = {"bpw": 14.0, "data": batches(use_cache=False), "formats": "integer", "compare": False}
    results = {name: laq.quantize(module, range=name, **options) for name in ("mse", "absmax")}
    assert {name: result.plan.range for name, result in results.items()} == {"mse": "mse", "absmax": "absmax"}
    assert results["absmax"].plan.predicted_loss_nats > results["mse"].plan.predicted_loss_nats
    assert results["absmax"].record != results["mse"].record


def test_a_transformed_network_is_judged_against_the_original_and_reloaded(tmp_path):
    module = tiny_llama()
    with torch.no_grad():
        for layer in module.model.layers:
            for linear in (layer.mlp.gate_proj, layer.mlp.up_proj):
                linear.weight.mul_(torch.linspace(0.2, 3, 64).roll(32))
    data = batches(use_cache=False)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    result = laq.quantize(module, bpw=14.0, data=data, transform="equalization,column_norm", compare=False)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert result.plan.transforms == ("equalization", "column_norm")
    assert result.plan.source_hash == laq.open_network(module).content_hash()
    gain = "model.layers.0.post_attention_layernorm.weight"
    assert not torch.equal(result.network.module.get_parameter(gain), before[gain])
    assert result.record.kl_nats < 0.01
    result.save(tmp_path / "out")
    reloaded = laq.load(tmp_path / "out")
    assert torch.equal(reloaded.get_parameter(gain), result.network.module.get_parameter(gain))
    ids = torch.arange(16)[None]
    with torch.inference_mode():
        found, expected = (one(input_ids=ids).logits for one in (reloaded, module))
    assert float((found - expected).norm() / expected.norm()) < 0.05


def test_a_plan_redoes_its_transforms_from_saved_statistics(tmp_path):
    module, data = tiny_llama(), batches(use_cache=False)
    stats = laq.calibrate(module, data)
    curves = laq.measure(module, stats, transform="column_norm")
    stats.save(tmp_path / "stats")
    curves.save(tmp_path / "curves")
    laq.allocate(laq.Curves.open(tmp_path / "curves"), bpw=12.0).save(tmp_path / "plan.json")
    plan = laq.Plan.open(tmp_path / "plan.json")
    assert plan.transforms == curves.transforms == ("column_norm",)
    once = laq.apply(module, laq.allocate(curves, bpw=12.0), stats)
    again = laq.apply(module, plan, laq.Stats.open(tmp_path / "stats"))
    assert once.network.content_hash() == again.network.content_hash() != plan.source_hash
    for name, tensor in once.packed.items():
        assert all(map(np.array_equal, tensor.sections().values(), again.packed[name].sections().values()))


def test_transforms_of_a_module_given_by_hand_are_refused():
    module = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 32))
    data = [(torch.randn(64, 64),) for _ in range(6)]
    with pytest.raises(NetworkError, match="leave --transform away"):
        laq.quantize(module, bpw=16.0, data=data, transform="awq")


def test_a_network_without_blocks_is_refused_before_the_slow_work(monkeypatch):
    monkeypatch.setattr("laq.measurement.calibrate", lambda *_, **__: pytest.fail("calibrated"))
    module = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 32))
    with pytest.raises(laq.LaqError, match=r"no list of blocks.*\nhint: leave --sequential away") as error:
        laq.quantize(module, bpw=16.0, data=list(torch.randn(6, 8, 64)), sequential=True)
    assert error.value.exit_code == 2


def test_a_plan_is_carried_out_in_sequence_with_batches():
    module, data = tiny_llama(), batches(use_cache=False)
    result = laq.quantize(module, bpw=12.0, data=data, sequential=True, compare=False)
    seen = data[:-2]
    again = laq.apply(module, result.plan, laq.calibrate(module, data, seed=0), sequential=seen)
    at_once = laq.apply(module, result.plan, laq.calibrate(module, data, seed=0))
    same = [
        {
            name: all(map(np.array_equal, tensor.sections().values(), one.packed[name].sections().values()))
            for name, tensor in result.packed.items()
        }
        for one in (again, at_once)
    ]
    assert all(same[0].values())
    assert not all(same[1].values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale_format": "log9"}, "unknown scale_format 'log9'"),
        ({"group_size": 48}, "unknown group_size 48"),
        ({"formats": "mxfp4", "group_size": 64}, "mxfp4 has scales e8m0 in groups of 32"),
    ],
)
def test_unknown_ways_to_store_are_refused_by_every_step(options, message):
    module, data = nn.Sequential(nn.Linear(64, 32)), [(torch.randn(4, 64),) for _ in range(3)]
    with pytest.raises(RequestError, match=message):
        laq.quantize(module, bpw=8, data=data, **options)
    stats = laq.calibrate(module, data)
    with pytest.raises(RequestError, match=message):
        laq.measure(module, stats, **options)
