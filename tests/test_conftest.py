"""The networks that other tests lean on are what they are said to be."""

import math
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TEXT = "The quick brown fox assigns a value to the name of an object."


@pytest.fixture(scope="module")
def model(tiny_llama: Path):
    return transformers.AutoModelForCausalLM.from_pretrained(tiny_llama).eval()


@pytest.fixture(scope="module")
def tokenizer(tiny_llama: Path):
    return transformers.AutoTokenizer.from_pretrained(tiny_llama)


def test_tiny_llama_has_the_promised_shape(model):
    assert isinstance(model, transformers.LlamaForCausalLM)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.lm_head.weight.shape == (512, 64)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.model.layers[1].mlp.down_proj.weight.shape == (64, 192)
    assert model.model.layers[1].self_attn.k_proj.weight.shape == (32, 64)


def test_tiny_llama_tokenizer_gives_the_text_back(tokenizer):
    text = TEXT + " Ünïcödé 漢字\n\tdone"
    ids = tokenizer(text)["input_ids"]
    assert len(tokenizer) == 512
    assert max(ids) < 512
    assert len(ids) < len(text.encode())
    assert tokenizer.decode(ids) == text


def test_tiny_llama_predictions_are_peaked_and_depend_on_context(model, tokenizer):
    ids = torch.tensor([tokenizer(TEXT)["input_ids"]])
    with torch.no_grad():
        log_probs = torch.log_softmax(model(ids).logits[0], dim=-1)
    entropy_nats = -(log_probs.exp() * log_probs).sum(-1)
    assert 1.0 < entropy_nats.mean() < math.log(512) - 1.0
    assert len(set(log_probs.argmax(-1).tolist())) > 5


def test_smollm2_is_a_gguf_file(smollm2_path: Path):
    with smollm2_path.open("rb") as file:
        assert file.read(4) == b"GGUF"
