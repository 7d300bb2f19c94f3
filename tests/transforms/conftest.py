"""A small language model of uneven channels, with its statistics."""

import pytest
import torch

import laq
from laq.core.scheme import ScaleFormat
from laq.networks.transformers import describe_causal
from laq.quantizers import QUANTIZERS
from laq.quantizers.common.encoding import Encoding


def _uneven_llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=256,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = LlamaForCausalLM(config).eval()
        with torch.no_grad():
            for parameter in module.parameters():
                if parameter.ndim == 2:
                    parameter.mul_(8).mul_(torch.exp(0.7 * torch.randn(parameter.shape[1])))
            for layer in module.model.layers:
                layer.mlp.up_proj.weight.mul_(torch.exp(torch.randn(192, 1)))
    return module


@pytest.fixture(scope="session")
def batches():
    """Return token sequences as batches."""
    ids = torch.randint(0, 256, (9, 64), generator=torch.Generator().manual_seed(1))
    return [{"input_ids": row[None], "use_cache": False} for row in ids]


@pytest.fixture(scope="session")
def uneven(batches):
    """Return a network and its statistics."""
    network = describe_causal(_uneven_llama())
    return network, laq.calibrate(network, batches)


@pytest.fixture(scope="session")
def encoding():
    """Return how its weights will be encoded."""
    return Encoding(QUANTIZERS.get("gptq")(), 32, ScaleFormat.LOG8)
