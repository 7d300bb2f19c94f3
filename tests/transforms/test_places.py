"""Places are found by what modules do, not by their names."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM

from laq.networks.transformers import describe_causal
from laq.transforms.common.places import Place, find_places


def of_llama(**changes):
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=128,
        **changes,
    )
    torch.manual_seed(0)
    return describe_causal(LlamaForCausalLM(config).eval())


def test_all_places_of_a_llama():
    block = "model.layers.0"
    attention = tuple(f"{block}.self_attn.{name}_proj" for name in ("q", "k", "v"))
    mlp = tuple(f"{block}.mlp.{name}_proj" for name in ("gate", "up"))
    assert find_places(of_llama(tie_word_embeddings=False)) == [
        Place(f"{block}.input_layernorm", 0.0, attention),
        Place(f"{block}.self_attn.v_proj", 0.0, (f"{block}.self_attn.o_proj",), repeats=2, width=16),
        Place(f"{block}.post_attention_layernorm", 0.0, mlp),
        Place(f"{block}.mlp.up_proj", 0.0, (f"{block}.mlp.down_proj",)),
        Place("model.norm", 0.0, ("lm_head",)),
    ]


def test_a_head_that_is_the_embedding_is_no_reader():
    places = find_places(of_llama(tie_word_embeddings=True))
    assert len(places) == 4
    assert all("lm_head" not in place.readers for place in places)


@pytest.mark.parametrize(("activation", "is_found"), [("relu", True), ("gelu", False)])
def test_scales_pass_an_activation_only_if_it_keeps_them(activation, is_found):
    config = OPTConfig(
        hidden_size=32,
        ffn_dim=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=128,
        word_embed_proj_dim=32,
        activation_function=activation,
    )
    torch.manual_seed(0)
    module = OPTForCausalLM(config).eval()
    writers = {place.writer.rpartition(".")[2] for place in find_places(describe_causal(module))}
    assert ("fc1" in writers) == is_found
    assert {"self_attn_layer_norm", "v_proj"} <= writers


def test_heads_that_share_a_channel_share_its_factor():
    place = Place("v", 0.0, ("o",), repeats=2, width=2)
    columns = place.spread(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert columns.tolist() == [1, 2, 1, 2, 3, 4, 3, 4]
    assert place.gathered(columns + torch.tensor([0, 0, 2, 2] * 2)).tolist() == [2, 3, 4, 5]
