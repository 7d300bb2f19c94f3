"""What is saved is what was predicted, opens as it was, and shows every flipped bit."""

import json
import shutil

import numpy as np
import pytest
import torch
from torch import nn

import laq
from laq.core.errors import FormatError, RequestError
from laq.core.formats import CANDIDATES, FAMILIES
from laq.io.archive import folder_bytes, open_archive, verify_hashes
from laq.io.manifest import ARCHIVE_VERSIONS, MANIFEST, WeightEntry, weight_reserve_bytes
from laq.io.safetensors import read_header
from laq.io.safetensors_header import DTYPES
from laq.kernels.reference import dequantize


def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(96, 160), nn.ReLU(), nn.Linear(160, 128), nn.ReLU(), nn.Linear(128, 40)
        )


def batches():
    return [(x,) for x in torch.randn(5, 32, 96, generator=torch.Generator().manual_seed(0))]


def quantized(scale_format="log8", **options):
    return laq.quantize(
        network(), bpw=8.5, data=batches(), compare=False, scale_format=scale_format, **options
    )


@pytest.fixture(scope="module", params=["log8", "float16", "e8m0"])
def result(request):
    return quantized(request.param)


@pytest.fixture(scope="module")
def folder(result, tmp_path_factory):
    return result.save(tmp_path_factory.mktemp("archive") / "out")


def shard_of(folder):
    (shard,) = folder.glob("*.safetensors")
    return shard


def test_opened_archive_holds_what_was_saved(result, folder):
    archive = open_archive(folder)
    for entry in archive.manifest.weights:
        mine, opened = result.packed[entry.name], archive.packed(entry)
        assert list(opened.sections()) == list(mine.sections())
        for section, array in mine.sections().items():
            assert opened.sections()[section].dtype == array.dtype
            assert np.array_equal(opened.sections()[section], array)
    for kept in archive.manifest.kept:
        assert np.array_equal(
            archive.tensors[kept].array(), result.network.module.get_parameter(kept).detach().numpy()
        )


def test_loaded_module_computes_what_the_result_computes(result, folder):
    inputs = batches()[0][0]
    with torch.inference_mode():
        assert torch.equal(laq.load(folder, module=network())(inputs), result.model(inputs))


def test_folder_is_within_the_plan_and_the_prediction_is_tight(result, folder):
    assert folder_bytes(folder) <= result.plan.size_bytes <= result.plan.budget_bytes
    assert result.plan.size_bytes - folder_bytes(folder) < 512
    assert open_archive(folder).size_bytes == folder_bytes(folder)


def test_sums_are_right_after_saving(folder):
    assert verify_hashes(open_archive(folder)) == []


def test_saving_twice_gives_the_same_bytes(result, folder, tmp_path):
    again = result.save(tmp_path / "again")
    assert {f.name for f in again.iterdir()} == {f.name for f in folder.iterdir()}
    assert all((again / f.name).read_bytes() == f.read_bytes() for f in folder.iterdir())


def test_same_request_gives_the_same_bytes(result, folder, tmp_path):
    again = quantized(result.plan.scale_format.value).save(tmp_path / "again")
    assert shard_of(again).read_bytes() == shard_of(folder).read_bytes()


def test_payloads_start_at_multiples_of_64_bytes(folder):
    entries = read_header(shard_of(folder))
    starts = [entry.start for name, entry in entries.items() if name.endswith(".payload")]
    assert len(starts) == 3
    assert all(start % 64 == 0 for start in starts)


def test_every_tensor_is_aligned_to_its_elements(tmp_path):
    odd = nn.Sequential(nn.Linear(70, 40), nn.Linear(40, 24))
    data = [(x,) for x in torch.randn(5, 16, 70)]
    result = laq.quantize(odd, bpw=26, data=data, compare=False, group_size=32)
    assert any(len(packed.bits) % 2 for packed in result.packed.values()), "nothing would be out of step"
    entries = read_header(shard_of(result.save(tmp_path / "out"))).values()
    assert {entry.dtype for entry in entries} >= {"U64", "F32", "U16", "U8"}
    assert [entry.name for entry in entries if entry.start % DTYPES[entry.dtype].itemsize] == []


@pytest.mark.parametrize(
    ("formats", "scale_format", "version"),
    [
        ("integer", "log8", 1),
        ("trellis", "log8", 2),
        ("palette", "log8", 3),
        ("fp4", "log8", 3),
        ("integer,palette", "log8", 3),
        ("integer", "log4", 3),
        ("trellis", "log4", 3),
        ("integer", "e8m0", 4),
        ("mxfp4", None, 4),
        ("residual_binary", "log4", 4),
    ],
)
def test_archives_say_the_first_version_whose_readers_know_their_bytes(
    tmp_path, formats, scale_format, version
):
    module = nn.Sequential(nn.Linear(256, 160), nn.ReLU(), nn.Linear(160, 64))
    data = [torch.randn(40, 256, generator=torch.Generator().manual_seed(i)) for i in range(6)]
    result = laq.quantize(
        module,
        bpw=6.5 if version > 2 else 8,
        data=data,
        formats=formats,
        scale_format=scale_format,
        compare=False,
    )
    folder = result.save(tmp_path / "out")
    assert json.loads((folder / MANIFEST).read_text())["version"] == version
    highest = max(tag for packed in result.packed.values() for tag in packed.bits.tolist())
    of_scales = {"log4": 3, "log8": 1}.get(scale_format, 4)
    of_tags = 1 + (highest > 16) + (highest > 32) + (highest > 82)
    assert version == max(of_tags, of_scales)
    learned = any(packed.palettes is not None for packed in result.packed.values())
    assert learned == ("palette" in formats)
    inputs = torch.randn(3, 256)
    assert torch.equal(laq.load(folder, module=module)(inputs), result.model(inputs))


def test_manifest_says_what_is_in_the_archive(result, folder):
    content = json.loads((folder / MANIFEST).read_text())
    assert content["format"] == "laq-archive"
    assert content["shards"] == [shard_of(folder).name]
    assert [w["name"] for w in content["weights"]] == ["0.weight", "2.weight", "4.weight"]
    assert list(content["kept"]) == ["0.bias", "2.bias", "4.bias"]
    for weight in content["weights"]:
        assert sum(weight["tiles"].values()) == result.packed[weight["name"]].grid.n_tiles
    assert content["plan"]["size_bytes"] == result.plan.size_bytes
    assert content["provenance"]["seed"] == 0
    assert content["record"]["kl_nats"] == result.record.kl_nats


def test_tensor_types_are_those_of_the_format(result, folder):
    scales = result.plan.scale_format
    types = {name.rpartition(".")[2]: entry.dtype for name, entry in read_header(shard_of(folder)).items()}
    expected = {
        "payload": "U8",
        "bits": "U8",
        "groups": "U16",
        "scales": "U8" if scales.is_log else "F16",
        "zero_points": "U8",
        "row_offsets": "U64",
        "row_permutation": "U16",
        "column_permutation": "U16",
        "bias": "F32",
    }
    assert types == expected | ({"scale_base": "F16"} if scales.has_base else {})


@pytest.fixture
def copied(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


@pytest.mark.parametrize("section", ["payload", "scales", "zero_points"])
def test_one_flipped_bit_of_a_weight_is_detected(copied, section):
    name = f"2.weight.{section}"
    flip(copied, name, offset=5)
    assert verify_hashes(open_archive(copied)) == ["2.weight"]


@pytest.mark.parametrize("name", ["4.bias"])
def test_one_flipped_bit_of_a_kept_tensor_is_detected(copied, name):
    flip(copied, name, offset=0)
    assert verify_hashes(open_archive(copied)) == [name]


def test_swapped_columns_are_detected(copied):
    name = "2.weight:input.column_permutation"
    data = bytearray(shard_of(copied).read_bytes())
    start = read_header(shard_of(copied))[name].start
    data[start : start + 4] = data[start + 2 : start + 4] + data[start : start + 2]
    shard_of(copied).write_bytes(data)
    assert verify_hashes(open_archive(copied)) == [name]


def flip(folder, name, *, offset):
    data = bytearray(shard_of(folder).read_bytes())
    data[read_header(shard_of(folder))[name].start + offset] ^= 1
    shard_of(folder).write_bytes(data)


def test_scales_survive_as_they_are(result, folder):
    archive = open_archive(folder)
    entry = archive.manifest.weights[0]
    assert np.array_equal(dequantize(archive.packed(entry)), dequantize(result.packed[entry.name]))


def test_archive_is_replaced_by_the_next(result, copied):
    (copied / "tokenizer.old").write_text("of another version")
    result.save(copied)
    assert sorted(f.name for f in copied.iterdir()) == [MANIFEST, "packed-00001-of-00001.safetensors"]


def test_foreign_folder_is_not_replaced(result, tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(RequestError, match="not written by laq"):
        result.save(tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "precious"


def test_large_archives_are_split_into_shards(tmp_path, monkeypatch):
    monkeypatch.setattr("laq.io.archive.SHARD_BYTES", 12_000)
    path = tmp_path / "sharded"
    quantized().save(path)
    names = sorted(f.name for f in path.glob("*.safetensors"))
    assert len(names) > 2
    assert names == [f"packed-{i + 1:05d}-of-{len(names):05d}.safetensors" for i in range(len(names))]
    assert verify_hashes(open_archive(path)) == []


def test_module_that_does_not_fit_is_refused_with_all_offenders(folder):
    other = nn.Sequential(nn.Linear(96, 161), nn.ReLU(), nn.Linear(161, 128), nn.ReLU(), nn.Linear(128, 40))
    with pytest.raises(RequestError, match=r"0: expected.*2: expected.*0\.bias: expected"):
        laq.load(folder, module=other)


def test_archive_of_a_module_needs_one(folder):
    with pytest.raises(RequestError, match="hint: pass a fresh one"):
        laq.load(folder)


def test_later_version_is_refused_with_the_way_out(copied):
    content = json.loads((copied / MANIFEST).read_text())
    last = ARCHIVE_VERSIONS[-1]
    (copied / MANIFEST).write_text(json.dumps(content | {"version": last + 1}))
    with pytest.raises(
        FormatError,
        match=f"archive version {last + 1}, this laq reads up to {last}\nhint: install a newer laq",
    ):
        open_archive(copied)


def test_folder_without_an_archive_is_refused(tmp_path):
    with pytest.raises(FormatError, match="not a laq archive"):
        open_archive(tmp_path)


@pytest.mark.parametrize(
    "how",
    [{}, {"rank": 256}, {"product": "product4x8"}, {"tiles": {c.name: 9_999_999 for c in FAMILIES["all"]}}],
)
def test_every_format_has_room_in_the_line_of_a_weight(how):
    fields = {"tiles": {candidate.name: 9_999_999 for candidate in CANDIDATES}} | how
    entry = WeightEntry(
        name="",
        kind="embedding",
        modules=("",),
        dtype="bfloat16",
        shape=(999_999, 99_999),
        group_size=128,
        column_order="",
        **fields,
    )
    line = json.dumps(entry.to_json() | {"sha256": "0" * 64}, separators=(",", ":")) + ","
    assert len(line) <= weight_reserve_bytes(entry) + 3


@pytest.mark.parametrize(("per", "unit"), [("tile", "tile"), ("channel", "row"), ("tensor", "tensor")])
@pytest.mark.parametrize("scale_format", [None, "float16", "e8m0"])
def test_shared_scales_are_stored_once_and_priced_exactly(tmp_path, per, unit, scale_format):
    options = {"formats": "integer", "scale_per": per, "unit": unit}
    result = quantized(scale_format, **options)
    folder = result.save(tmp_path / "out")
    content = json.loads((folder / MANIFEST).read_text())
    assert (content["version"], content["scale_per"], content["plan"]["scale_per"]) == (4, per, per)
    assert folder_bytes(folder) <= result.plan.size_bytes <= result.plan.budget_bytes
    assert result.plan.size_bytes - folder_bytes(folder) < 512
    stored, scales = open_archive(folder), result.plan.scale_format
    for plan in result.plan.weights:
        packed = stored.packed(next(e for e in stored.manifest.weights if e.name == plan.name))
        own = packed.size_bytes - (packed.column_permutation.nbytes if plan.column_order else 0)
        assert own == plan.size_bytes(scales, result.plan.scale_per)
        original = result.network.weight(plan.name).numpy()
        assert np.linalg.norm(dequantize(packed) - original) < 0.2 * np.linalg.norm(original)
    inputs = batches()[0][0]
    with torch.inference_mode():
        assert torch.equal(laq.load(folder, module=network())(inputs), result.model(inputs))
    flip(folder, "2.weight.zero_points", offset=0)
    with pytest.raises(FormatError):
        laq.load(folder, module=network())
