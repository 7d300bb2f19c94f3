"""--distill, --effort and --checkpoint from calibration to an archive that opens."""

import json

import pytest

OPTIONS = ("--bpw", "7.5", "--tokens", "4096", "--no-compare", "--distill", "64")


@pytest.fixture(scope="module")
def taught(laq_well, tiny_llama, tmp_path_factory):
    """A folder of checkpoints, an archive made with it, and what was printed."""
    folder = tmp_path_factory.mktemp("distilled")
    options = (*OPTIONS, "--checkpoint", folder / "checkpoint")
    return folder, laq_well("quantize", tiny_llama, "-o", folder / "out", *options, "--json")


def steps_of(done):
    return {line.split(" (")[0].split(":")[0] for line in done.stderr.splitlines()}


def test_what_was_tuned_is_compared_with_what_it_began_as(taught, laq_well):
    folder, done = taught
    before, after = done.content["comparisons"]
    assert (before["label"], after["label"]) == ("tile", "tile, distilled")
    assert after["size_bytes"] == before["size_bytes"]
    assert after["selection"]["kl_nats"] < before["selection"]["kl_nats"]
    assert done.content["record"] == after["test"]
    assert "after distillation" in done.content["verdict"]
    assert done.content["provenance"]["distillation_steps"] == 64
    laq_well("verify", folder / "out")


def test_norms_of_the_archive_are_those_that_were_tuned(taught, tiny_llama):
    import torch

    import laq

    tuned = laq.load(taught[0] / "out")
    original = laq.open_network(tiny_llama).module
    norms = [name for name, _ in original.named_parameters() if "norm" in name]
    assert len(norms) == 5
    assert not any(torch.equal(tuned.get_parameter(n), original.get_parameter(n)) for n in norms)


def test_the_same_command_goes_on_from_its_checkpoint(taught, laq_well, tiny_llama, tmp_path):
    folder, done = taught
    options = (*OPTIONS, "--checkpoint", folder / "checkpoint")
    again = laq_well("quantize", tiny_llama, "-o", tmp_path / "again", *options)
    slow = {"calibrating", "measuring"}
    assert not slow & steps_of(again)
    names = ("packed-00001-of-00001.safetensors", "config.json")
    assert all((folder / "out" / n).read_bytes() == (tmp_path / "again" / n).read_bytes() for n in names)
    assert json.loads((tmp_path / "again" / "laq.json").read_text())["record"] == done.content["record"]
    (kept,) = [line for line in again.stdout.splitlines() if "laq, " in line]
    assert "laq, tile, distilled" in kept


def test_calibration_is_kept_before_measuring_ends(laq, laq_well, tiny_llama, tmp_path, monkeypatch):
    options = ("--bpw", "10", "--tokens", "512", "--no-compare", "--checkpoint", tmp_path / "checkpoint")
    with monkeypatch.context() as patch:
        patch.setattr("laq.measurement.measure_transformed", lambda *_, **__: 1 / 0)
        assert laq("quantize", tiny_llama, "-o", tmp_path / "out", *options).code != 0
    assert not (tmp_path / "checkpoint" / "curves").exists()
    done = laq_well("quantize", tiny_llama, "-o", tmp_path / "out", *options)
    assert "measuring" in steps_of(done)
    assert "calibrating" not in steps_of(done)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (("--quantizer", "rtn"), "quantizer"),
        (("--format", "integer"), "formats"),
        (("--mixes", "8"), "mixes"),
        (("--tokens", "2048"), "data"),
        (("--seed", "1"), "seed"),
        (("--keep", "up_proj"), "weights"),
    ],
)
def test_a_checkpoint_of_another_request_is_refused(taught, laq, refused, tiny_llama, tmp_path, change, word):
    options = (*OPTIONS, "--checkpoint", taught[0] / "checkpoint", *change)
    done = laq("quantize", tiny_llama, "-o", tmp_path / "out", *options)
    refused(done, "was begun with other", word)
    assert "delete it" in done.stderr


def test_places_where_no_checkpoint_can_be_are_refused_before_the_model_is_opened(laq, refused, tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "other" / "stats").mkdir(parents=True)
    (tmp_path / "other" / "stats" / "mine.txt").write_text("mine")
    for place, words in (
        ("file", "is a file"),
        ("out", "lies in"),
        ("out/checkpoint", "lies in"),
        ("other", "was not written by laq"),
    ):
        options = (*OPTIONS, "--checkpoint", tmp_path / place)
        refused(laq("quantize", tmp_path / "absent", "-o", tmp_path / "out", *options), words)
    assert (tmp_path / "other" / "stats" / "mine.txt").read_text() == "mine"


def test_an_unknown_effort_is_refused_with_those_there_are(laq, refused, tiny_llama, tmp_path):
    done = laq("quantize", tiny_llama, "-o", tmp_path / "out", "--bpw", "10", "--effort", "most")
    refused(done, "unknown effort 'most'")
    assert "default, max" in done.stderr


@pytest.mark.parametrize("steps", ["-1", "100001"])
def test_numbers_of_steps_out_of_range_are_refused_at_once(laq, refused, tiny_llama, tmp_path, steps):
    done = laq("quantize", tiny_llama, "-o", tmp_path / "out", "--bpw", "10", "--distill", steps)
    refused(done, f"distill={steps}")
