"""A tiny two-block Llama in memory, and batches of token ids."""

import pytest
import torch


def _llama(*, tied=True, vocab_size=50):
    transformers = pytest.importorskip("transformers", reason="needs the extra llm")
    config = transformers.LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=vocab_size,
        max_position_embeddings=32,
        tie_word_embeddings=tied,
        initializer_range=0.25,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.LlamaForCausalLM(config)


@pytest.fixture
def llama():
    """Return a function (tied, vocab_size) -> LlamaForCausalLM."""
    return _llama


@pytest.fixture
def batches():
    """Three sequences of 16 tokens."""
    ids = torch.randint(50, (3, 1, 16), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": one, "use_cache": False} for one in ids]
