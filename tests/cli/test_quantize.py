import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

QUANTIZE = ("--bpw", "10", "--tokens", "512")


def copy_with(source: Path, target: Path, **changes: object) -> Path:
    """Copy a model folder and change its config."""
    shutil.copytree(source, target)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | changes))
    return target


def test_folder_is_within_the_budget_and_about_as_large_as_planned(quantizing):
    folder, done = quantizing
    size_bytes = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    plan = done.content["plan"]
    # what does not depend on the data is counted at its largest before it is written
    assert 0.98 * plan["size_bytes"] <= size_bytes <= plan["size_bytes"] <= plan["budget_bytes"]


def test_json_tells_cost_choice_and_where_the_bits_went(quantizing):
    content = quantizing[1].content
    assert content["record"]["split"] == "test"
    assert 0 < content["record"]["kl_nats"] < 1
    assert {one["label"] for one in content["comparisons"]} >= {"tile", "uniform"}
    assert sum(content["tiles"].values()) > 0
    assert "q_proj" in content["roles"]
    assert content["time_s"] > 0


def test_table_fits_80_columns_and_needs_no_colour(laq_well, tiny_llama, measured, tmp_path):
    options = (*QUANTIZE, "--measured", measured, "--no-compare")
    done = laq_well("quantize", tiny_llama, "-o", tmp_path / "out", *options)
    assert max(len(line) for line in done.stdout.splitlines()) < 80
    assert "\x1b" not in done.stdout
    for word in ("original", "laq, tile", "perplexity", "q_proj", "down_proj", "the rest"):
        assert word in done.stdout


def test_progress_goes_to_stderr_one_line_a_step(laq_well, tiny_llama, measured, tmp_path):
    options = (*QUANTIZE, "--measured", measured, "--no-compare")
    done = laq_well("quantize", tiny_llama, "-o", tmp_path / "out", *options)
    steps = [line.split(" (")[0].split(":")[0] for line in done.stderr.splitlines()]
    assert steps[0] == "loading"
    assert "quantizing" in steps
    assert all(line.endswith(" s") for line in done.stderr.splitlines())


def test_quiet_says_nothing_on_stderr(quantizing):
    assert quantizing[1].stderr == ""


def test_missing_model_is_named(laq, refused, tmp_path):
    refused(laq("quantize", tmp_path / "absent", "-o", tmp_path / "out", *QUANTIZE), "absent")


@pytest.mark.parametrize("limits", [(), ("--bpw", "4", "--size", "1MB"), ("--bpw", "4", "--max-kl", "1")])
def test_exactly_one_limit_is_asked_for(laq, refused, tiny_llama, tmp_path, limits):
    refused(laq("quantize", tiny_llama, "-o", tmp_path / "out", *limits), "--bpw, --size and --max-kl")


@pytest.mark.parametrize("bpw", ["nan", "inf", "0", "-1"])
def test_limit_that_is_no_positive_number_is_refused(laq, refused, tiny_llama, tmp_path, bpw):
    refused(laq("quantize", tiny_llama, "-o", tmp_path / "out", f"--bpw={bpw}"), "--bpw", "positive")


@pytest.mark.parametrize("size", ["1", "99GB"])
def test_budget_out_of_range_tells_the_range(laq, refused, tiny_llama, tmp_path, size):
    done = laq("quantize", tiny_llama, "-o", tmp_path / "out", "--size", size)
    refused(done, "out of range", "MB")


def test_size_that_is_no_size_is_refused(laq, refused, tiny_llama, tmp_path):
    refused(laq("quantize", tiny_llama, "-o", tmp_path / "out", "--size", "small"), "small")


@pytest.mark.parametrize(
    ("architecture", "word"), [("resnet", "'resnet'"), ("madeup", "madeup"), ("bert", "bert.encoder.layer.0")]
)
def test_unknown_architecture_is_named(laq, refused, tiny_llama, tmp_path, architecture, word):
    model = copy_with(tiny_llama, tmp_path / "model", model_type=architecture)
    refused(laq("quantize", model, "-o", tmp_path / "out", *QUANTIZE), word)


def test_tensor_with_nan_is_named(laq, refused, tiny_llama, tmp_path):
    model = copy_with(tiny_llama, tmp_path / "nan")
    tensors = safetensors.numpy.load_file(model / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = np.nan
    safetensors.numpy.save_file(tensors, model / "model.safetensors", {"format": "pt"})
    done = laq("quantize", model, "-o", tmp_path / "out", *QUANTIZE)
    refused(done, "NaN", "model.layers.1.mlp.up_proj.weight")


def test_truncated_file_is_named(laq, refused, tiny_llama, tmp_path):
    model = copy_with(tiny_llama, tmp_path / "cut")
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:100_000])
    refused(laq("quantize", model, "-o", tmp_path / "out", *QUANTIZE), "model.safetensors")


def test_unknown_quantizer_is_refused_with_the_list(laq, refused, tiny_llama, tmp_path):
    done = laq("quantize", tiny_llama, "-o", tmp_path / "out", *QUANTIZE, "--quantizer", "magic")
    refused(done, "magic")
    assert "gptq" in done.stderr


def test_unknown_group_size_is_a_usage_error(laq, tiny_llama, tmp_path):
    done = laq("quantize", tiny_llama, "-o", tmp_path / "out", *QUANTIZE, "--group-size", "48")
    assert done.code == 2
    assert "--group-size" in done.stderr
    assert done.stdout == ""


def test_measurement_of_another_network_is_refused(laq, refused, tiny_llama, measured, tmp_path):
    options = (*QUANTIZE, "--measured", measured, "--keep", "embed")
    refused(laq("quantize", tiny_llama, "-o", tmp_path / "out", *options), "another --keep", "embed_tokens")


def test_measurement_on_other_data_is_refused(laq, refused, tiny_llama, measured, tmp_path):
    options = (*QUANTIZE, "--measured", measured, "--seed", "1", "--data", "self")
    refused(laq("quantize", tiny_llama, "-o", tmp_path / "out", *options), "measured on other data")


def test_foreign_output_folder_is_refused_before_loading_and_left_alone(laq, refused, tmp_path):
    (tmp_path / "mine").write_text("precious")
    refused(laq("quantize", tmp_path / "absent", "-o", tmp_path, *QUANTIZE), str(tmp_path), "laq.json")
    assert [file.name for file in tmp_path.iterdir()] == ["mine"]
    assert (tmp_path / "mine").read_text() == "precious"


def test_archive_at_the_output_is_replaced(laq_well, tiny_llama, measured, archive, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(archive, out)
    (out / "tokenizer.old").write_text("of the former archive")
    options = (*QUANTIZE, "--measured", measured, "--no-compare", "--unit", "network")
    laq_well("quantize", tiny_llama, "-o", out, *options)
    assert not (out / "tokenizer.old").exists()


def test_own_files_in_an_archive_are_not_deleted(laq, refused, tiny_llama, archive, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(archive, out)
    (out / "notes.txt").write_text("precious")
    refused(laq("quantize", tiny_llama, "-o", out, *QUANTIZE), "notes.txt")
    assert (out / "notes.txt").read_text() == "precious"


def test_an_archive_as_the_model_is_refused(laq, refused, archive, tmp_path):
    refused(laq("quantize", archive, "-o", tmp_path / "out", *QUANTIZE), "already quantized")


def test_full_disk_is_refused_before_loading(laq, refused, tiny_llama, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 0))
    refused(laq("quantize", tiny_llama, "-o", tmp_path / "out", *QUANTIZE), "disk")


def test_output_below_a_file_is_refused(laq, refused, tiny_llama, tmp_path):
    (tmp_path / "file").write_text("")
    refused(laq("quantize", tiny_llama, "-o", tmp_path / "file" / "out", *QUANTIZE), "cannot be written")
