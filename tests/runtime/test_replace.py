"""A packed copy of a network is an ordinary module of the same class; the original stays as it is."""

import copy
import pickle

import pytest
import torch
from torch import nn

from laq.core.errors import RequestError
from laq.kernels import native
from laq.networks import describe
from laq.runtime.embedding import PackedEmbedding
from laq.runtime.linear import PackedLinear, rounding_activations
from laq.runtime.replace import packed_copy, resident_bytes


def dense_copy(network, module):
    """The original with the packed module's weights put in as floats."""
    twin = copy.deepcopy(network.module)
    for weight in network.weights:
        twin.get_parameter(weight.name).data = module.get_submodule(weight.modules[0]).packed.dequantize()
    return twin


pytestmark = pytest.mark.usefixtures("sixteen_bits")


@pytest.fixture
def sixteen_bits(packed_llama):
    """Round activations as for one token, however many there are."""
    with rounding_activations([packed_llama[1]], 16):
        yield


@pytest.fixture
def ids():
    return torch.arange(24).reshape(2, 12)


@pytest.mark.parametrize("tolerance", [1e-3, 1e-4], ids=["native", "decoded"])
def test_packed_model_equals_its_dense_twin(packed_llama, ids, tolerance, monkeypatch):
    if tolerance < 1e-3:
        monkeypatch.setattr(native, "library", lambda: None)
    network, module = packed_llama
    with torch.inference_mode():
        logits, expected = module(input_ids=ids).logits, dense_copy(network, module)(input_ids=ids).logits
    scale = float(expected.abs().amax())
    torch.testing.assert_close(logits, expected, rtol=0, atol=tolerance * scale)


def test_packed_model_has_the_class_of_the_original_and_every_weight_packed(packed_llama):
    network, module = packed_llama
    assert type(module) is type(network.module)
    kinds = {type(child) for child in module.modules()}
    assert {PackedLinear, PackedEmbedding} <= kinds
    assert not {nn.Linear, nn.Embedding} & kinds


def test_original_is_left_as_it_was(packed_llama):
    network, module = packed_llama
    assert isinstance(network.module.lm_head, nn.Linear)
    mine = {tensor.data_ptr() for tensor in module.state_dict().values() if tensor.numel()}
    assert not mine & {tensor.data_ptr() for tensor in network.module.state_dict().values()}


def test_tied_weights_stay_one(packed_llama):
    _, module = packed_llama
    assert module.lm_head.packed is module.model.embed_tokens.packed


def test_packed_model_generates(packed_llama):
    network, module = packed_llama
    twin = dense_copy(network, module)
    prompt = torch.tensor([[5, 6, 7]])
    settings = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    mask = torch.ones_like(prompt)
    found = module.generate(prompt, attention_mask=mask, **settings)
    assert found.shape[1] > 3
    assert torch.equal(found, twin.generate(prompt, attention_mask=mask, **settings))


def test_deep_copy_of_a_model_computes_the_same_and_keeps_ties(packed_llama, ids):
    _, module = packed_llama
    twin = copy.deepcopy(module)
    with torch.inference_mode():
        assert torch.equal(twin(input_ids=ids).logits, module(input_ids=ids).logits)
    assert twin.lm_head.packed is twin.model.embed_tokens.packed
    assert twin.lm_head.packed is not module.lm_head.packed


def test_state_of_a_model_loads_into_its_copy(packed_llama, ids):
    _, module = packed_llama
    twin = copy.deepcopy(module)
    for buffer in twin.lm_head.packed.buffers():
        buffer.zero_()
    twin.load_state_dict(module.state_dict())
    with torch.inference_mode():
        assert torch.equal(twin(input_ids=ids).logits, module(input_ids=ids).logits)


def test_pickling_a_model_is_refused_with_the_way_out(packed_llama):
    with pytest.raises(RequestError, match=r"laq\.load"):
        pickle.dumps(packed_llama[1])


def test_model_cast_to_bfloat16_runs_in_bfloat16(packed_llama, ids):
    _, module = packed_llama
    twin = copy.deepcopy(module).to(torch.bfloat16)
    with torch.inference_mode():
        logits, expected = twin(input_ids=ids).logits, module(input_ids=ids).logits
    assert logits.dtype == torch.bfloat16
    assert (logits.float() - expected).abs().mean() < 0.1 * expected.abs().mean()


def test_training_flags_are_kept(packed_random):
    module = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 16))
    module[2].eval()
    network = describe(module)
    copied = packed_copy(network, {w.name: packed_random(w.shape, 32) for w in network.weights})
    assert [child.training for child in copied] == [child.training for child in module]


def test_resident_bytes_count_shared_storage_once():
    module = nn.Sequential(nn.Linear(8, 4, bias=False), nn.Linear(8, 4, bias=False))
    assert resident_bytes(module) == 2 * 4 * 8 * 4
    module[1].weight = module[0].weight
    assert resident_bytes(module) == 4 * 8 * 4
