"""Folders of the transformers package: which files count, what is refused."""

import shutil

import pytest

from laq.core.errors import NetworkError, RequestError, ResourceError
from laq.networks import load_network
from laq.networks.transformers import checkpoint_files, choose_dtype, load_tokenizer, require_transformers


def test_only_the_model_counts_beside_other_safetensors(tiny_llama, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(tiny_llama, copy)
    (copy / "adapter.safetensors").write_bytes(b"no safetensors")
    assert [file.name for file in checkpoint_files(copy)] == ["model.safetensors"]
    assert load_network(copy).content_hash() == load_network(tiny_llama).content_hash()


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ([], "no config.json"),
        (["config.json"], "no model.safetensors"),
        (["config.json", "pytorch_model.bin"], "pickled"),
    ],
)
def test_folders_without_a_model_are_refused(tmp_path, files, words):
    for name in files:
        (tmp_path / name).write_text("{}")
    with pytest.raises(NetworkError, match=words):
        checkpoint_files(tmp_path)


def test_a_missing_shard_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-2.safetensors"}}')
    with pytest.raises(NetworkError, match=r"model-2\.safetensors"):
        checkpoint_files(tmp_path)


def test_a_tokenizer_that_needs_a_missing_package_says_so(tmp_path, monkeypatch):
    transformers = require_transformers()

    def missing(*args, **kwargs):
        raise ImportError("needs the sentencepiece library")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", missing)
    with pytest.raises(RequestError, match="sentencepiece"):
        load_tokenizer(transformers, tmp_path)


def test_too_large_a_model_is_refused_with_its_size():
    with pytest.raises(ResourceError, match=r"needs 1000\.0 GB of memory"):
        choose_dtype(500 * 10**9, 1000 * 10**9, source="model")
