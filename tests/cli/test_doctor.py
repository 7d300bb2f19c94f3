import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def test_versions_and_machine_are_told(laq_well):
    content = laq_well("doctor", "--json").content
    assert content["versions"]["python"] == platform.python_version()
    assert content["versions"]["torch"] == version("torch")
    assert 0 < content["memory_free_bytes"] <= content["memory_bytes"]
    assert content["n_cores"] >= 1


def test_kernels_in_use_are_named(laq_well):
    kernels = laq_well("doctor", "--json").content["kernels"]
    assert (kernels["tier"] == "") == bool(kernels["reason"])
    assert kernels["tier"] in ("", *kernels["tiers"])
    assert (kernels["tier"] or "computing in torch") in laq_well("doctor").stdout


def test_place_of_weights_is_named_with_the_reason(laq_well, monkeypatch):
    weights = laq_well("doctor", "--json").content["weights"]
    assert (weights["place"] == "huge pages") == (weights["reason"] == "")
    monkeypatch.setattr("laq.runtime.arena.SETTING", Path("absent"))
    monkeypatch.delattr("mmap.MADV_HUGEPAGE", raising=False)
    assert laq_well("doctor", "--json").content["weights"]["place"] == "mapped file"
    assert "mapped file: this system has none" in laq_well("doctor").stdout


def test_missing_package_brings_the_line_that_installs_it(laq_well, monkeypatch):
    def without_gguf(name: str) -> str:
        if name == "gguf":
            raise PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr("laq.cli.doctor.version", without_gguf)
    assert laq_well("doctor", "--json").content["missing"] == ["gguf"]
    text = laq_well("doctor").stdout
    assert "pip install 'laq[llm]'" in text
    assert "missing" in text
