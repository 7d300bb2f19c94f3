import shutil
from pathlib import Path

import pytest

from laq.io.safetensors import read_header

SHARD = "packed-00001-of-00001.safetensors"
WEIGHT = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture
def damaged(archive: Path, tmp_path: Path) -> Path:
    """Return a copy to damage."""
    folder = tmp_path / "damaged"
    shutil.copytree(archive, folder)
    return folder


def flip(folder: Path, *names: str) -> None:
    """Change the first byte of some tensors."""
    file = folder / SHARD
    content, header = bytearray(file.read_bytes()), read_header(file)
    for name in names:
        content[header[name].start] ^= 0xFF
    file.write_bytes(content)


def test_intact_archive_runs(laq_well, archive):
    done = laq_well("verify", archive)
    assert "intact" in done.stdout
    assert "finite" in done.stdout


def test_json_of_an_intact_archive(laq_well, archive):
    content = laq_well("verify", archive, "--json").content
    assert content["is_intact"]
    assert content["forward"] == "finite"
    assert content["n_weights"] == 15


def test_every_damaged_tensor_is_named(laq, refused, damaged):
    flip(damaged, f"{WEIGHT}.payload", "model.norm.weight", "model.layers.0.self_attn.q_proj.weight.bits")
    done = laq("verify", damaged)
    refused(done, WEIGHT, "model.norm.weight", "model.layers.0.self_attn.q_proj.weight")
    assert "embed_tokens" not in done.stderr


def test_json_names_the_damage_and_exits_with_2(laq, damaged):
    flip(damaged, f"{WEIGHT}.payload")
    done = laq("verify", damaged, "--json")
    assert done.code == 2
    assert list(done.content["problems"]) == [WEIGHT]
    assert not done.content["is_intact"]


def test_truncated_shard_is_named(laq, refused, damaged):
    (damaged / SHARD).write_bytes((damaged / SHARD).read_bytes()[:-1000])
    refused(laq("verify", damaged), SHARD)


def test_missing_shard_is_named(laq, refused, damaged):
    (damaged / SHARD).unlink()
    refused(laq("verify", damaged), SHARD)


def test_folder_that_is_no_archive_is_refused(laq, refused, tmp_path):
    refused(laq("verify", tmp_path), "laq.json")


def test_missing_files_of_the_source_are_named(laq, refused, damaged):
    (damaged / "tokenizer.json").unlink()
    refused(laq("verify", damaged), "tokenizer.json: is missing")
    refused(laq("run", damaged, "--prompt", "The"), "tokenizer.json is missing")


def test_missing_config_is_named(laq, refused, damaged):
    (damaged / "config.json").unlink()
    refused(laq("eval", damaged, "--reference", damaged), "config.json is missing")
