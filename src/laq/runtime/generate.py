"""Text from a causal language model, a token at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import nn

from laq.core.errors import RequestError
from laq.runtime.decoding import Decoder


def prompt_ids(tokenizer: Any, text: str, *, chat: bool) -> torch.Tensor:
    """Return token ids int64 [1, n] of a prompt, as the user's turn of a chat if asked.

    Raises
    ------
    RequestError
        If there is nothing to continue, or the tokenizer knows no chats.
    """
    if chat and not tokenizer.chat_template:
        raise RequestError("this network's tokenizer has no chat template", hint="leave --chat away")
    if chat:
        messages = [{"role": "user", "content": text}]
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    ids: torch.Tensor = tokenizer(text, return_tensors="pt", add_special_tokens=not chat)["input_ids"]
    if not ids.numel():
        raise RequestError("the prompt is empty", hint="give some text with --prompt")
    return ids.long()


def generate(
    module: nn.Module | Decoder,
    ids: torch.Tensor,
    *,
    max_new_tokens: int,
    ends: Collection[int] = (),
    temperature: float = 0.0,
    seed: int = 0,
) -> Iterator[int]:
    """Continue a prompt; yields each token as soon as it is known, the ending one left out.

    Parameters
    ----------
    module : nn.Module or Decoder
        A causal language model of transformers, or a fresh decoder of one with room for all tokens.
    ids : int64 [1, n]
        The prompt.
    max_new_tokens : int
        Stop after so many.
    ends : collection of int
        Tokens that end the text.
    temperature : float
        0 takes the likeliest token; above, tokens are sampled from softmax(logits / temperature).
    seed : int
        Seeds the sampling.
    """
    generator = torch.Generator().manual_seed(seed)
    max_tokens = ids.shape[1] + max_new_tokens
    decoder = module if isinstance(module, Decoder) else Decoder(module, max_tokens=max_tokens)
    logits = decoder.read(ids)
    for n_left in reversed(range(max_new_tokens)):
        token = _choose(logits[0, -1].float(), temperature, generator)
        if token in ends:
            return
        yield token
        if n_left:
            logits = decoder.next(token)


def _choose(logits: torch.Tensor, temperature: float, generator: torch.Generator) -> int:
    if temperature <= 0:
        return int(logits.argmax())
    return int(torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator))


def positions(module: nn.Module) -> int | None:
    """Return how many tokens a text of this language model may have; None if it does not say."""
    return getattr(getattr(module, "config", None), "max_position_embeddings", None)


def end_tokens(module: nn.Module, tokenizer: Any) -> set[int]:
    """Return the ids that end a text, as the network's generation config and its tokenizer name them."""
    configured = getattr(getattr(module, "generation_config", None), "eos_token_id", None)
    listed = configured if isinstance(configured, list) else [configured]
    return {token for token in (*listed, tokenizer.eos_token_id) if token is not None}


def pieces(tokenizer: Any, tokens: Iterator[int]) -> Iterator[str]:
    """Return text as tokens come: what they add together, held back while a character is incomplete."""
    known: list[int] = []
    written = ""
    for token in tokens:
        known.append(token)
        text = tokenizer.decode(known, skip_special_tokens=True)
        if text.endswith("\ufffd"):
            continue
        if len(text) > len(written):
            yield text[len(written) :]
            written = text
    text = tokenizer.decode(known, skip_special_tokens=True)
    if len(text) > len(written):
        yield text[len(written) :]
