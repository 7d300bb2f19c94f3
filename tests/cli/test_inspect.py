import subprocess
import sys

import pytest


def test_archive_lists_every_tensor_and_adds_up(laq_well, archive):
    content = laq_well("inspect", archive, "--json").content
    assert content["kind"] == "archive"
    assert content["size_bytes"] == sum(file.stat().st_size for file in archive.iterdir())
    assert sum(content["tiles"].values()) == 128
    assert "model.norm.weight" in {tensor["name"] for tensor in content["tensors"]}
    assert content["provenance"]["seed"] == 0
    tensors = sum(tensor["size_bytes"] for tensor in content["tensors"])
    assert 0 < content["size_bytes"] - tensors < 50_000  # config, tokenizer, laq.json, header


def test_archive_and_plan_agree(laq_well, archive, measured, quantizing, tmp_path):
    budget = quantizing[1].content["plan"]["budget_bytes"]
    laq_well("plan", measured, "--size", budget, "-o", tmp_path / "plan.json")
    plan = laq_well("inspect", tmp_path / "plan.json", "--json").content
    assert plan["kind"] == "plan"
    assert plan["size_bytes"] <= budget
    inside = laq_well("inspect", archive, "--json").content
    assert set(plan["roles"]) == set(inside["roles"])


def test_folder_file_and_text_forms(laq_well, tiny_llama):
    folder = laq_well("inspect", tiny_llama, "--json").content
    file = laq_well("inspect", tiny_llama / "model.safetensors", "--json").content
    assert (folder["kind"], file["kind"]) == ("folder", "safetensors")
    assert folder["tensors"] == file["tensors"]
    assert folder["n_params"] == file["n_params"] == 131_392
    text = laq_well("inspect", tiny_llama / "model.safetensors").stdout
    assert "model.layers.1.mlp.down_proj.weight" in text
    assert "64 x 192" in text


def test_gguf_is_read_without_loading_it(laq_well, smollm2_path):
    content = laq_well("inspect", smollm2_path, "--json").content
    assert content["kind"] == "gguf"
    assert len(content["tensors"]) == 272
    assert content["n_params"] == 134_515_008


def test_inspecting_imports_no_torch(archive):
    code = (
        "import sys; from laq.cli import app\n"
        f"sys.argv = ['laq', 'inspect', {str(archive)!r}]\n"
        "try: app()\n"
        "finally: print('torch' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip() == "False"
    names = [line.split()[0] for line in done.stdout.splitlines() if ".weight" in line]
    assert "model.layers.0.self_attn.q_proj.weight" in names  # a program reads whole names


@pytest.mark.parametrize("name", ["absent", "notes.txt", "empty"])
def test_what_cannot_be_read_is_named(laq, refused, tmp_path, name):
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "empty").mkdir()
    refused(laq("inspect", tmp_path / name), name)


def test_json_that_is_no_plan_is_refused(laq, refused, tiny_llama):
    refused(laq("inspect", tiny_llama / "config.json"), "not a plan")


def test_truncated_file_is_refused(laq, refused, tiny_llama, tmp_path):
    (tmp_path / "cut.safetensors").write_bytes((tiny_llama / "model.safetensors").read_bytes()[:5000])
    refused(laq("inspect", tmp_path / "cut.safetensors"), "cut.safetensors")


def test_manifest_of_an_archive_points_to_its_folder(laq, refused, archive):
    refused(laq("inspect", archive / "laq.json"), "laq.json", "part of an archive")
