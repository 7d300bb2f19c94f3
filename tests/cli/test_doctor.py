import platform
from importlib.metadata import PackageNotFoundError, version


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
