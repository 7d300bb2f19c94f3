"""Tokens repeated by the native kernels give the logits of the model's own code."""

import re

import pytest
import torch

from laq.core.errors import RequestError
from laq.kernels import native
from laq.runtime import decoding
from laq.runtime.decoding import Decoder

transformers = pytest.importorskip("transformers", reason="needs the extra llm")
needs_kernels = pytest.mark.skipif(native.library() is None, reason="native kernels are not built here")

SIZES = {
    "vocab_size": 90,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
WITHOUT_GROUPS = {name: size for name, size in SIZES.items() if name != "num_key_value_heads"}
NAMED_DIFFERENTLY = {
    "vocab_size": 90,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
NETWORKS = {
    "Llama": SIZES,
    "Qwen2": SIZES,
    "Qwen3": {**SIZES, "head_dim": 8},
    "Gemma": {**SIZES, "head_dim": 8},
    "Phi3": SIZES,
    "Olmo2": SIZES,
    "Cohere": SIZES,
    "GPTNeoX": WITHOUT_GROUPS,
    "GPT2": NAMED_DIFFERENTLY,
}
N_PROMPT, N_NEW = 9, 40


def network_of(name, **changes):
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**NETWORKS.get(name, SIZES) | changes)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def logits_of(module, *, n_new=N_NEW, is_native=True):
    decoder = Decoder(module, max_tokens=N_PROMPT + n_new)
    if not is_native:
        decoder.reason = "to compare"
    found = [decoder.read(torch.arange(3, 3 + N_PROMPT)[None]).clone()]
    found += [decoder.next((7 * index) % 90).clone() for index in range(n_new)]
    return decoder, torch.cat(found).float()


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", NETWORKS)
def test_logits_are_those_of_the_models_own_code(name, dtype):
    module = network_of(name).to(dtype)
    decoder, found = logits_of(module)
    assert decoder.is_native, decoder.reason
    _, expected = logits_of(module, is_native=False)
    allowed = 1e-5 if dtype == torch.float32 else 2e-2
    assert float((found - expected).abs().max()) < allowed * float(expected.abs().max())


@needs_kernels
def test_packed_networks_are_repeated_with_their_siblings_together(packed_llama):
    _, module = packed_llama
    decoder, found = logits_of(module)
    assert decoder.is_native, decoder.reason
    _, expected = logits_of(module, is_native=False)
    assert float((found - expected).abs().max()) < 1e-4 * float(expected.abs().max())


@needs_kernels
def test_a_full_cache_is_replaced_by_a_larger_one(monkeypatch):
    monkeypatch.setattr(decoding, "FIRST_CAPACITY", 16)
    monkeypatch.setattr(decoding, "WORTH_RECORDING", 4)
    module = network_of("Llama")
    decoder, found = logits_of(module)
    assert decoder.is_native, decoder.reason
    assert decoder.capacity == N_PROMPT + N_NEW
    _, expected = logits_of(module, is_native=False)
    assert float((found - expected).abs().max()) < 1e-5 * float(expected.abs().max())


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("Mistral", {"sliding_window": 16}, "forget"),
        ("OPT", {}, "differs|no step"),
        ("Mixtral", {"num_local_experts": 2}, "no step"),
    ],
)
@needs_kernels
def test_other_networks_run_their_own_code(name, changes, reason):
    module = network_of(name, **changes)
    decoder, found = logits_of(module)
    assert not decoder.is_native
    assert re.search(reason, decoder.reason), decoder.reason
    _, expected = logits_of(module, is_native=False)
    assert torch.allclose(found, expected, atol=1e-5)


@needs_kernels
def test_code_that_counts_in_python_is_not_repeated():
    module = network_of("Llama")
    norm, calls = module.model.norm.forward, []

    def counting(hidden):
        calls.append(None)
        return norm(hidden) * len(calls)

    module.model.norm.forward = counting
    decoder, found = logits_of(module, n_new=30)
    assert "differs" in decoder.reason
    assert len(calls) == 31
    assert torch.isfinite(found).all()


@needs_kernels
def test_wrong_repetitions_are_noticed(monkeypatch):
    monkeypatch.setattr(decoding, "TOLERANCE", {torch.float32: -1.0})
    decoder, found = logits_of(network_of("Llama"), n_new=30)
    assert "differ" in decoder.reason
    assert found.shape[0] == 31


def test_few_tokens_are_not_worth_a_recording():
    decoder, _ = logits_of(network_of("Llama"), n_new=3)
    assert not decoder.is_native
    assert decoder.reason


def test_without_native_kernels_the_models_own_code_runs(monkeypatch):
    monkeypatch.setattr(decoding, "has_kernels", lambda: False)
    decoder, found = logits_of(network_of("Llama"))
    assert decoder.reason == "no native kernels"
    assert torch.isfinite(found).all()


def test_more_tokens_than_announced_are_refused():
    decoder = Decoder(network_of("Llama"), max_tokens=3)
    decoder.read(torch.tensor([[1, 2]]))
    decoder.next(3)
    with pytest.raises(RequestError, match="3 tokens have been read"):
        decoder.next(4)
