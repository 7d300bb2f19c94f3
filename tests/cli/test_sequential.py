"""--sequential from a network to an archive that runs."""

import json

OPTIONS = ("--bpw", "10", "--tokens", "512", "--no-compare", "--sequential")


def test_an_archive_made_in_sequence_says_so_and_runs(laq_well, tiny_llama, quantizing, measured, tmp_path):
    folder = tmp_path / "out"
    done = laq_well("quantize", tiny_llama, "-o", folder, *OPTIONS, "--measured", measured, "--json")
    assert done.content["provenance"]["sequential"] is True
    assert "sequential" not in quantizing[1].content["provenance"]
    entries = [json.loads((one / "laq.json").read_text())["weights"] for one in (folder, quantizing[0])]
    hashes = [{entry["name"]: entry["sha256"] for entry in one} for one in entries]
    assert any(hashes[0][name] != hashes[1][name] for name in hashes[0])
    laq_well("verify", folder)
    assert laq_well("run", folder, "--prompt", "a", "--tokens", "3").stdout


def test_it_goes_with_other_options_and_holds_a_limit_on_kl(laq_well, tiny_llama, tmp_path):
    options = ("--max-kl", "0.05", *OPTIONS[2:], "--quantizer", "rtn", "--transform", "column_norm")
    done = laq_well("quantize", tiny_llama, "-o", tmp_path / "out", *options, "--json")
    assert done.content["comparisons"][0]["selection"]["kl_nats"] <= 0.05
    assert done.content["plan"]["quantizer"] == "rtn"
