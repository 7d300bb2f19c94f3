"""What `laq bench` prints and refuses; the numbers themselves depend on the machine."""

import sys

import pytest
from torch import nn

import laq as laq_package
from laq.core.threads import usable_threads
from laq.evaluation import speed
from laq.kernels import native

FEW = ("--prompt-tokens", "8", "--tokens", "3", "--rounds", "1")
SMALL = ("--matmul", "--shape", "48x64", "--inputs", "1,2", "--seconds", "0")


@pytest.fixture(autouse=True)
def few_copies(monkeypatch):
    monkeypatch.setattr(speed, "ROTATED_BYTES", 1 << 16)
    monkeypatch.setattr(speed, "SETTLE_S", 0.0)


def test_json_holds_speeds_and_the_kernels_that_ran(laq_well, archive):
    content = laq_well("bench", archive, *FEW, "--json").content
    (network,) = content["networks"]
    assert network["name"] == "laq"
    assert min(network["prefill_tokens_per_s"], network["decode_tokens_per_s"]) > 0
    assert 0 < network["bytes_per_token"] < sum(file.stat().st_size for file in archive.iterdir())
    rate = network["bytes_per_token"] * network["decode_tokens_per_s"]
    assert network["share_of_read"] == pytest.approx(rate / content["read_bytes_per_s"])
    assert content["kernels"]["tier"] == native.status().tier
    assert content["threads"] == usable_threads()


def test_original_is_measured_in_two_types(laq_well, archive, tiny_llama):
    content = laq_well("bench", archive, *FEW, "--reference", tiny_llama, "--json").content
    own, half, full = content["networks"]
    assert (half["name"], full["name"]) == ("torch bf16", "torch fp32")
    assert (own["remark"], half["remark"], full["remark"]) == ("few tokens", "", "")
    assert own["bytes_per_token"] < half["bytes_per_token"] < full["bytes_per_token"]


def test_table_shows_the_numbers_and_the_machine(laq_well, archive):
    done = laq_well("bench", archive, *FEW)
    assert "tokens/s, prompt" in done.stdout
    assert "own code wrote every token: few tokens" in done.stdout
    assert "read bandwidth of this machine" in done.stdout
    assert (native.status().tier or "computing in torch") in done.stdout
    assert "writing in turns" in done.stderr
    assert laq_well("bench", archive, *FEW, "-q").stderr == ""


def test_it_works_without_native_kernels(laq_well, archive, monkeypatch):
    monkeypatch.setattr(native, "library", lambda: None)
    content = laq_well("bench", archive, *FEW, *SMALL, "--json").content
    assert content["kernels"]["tier"] == ""
    assert content["networks"][0]["decode_tokens_per_s"] > 0
    assert "computing in torch" in laq_well("bench", *SMALL).stdout


def test_products_need_no_archive(laq_well):
    content = laq_well("bench", *SMALL, "--json").content
    assert content["shape"] == [48, 64]
    found = {(product["name"], product["n_inputs"]) for product in content["products"]}
    for name in ("laq 2 bit", "laq mixed", "torch bf16", "torch fp32", "read"):
        assert {(name, 1), (name, 2)} <= found
    assert all(product["time_s"] > 0 for product in content["products"])
    assert "networks" not in content


def test_products_as_a_table_name_who_is_not_here(laq_well, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    done = laq_well("bench", *SMALL)
    assert "laq mixed" in done.stdout
    assert "without onnxruntime: pip install onnx onnxruntime" in done.stdout


def test_nothing_to_measure_is_refused(laq, refused):
    refused(laq("bench"), "nothing")
    refused(laq("bench", "--matmul", "--reference", "x"), "--reference")


@pytest.mark.parametrize("shape", ["64", "64x", "0x64", "64x64x64", "axb", "9999999999x1"])
def test_what_is_no_shape_is_refused(laq, refused, shape):
    refused(laq("bench", "--matmul", "--shape", shape), shape)


@pytest.mark.parametrize("inputs", ["", "0", "1,", "x", "-1"])
def test_what_are_no_numbers_is_refused(laq, refused, inputs):
    refused(laq("bench", "--matmul", "--inputs", inputs), "--inputs")


def test_text_longer_than_the_network_takes_is_refused(laq, refused, archive):
    refused(laq("bench", archive, "--prompt-tokens", "600"), "512")


def test_archive_that_writes_no_text_is_refused(laq, refused, tmp_path):
    import torch

    data = [(torch.randn(16, 70),) for _ in range(4)]
    result = laq_package.quantize(nn.Sequential(nn.Linear(70, 40)), bpw=28, data=data, compare=False)
    refused(laq("bench", result.save(tmp_path / "out")), "writes no text")


def test_gguf_that_is_not_there_is_refused(laq, refused, archive, tmp_path):
    refused(laq("bench", archive, "--against", tmp_path / "absent.gguf"), "absent.gguf")


def test_gguf_without_llama_cpp_is_refused(laq, refused, archive, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    file = tmp_path / "some.gguf"
    file.write_bytes(b"GGUF")
    done = laq("bench", archive, "--against", file)
    refused(done, "llama-cpp-python is not installed")
    assert "pip install llama-cpp-python" in done.stderr


def test_damaged_gguf_is_refused(laq, refused, archive, tmp_path):
    pytest.importorskip("llama_cpp")
    file = tmp_path / "some.gguf"
    file.write_bytes(b"GGUF")
    refused(laq("bench", archive, "--against", file), "some.gguf")
