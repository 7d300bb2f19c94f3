"""--format product from the command to a module that runs."""

import json


def test_an_archive_of_product_codes_is_made_shown_verified_and_run(laq_well, tiny_llama, tmp_path):
    folder = tmp_path / "out"
    options = ("--format", "product", "--bpw", "15", "--tokens", "512", "--no-compare")
    laq_well("quantize", tiny_llama, "-o", folder, *options)
    content = json.loads((folder / "laq.json").read_text())
    assert content["version"] == 3
    assert all(weight["product"].startswith("product") for weight in content["weights"])
    assert content["plan"]["size_bytes"] >= sum(file.stat().st_size for file in folder.iterdir())
    laq_well("verify", folder)
    assert "q_proj" in laq_well("inspect", folder).stdout
    assert laq_well("run", folder, "--prompt", "a", "--tokens", "3").stdout
