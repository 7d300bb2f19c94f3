"""Generation gives what transformers' own greedy search gives, and text piece by piece."""

import pytest
import torch

from laq.runtime.generate import end_tokens, generate, pieces


def test_likeliest_tokens_are_those_of_transformers(packed_llama):
    _, module = packed_llama
    ids = torch.tensor([[5, 6, 7]])
    settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    expected = module.generate(ids, attention_mask=torch.ones_like(ids), **settings)[0, 3:].tolist()
    found = list(generate(module, ids, max_new_tokens=6))
    assert found[: len(expected)] == expected


def test_ends_stop_the_text_and_are_left_out(packed_llama):
    _, module = packed_llama
    ids = torch.tensor([[5, 6, 7]])
    whole = list(generate(module, ids, max_new_tokens=6))
    assert list(generate(module, ids, max_new_tokens=6, ends={whole[2]})) == whole[: whole.index(whole[2])]


def test_sampling_is_seeded(packed_llama):
    _, module = packed_llama
    ids = torch.tensor([[5, 6, 7]])
    drawn = [
        tuple(generate(module, ids, max_new_tokens=8, temperature=2.0, seed=seed)) for seed in (1, 1, 2, 3)
    ]
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) > 1


def test_end_tokens_come_from_the_generation_config_and_the_tokenizer(packed_llama):
    class Tokenizer:
        eos_token_id = 9

    assert end_tokens(packed_llama[1], Tokenizer()) == {1, 9}


class Letters:
    """Two tokens make one character: the first alone decodes to a replacement mark."""

    def decode(self, ids, *, skip_special_tokens):
        text = "".join(chr(97 + i) for i in ids[: len(ids) // 2 * 2 : 2])
        return text + ("\ufffd" if len(ids) % 2 else "")


@pytest.mark.parametrize(("n", "expected"), [(4, ["a", "c"]), (3, ["a", "\ufffd"])])
def test_incomplete_characters_are_held_back(n, expected):
    assert list(pieces(Letters(), iter(range(n)))) == expected
