import shutil
from pathlib import Path

import numpy as np
import safetensors.numpy


def test_json_holds_the_record_of_the_test_split(laq_well, tiny_llama, archive):
    done = laq_well("eval", archive, "--reference", tiny_llama, "--tokens", "512", "--json")
    assert done.content["split"] == "test"
    assert done.content["n_tokens"] == 511
    assert 0 < done.content["kl_nats"] < 1
    assert done.content["size_bytes"] == sum(f.stat().st_size for f in archive.iterdir())
    assert done.stderr == ""


def test_own_token_ids_can_be_used(laq_well, tiny_llama, archive, tmp_path):
    file = tmp_path / "ids.npy"
    np.save(file, np.random.default_rng(0).integers(0, 512, 1200))
    done = laq_well("eval", archive, "--reference", tiny_llama, "--data", file)
    assert str(file) in done.stdout.replace("\n", "")
    assert "quantized" in done.stdout


def test_text_sampled_from_the_original_can_be_used(laq_well, tiny_llama, archive):
    options = ("--data", "self", "--tokens", "512", "--json")
    content = laq_well("eval", archive, "--reference", tiny_llama, *options).content
    assert (content["split"], content["n_tokens"]) == ("self", 511)


def test_other_reference_is_refused(laq, refused, tiny_llama, archive, tmp_path: Path):
    other = tmp_path / "other"
    shutil.copytree(tiny_llama, other)
    tensors = safetensors.numpy.load_file(other / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if "layers.1" not in name}
    safetensors.numpy.save_file(kept, other / "model.safetensors", {"format": "pt"})
    config = other / "config.json"
    config.write_text(config.read_text().replace('"num_hidden_layers": 2', '"num_hidden_layers": 1'))
    refused(laq("eval", archive, "--reference", other), "131392")


def test_folder_that_is_no_archive_is_refused(laq, refused, tiny_llama):
    refused(laq("eval", tiny_llama, "--reference", tiny_llama), "laq.json")


def test_missing_data_are_named(laq, refused, tiny_llama, archive):
    refused(laq("eval", archive, "--reference", tiny_llama, "--data", "absent.txt"), "absent.txt")


def test_another_network_of_the_same_size_is_named(laq_well, tiny_llama, archive, tmp_path: Path):
    other = tmp_path / "other"
    shutil.copytree(tiny_llama, other)
    tensors = safetensors.numpy.load_file(other / "model.safetensors")
    first = next(name for name in tensors if "down_proj" in name)
    tensors[first] = tensors[first] * 1.5
    safetensors.numpy.save_file(tensors, other / "model.safetensors", {"format": "pt"})
    done = laq_well("eval", archive, "--reference", other, "--tokens", "512", "--json")
    assert "two different networks" in done.stderr
    assert done.content["kl_nats"] > 0
