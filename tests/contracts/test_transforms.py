"""What every transform promises, checked the day its file appears."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

import laq
from laq.core.errors import NetworkError, RequestError
from laq.core.scheme import ScaleFormat
from laq.networks import describe
from laq.networks.transformers import describe_causal
from laq.quantizers import QUANTIZERS
from laq.quantizers.common.encoding import Encoding
from laq.transforms import TRANSFORMS, transformed, transforms_of

NAMES = TRANSFORMS.names()
ENCODING = Encoding(QUANTIZERS.get("gptq")(), 32, ScaleFormat.LOG8)
SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 256,
    "max_position_embeddings": 128,
}
GROUPED = {**SIZES, "intermediate_size": 96, "num_key_value_heads": 2, "head_dim": 16}
FAMILIES = {
    "llama": (LlamaForCausalLM, LlamaConfig(**GROUPED, attention_bias=True, tie_word_embeddings=False)),
    "mistral": (MistralForCausalLM, MistralConfig(**GROUPED)),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**GROUPED, tie_word_embeddings=True)),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config(**GROUPED)),
    "gemma": (GemmaForCausalLM, GemmaConfig(**GROUPED)),
    "opt": (OPTForCausalLM, OPTConfig(**SIZES, ffn_dim=96, word_embed_proj_dim=64, dropout=0.0)),
}


def network_of(family, dtype=torch.float32):
    """Uneven channels everywhere, and no parameter at its initial zeros or ones."""
    of_class, config = FAMILIES[family]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = of_class(config).eval()
        with torch.no_grad():
            for parameter in module.parameters():
                if parameter.ndim == 2:
                    parameter.mul_(8).mul_(torch.exp(0.7 * torch.randn(parameter.shape[1])))
                else:
                    parameter.add_(0.3 * torch.rand_like(parameter))
    return describe_causal(module.to(dtype))


def batches():
    ids = torch.randint(0, 256, (4, 64), generator=torch.Generator().manual_seed(1))
    return [{"input_ids": row[None], "use_cache": False} for row in ids]


@pytest.fixture(scope="module", params=FAMILIES)
def calibrated(request):
    network = network_of(request.param)
    return network, laq.calibrate(network, batches())


@pytest.fixture(scope="module")
def llama():
    network = network_of("llama")
    return network, laq.calibrate(network, batches())


def logits(network):
    with torch.inference_mode():
        return torch.cat([network.module(**batch).logits for batch in batches()])


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("name", NAMES)
def test_outputs_stay_and_weights_change(calibrated, name):
    network, stats = calibrated
    made = TRANSFORMS.get(name)().apply(network, stats, ENCODING).network
    assert relative(logits(made), logits(network)) < 1e-4
    changed = [
        w.name for w in network.weights if not torch.equal(made.weight(w.name), network.weight(w.name))
    ]
    assert changed, "these networks are uneven: something is to be gained"
    assert made.weights == network.weights
    assert made.kept == network.kept


@pytest.mark.parametrize("name", NAMES)
def test_statistics_are_those_of_calibrating_anew(calibrated, name):
    network, stats = calibrated
    made = TRANSFORMS.get(name)().apply(network, stats, ENCODING)
    anew = laq.calibrate(made.network, batches())
    assert dict(made.stats.uses) == dict(anew.uses)
    assert set(made.stats.moments) == set(anew.moments)
    for key, moments in anew.moments.items():
        found = made.stats.moments[key]
        sizes = np.sqrt(np.maximum(moments.diagonal, 1e-30))
        sizes = np.outer(sizes, sizes) if moments.second.ndim == 2 else sizes**2
        np.testing.assert_allclose(found.second / sizes, moments.second / sizes, rtol=2e-3, atol=1e-4)
        np.testing.assert_allclose(found.fourth, moments.fourth, rtol=4e-3, atol=1e-30)
        np.testing.assert_allclose(found.support, moments.support, rtol=1e-2)


@pytest.mark.parametrize("name", NAMES)
def test_arguments_are_left_alone_and_what_does_not_change_is_shared(llama, name):
    network, stats = llama
    before = {key: tensor.clone() for key, tensor in network.module.state_dict().items()}
    moments = {key: (value.second.copy(), value.fourth.copy()) for key, value in stats.moments.items()}
    made = TRANSFORMS.get(name)().apply(network, stats, ENCODING).network
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.module.state_dict().items())
    for key, (second, fourth) in moments.items():
        assert np.array_equal(stats.moments[key].second, second)
        assert np.array_equal(stats.moments[key].fourth, fourth)
    embedding = "model.embed_tokens.weight"
    assert made.module.get_parameter(embedding) is network.module.get_parameter(embedding)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in made.module.modules())


@pytest.mark.parametrize("name", NAMES)
def test_the_same_arguments_give_the_same_bytes(llama, name):
    network, stats = llama
    first, second = (TRANSFORMS.get(name)().apply(network, stats, ENCODING) for _ in range(2))
    assert first.network.content_hash() == second.network.content_hash()
    assert first.network.content_hash() != network.content_hash()


@pytest.mark.parametrize("first", NAMES)
@pytest.mark.parametrize("second", NAMES)
def test_two_in_turn_keep_outputs_and_statistics(llama, first, second):
    network, stats = llama
    made = transformed(network, stats, (first, second), ENCODING)
    assert relative(logits(made.network), logits(network)) < 1e-4
    anew = laq.calibrate(made.network, batches())
    for key, moments in anew.moments.items():
        np.testing.assert_allclose(made.stats.moments[key].diagonal, moments.diagonal, rtol=2e-3, atol=1e-30)


@pytest.mark.parametrize("name", NAMES)
def test_types_of_sixteen_bits_keep_outputs_within_their_rounding(name):
    network = network_of("gemma", torch.bfloat16)
    stats = laq.calibrate(network, batches())
    made = TRANSFORMS.get(name)().apply(network, stats, ENCODING).network
    assert relative(logits(made).float(), logits(network).float()) < 0.05
    assert {w.dtype for w in made.weights} == {"bfloat16"}
    assert all(parameter.dtype is torch.bfloat16 for parameter in made.module.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_weights_left_alone_are_scaled_with_their_siblings(llama, name):
    network, stats = llama
    kept = network.keeping("k_proj|down_proj")
    own = replace(stats, uses={w.name: stats.uses[w.name] for w in kept.weights})
    made = TRANSFORMS.get(name)().apply(kept, own, ENCODING).network
    assert relative(logits(made), logits(network)) < 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_a_module_given_by_hand_is_refused_by_name(name):
    module = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32))
    network = describe(module)
    stats = laq.calibrate(network, [torch.randn(64, 32)] * 3)
    with pytest.raises(NetworkError, match="a module in memory"):
        TRANSFORMS.get(name)().apply(network, stats, ENCODING)


def test_an_unknown_name_is_refused_with_the_list():
    with pytest.raises(RequestError, match="choose one of: awq, column_norm, equalization"):
        transforms_of("awq,smooth")


def test_names_are_read_in_order():
    assert transforms_of("column_norm, awq") == ("column_norm", "awq")
    assert transforms_of(None) == transforms_of("") == ()
