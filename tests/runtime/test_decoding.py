"""Tokens repeated by the native kernels give the logits of the model's own code."""

import copy
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from laq.core.errors import FormatError, RequestError
from laq.core.formats import CANDIDATES
from laq.core.formats.table import NF4, PALETTE4
from laq.kernels import native
from laq.runtime import decoding
from laq.runtime.decoding import Decoder
from laq.runtime.replace import packed_copy

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
    decoder = Decoder(module, max_tokens=N_PROMPT + n_new, repeats=is_native)
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
def test_networks_with_learned_entries_are_repeated(packed_llama, packed_random):
    network, _ = packed_llama
    packed = {}
    for seed, weight in enumerate(network.weights):
        tables = packed_random(weight.shape, 32, choices=CANDIDATES.index(NF4), seed=seed)
        learned = np.array([*range(12), *NF4.table], np.uint8)
        bits = np.full_like(tables.bits, PALETTE4.tag)
        packed[weight.name] = replace(tables, bits=bits, palettes=learned)
    module = packed_copy(network, packed)
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


def with_norm(module, function):
    """Let the last norm do something more."""
    norm = module.model.norm.forward
    module.model.norm.forward = lambda hidden: function(norm(hidden))
    return module


@needs_kernels
def test_code_that_counts_in_python_is_not_repeated():
    calls = []

    def counting(hidden):
        calls.append(None)
        return hidden * len(calls)

    decoder, found = logits_of(with_norm(network_of("Llama"), counting), n_new=30)
    assert "differs" in decoder.reason
    calls.clear()
    _, expected = logits_of(with_norm(network_of("Llama"), counting), n_new=30, is_native=False)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)


@needs_kernels
def test_what_is_kept_beside_the_cache_is_kept_right():
    state = torch.zeros(2)

    def counting(hidden):
        state[0].add_(1)
        state[1:].mul_(0.5).add_(state[0])
        return hidden * state[1]

    decoder, found = logits_of(with_norm(network_of("Llama"), counting))
    assert decoder.is_native, decoder.reason
    state.zero_()
    _, expected = logits_of(with_norm(network_of("Llama"), counting), is_native=False)
    assert float((found - expected).abs().max()) < 1e-5 * float(expected.abs().max())


@needs_kernels
def test_wrong_repetitions_are_noticed_and_undone(monkeypatch):
    monkeypatch.setattr(decoding, "TOLERANCE", {torch.float32: -1.0})
    decoder, found = logits_of(network_of("Llama"), n_new=30)
    assert "differs" in decoder.reason
    _, expected = logits_of(network_of("Llama"), n_new=30, is_native=False)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)


@needs_kernels
@pytest.mark.parametrize(
    "change",
    {
        "in place": lambda module: module.model.norm.weight.fill_(3.0),
        "replaced": lambda module: setattr(
            module.model.norm, "weight", torch.nn.Parameter(torch.full((32,), 3.0), requires_grad=False)
        ),
        "a buffer": lambda module: module.model.rotary_emb.inv_freq.mul_(0.5),
    }.items(),
    ids=lambda item: item[0],
)
def test_weights_that_change_meanwhile_are_noticed(change):
    found = []
    for is_native in (True, False):
        module = network_of("Llama").requires_grad_(False)
        decoder = Decoder(module, max_tokens=60, repeats=is_native)
        logits = [decoder.read(torch.tensor([[3, 4, 5]])).clone()]
        for index in range(20):
            if index == 10:
                assert decoder.is_native == is_native
                change[1](module)
            logits.append(decoder.next(index).clone())
        assert decoder.is_native == is_native
        found.append(torch.cat(logits))
    assert torch.allclose(*found, rtol=1e-4, atol=1e-5)


@needs_kernels
def test_damaged_buffers_are_refused_in_the_middle_of_a_text(packed_llama):
    module = copy.deepcopy(packed_llama[1])
    decoder = Decoder(module, max_tokens=60)
    decoder.read(torch.tensor([[3, 4, 5]]))
    for token in range(10):
        decoder.next(token)
    assert decoder.is_native
    module.model.layers[0].mlp.down_proj.packed.groups.fill_(77)
    with pytest.raises(FormatError):
        decoder.next(10)


@needs_kernels
def test_two_decoders_of_one_network_do_not_meet():
    module = network_of("Llama")
    one, other = (Decoder(module, max_tokens=60) for _ in range(2))
    found = [decoder.read(torch.tensor([[3, 4, 5]])).clone() for decoder in (one, other)]
    for index in range(20):
        found = [decoder.next(index).clone() for decoder in (one, other)]
        assert torch.equal(*found)


@needs_kernels
def test_inference_mode_around_it_changes_nothing():
    module = network_of("Llama")
    with torch.inference_mode():
        decoder, found = logits_of(module)
    assert decoder.is_native, decoder.reason
    _, expected = logits_of(network_of("Llama"), is_native=False)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_one_decoder_reads_one_text():
    decoder = Decoder(network_of("Llama"), max_tokens=60)
    with pytest.raises(RequestError, match="no prompt"):
        decoder.next(1)
    decoder.read(torch.tensor([[3, 4, 5]]))
    with pytest.raises(RequestError, match="has read"):
        decoder.read(torch.tensor([[3, 4, 5]]))
    with pytest.raises(RequestError, match="token 90: the vocabulary has 90"):
        decoder.next(90)
    decoder.next(89)
    assert decoder.n_tokens == 4
    with pytest.raises(RequestError, match="4 tokens, max_tokens=3"):
        Decoder(decoder.module, max_tokens=3).read(torch.tensor([[3, 4, 5, 6]]))


def test_few_tokens_are_not_worth_a_recording():
    decoder, _ = logits_of(network_of("Llama"), n_new=3)
    assert not decoder.is_native
    assert decoder.reason


def test_without_native_kernels_the_models_own_code_runs(monkeypatch):
    monkeypatch.setattr(decoding, "has_kernels", lambda: False)
    decoder, found = logits_of(network_of("Llama"))
    assert decoder.reason == "no native kernels"
    _, expected = logits_of(network_of("Llama"), is_native=False)
    assert torch.equal(found, expected)


def test_more_tokens_than_announced_are_refused():
    decoder = Decoder(network_of("Llama"), max_tokens=3)
    decoder.read(torch.tensor([[1, 2]]))
    decoder.next(3)
    with pytest.raises(RequestError, match="3 tokens have been read"):
        decoder.next(4)
