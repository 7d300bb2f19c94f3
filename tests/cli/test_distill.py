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
    steps = [line.split(" (")[0].split(":")[0] for line in again.stderr.splitlines()]
    assert not {"calibrating", "measuring"} & set(steps)
    names = ("packed-00001-of-00001.safetensors", "config.json")
    assert all((folder / "out" / n).read_bytes() == (tmp_path / "again" / n).read_bytes() for n in names)
    assert json.loads((tmp_path / "again" / "laq.json").read_text())["record"] == done.content["record"]


def test_a_checkpoint_of_other_settings_is_refused(taught, laq, refused, tiny_llama, tmp_path):
    options = (*OPTIONS, "--checkpoint", taught[0] / "checkpoint", "--quantizer", "rtn")
    refused(laq("quantize", tiny_llama, "-o", tmp_path / "out", *options), "rtn")


def test_an_unknown_effort_is_refused_with_those_there_are(laq, refused, tiny_llama, tmp_path):
    done = laq("quantize", tiny_llama, "-o", tmp_path / "out", "--bpw", "10", "--effort", "most")
    refused(done, "unknown effort 'most'")
    assert "default, max" in done.stderr


def test_steps_below_zero_are_refused(laq, refused, tiny_llama, tmp_path):
    done = laq("quantize", tiny_llama, "-o", tmp_path / "out", "--bpw", "10", "--distill", "-1")
    refused(done, "distill=-1")
