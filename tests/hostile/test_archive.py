"""Broken archives: they load, or are refused by a LaqError; never anything else."""

import copy
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import laq
from laq.core.errors import FormatError, LaqError
from laq.io.archive import open_archive, verify_hashes
from laq.io.manifest import MANIFEST

SHARD = "packed-00001-of-00001.safetensors"


def network():
    return nn.Sequential(nn.Linear(70, 40), nn.ReLU(), nn.Linear(40, 24))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The bytes of a small sound archive, laq.json without its padding."""
    torch.manual_seed(0)
    data = [(torch.randn(16, 70),) for _ in range(4)]
    result = laq.quantize(network(), bpw=25.0, data=data, compare=False, group_size=32)
    folder = result.save(tmp_path_factory.mktemp("sound") / "out")
    return {MANIFEST: (folder / MANIFEST).read_bytes().rstrip(), SHARD: (folder / SHARD).read_bytes()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("broken")


def loads(folder, files):
    """Write, then open, verify and load; say whether it was accepted."""
    for name, data in files.items():
        (folder / name).write_bytes(data)
    try:
        archive = open_archive(folder)
        verify_hashes(archive)
        laq.load(folder, module=network())
    except LaqError:
        return False
    return True


def test_archive_is_sound_before_it_is_broken(files, folder):
    assert loads(folder, files)


@pytest.mark.parametrize("name", [MANIFEST, SHARD])
@settings(max_examples=150)
@given(position=st.floats(0, 1, exclude_max=True), value=st.integers(1, 255))
def test_flipped_byte(files, folder, name, position, value):
    data = bytearray(files[name])
    data[int(position * len(data))] ^= value
    loads(folder, files | {name: bytes(data)})


@settings(max_examples=150)
@given(position=st.integers(0, 2400), value=st.integers(32, 126))
def test_replaced_character_of_the_tensor_table(files, folder, position, value):
    data = bytearray(files[SHARD])
    data[8 + position % int.from_bytes(data[:8], "little")] = value
    loads(folder, files | {SHARD: bytes(data)})


@pytest.mark.parametrize("name", [MANIFEST, SHARD])
@given(kept=st.floats(0, 1, exclude_max=True))
def test_truncated_file_is_refused(files, folder, name, kept):
    assert not loads(folder, files | {name: files[name][: int(kept * len(files[name]))]})


@given(data=st.binary(max_size=200))
def test_any_bytes_as_manifest_are_refused(files, folder, data):
    assert not loads(folder, files | {MANIFEST: data})


def places(value, path=()):
    """Paths of everything in a JSON value."""
    children = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    return [path, *(place for key, child in children for place in places(child, (*path, key)))]


HOSTILE = [
    None,
    True,
    -1,
    0,
    1,
    7,
    32.0,
    1 << 31,
    1 << 64,
    10**400,
    1.5,
    math.inf,
    "",
    "x",
    "../x",
    "\0",
    [],
    [1],
    {},
    {"a": 1},
]


def replaced(content, path, value):
    if not path:
        return value
    changed = copy.deepcopy(content)
    parent = changed
    for key in path[:-1]:
        parent = parent[key]
    parent[path[-1]] = value
    return changed


def test_every_value_of_the_manifest_may_be_anything(files, folder):
    content = json.loads(files[MANIFEST])
    for path in places(content):
        if path[:1] in (("record",), ("provenance",)) and len(path) > 2:
            continue  # read by people, not by the loader
        for value in HOSTILE:
            text = json.dumps(replaced(content, path, value)).replace("Infinity", "1e999")
            try:
                loads(folder, {MANIFEST: text.encode()})
            except Exception as error:
                raise AssertionError(f"{path} = {str(value)[:20]!r}") from error


def test_every_part_of_the_manifest_may_be_missing(files, folder):
    content = json.loads(files[MANIFEST])
    for path in places(content)[1:]:
        changed = copy.deepcopy(content)
        parent = changed
        for key in path[:-1]:
            parent = parent[key]
        del parent[path[-1]]
        try:
            loads(folder, {MANIFEST: json.dumps(changed).encode()})
        except Exception as error:
            raise AssertionError(f"without {path}") from error


def test_deep_nesting_is_refused(files, folder):
    assert not loads(folder, files | {MANIFEST: b'{"format":' + b"[" * 100_000 + b"]" * 100_000 + b"}"})


def test_number_of_many_digits_is_refused(files, folder):
    assert not loads(folder, files | {MANIFEST: b'{"format":"laq-archive","version":' + b"9" * 5000 + b"}"})


def test_missing_shard_is_named(files, folder):
    (folder / MANIFEST).write_bytes(files[MANIFEST])
    (folder / SHARD).unlink()
    with pytest.raises(LaqError, match=SHARD):
        open_archive(folder)


def test_shard_outside_of_the_folder_is_refused(files, folder):
    outside = folder.parent / "outside.safetensors"
    outside.write_bytes(files[SHARD])
    content = json.loads(files[MANIFEST]) | {"shards": ["../outside.safetensors"]}
    (folder / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(FormatError, match="outside of the folder"):
        open_archive(folder)


@pytest.mark.parametrize("names", [["../laq"], ["/etc/passwd"], [""], "abc", [3]])
def test_files_of_the_source_outside_of_the_folder_are_refused(files, folder, names):
    content = json.loads(files[MANIFEST]) | {"sidecars": names}
    (folder / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(FormatError, match="damaged"):
        open_archive(folder)


def changed(files, change):
    """The files, their manifest changed by a function."""
    content = json.loads(files[MANIFEST])
    change(content)
    return files | {MANIFEST: json.dumps(content).encode()}


def without_last_weight(content):
    content["weights"].pop()


def without_bias(content):
    del content["kept"]["0.bias"]


def without_weights(content):
    content["weights"] = []


def one_module_twice(content):
    content["weights"][1]["modules"] = content["weights"][0]["modules"]


def one_name_twice(content):
    content["weights"].append(content["weights"][0] | {"modules": ["1"]})


def weight_of_another_layer(content):
    content["weights"][0]["modules"] = ["1"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without_last_weight, "2.weight: not in the archive"),
        (without_bias, "0.bias: not in the archive"),
        (without_weights, "no weights"),
        (one_module_twice, "module is named twice"),
        (one_name_twice, "weight is named twice"),
        (weight_of_another_layer, "1: expected a linear or embedding"),
    ],
)
def test_weights_that_do_not_match_the_modules_one_to_one_are_refused(files, folder, change, words):
    for name, data in changed(files, change).items():
        (folder / name).write_bytes(data)
    with pytest.raises(LaqError, match=words):
        laq.load(folder, module=network())


def test_kept_tensor_of_another_kind_is_refused(files, folder):
    for name, data in files.items():
        (folder / name).write_bytes(data)
    other = network()
    del other[0].bias
    other[0].register_buffer("bias", torch.zeros(40, dtype=torch.int64))
    with pytest.raises(LaqError, match=r"0\.bias: expected F32 \(40,\), found int64 \(40,\)"):
        laq.load(folder, module=other)
    assert laq.load(folder, module=network().half())[2].bias.dtype == torch.float32


@pytest.fixture(scope="module")
def language_model(tmp_path_factory):
    """The folder of a language model's archive, whose config laq did not write."""
    transformers = pytest.importorskip("transformers", reason="needs the extra llm")
    config = transformers.LlamaConfig(
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=512,
        tie_word_embeddings=True,
        initializer_range=0.25,
    )
    torch.manual_seed(0)
    data = [{"input_ids": ids[None]} for ids in torch.randint(0, 512, (6, 32))]
    result = laq.quantize(transformers.LlamaForCausalLM(config), bpw=10.0, data=data, compare=False)
    return result.save(tmp_path_factory.mktemp("language_model") / "out")


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors:UserWarning")
@pytest.mark.parametrize(
    "value", [-1, 1 << 31, *(pytest.param(v, marks=pytest.mark.slow) for v in HOSTILE)], ids=repr
)
def test_every_value_of_the_config_may_be_anything(language_model, value):
    file = language_model / "config.json"
    text = file.read_text()
    content = json.loads(text)
    try:
        for key in content:
            file.write_text(json.dumps(content | {key: value}).replace("Infinity", "1e999"))
            try:
                laq.load(language_model)
            except LaqError:
                continue
            except Exception as error:
                raise AssertionError(f"{key} = {str(value)[:20]!r}") from error
    finally:
        file.write_text(text)
