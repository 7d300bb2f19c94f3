"""One token after the other: a static key-value cache, and a call that is recorded and repeated natively."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import nn

from laq.core.errors import RequestError
from laq.runtime.calls import has_kernels
from laq.runtime.lowering import changed_outside, lower
from laq.runtime.packed import versions_of
from laq.runtime.program import Program
from laq.runtime.recording import Event, NotRecordableError, Recording, check_same, storage_of

WORTH_RECORDING = 24
"""Tokens below which recording takes longer than it saves."""

FIRST_CAPACITY = 1024
"""Positions that a cache has room for at first, if so many are wanted; doubled when they are full."""

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Largest difference of repeated logits, relative to the largest of them: sums are added in another order."""


class Decoder:
    """Feeds a causal language model of transformers token by token and returns what it expects next.

    The model's own code runs for the prompt and for three tokens. Two of them are recorded; if both did the
    same, the third is computed both ways. If logits and everything that it changed agree, further tokens are
    repeated by the native kernels. Else the model's own code goes on. Where tokens are repeated no Python of
    the model runs, hooks included. Weights that change meanwhile are noticed, replaced modules are not.

    Parameters
    ----------
    module : nn.Module
        A causal language model of transformers, in evaluation mode.
    max_tokens : int
        The longest text, prompt included.
    repeats : bool
        False lets the model's own code run for every token.

    Attributes
    ----------
    reason : str
        Why tokens are not repeated natively; empty if they are, or will be.
    """

    def __init__(self, module: nn.Module, *, max_tokens: int, repeats: bool = True) -> None:
        self.module: Any = module
        self.max_tokens = max_tokens
        self.n_tokens = 0
        self.reason = _obstacle(module) if repeats else "not asked to"
        self._cache: Any = None
        self._is_static = False
        with torch.inference_mode(mode=False):
            self._token = torch.zeros((1, 1), dtype=torch.int64)
        self._forget()

    @property
    def is_native(self) -> bool:
        """Whether the next token is repeated by the native kernels."""
        return self._is_trusted

    @property
    def capacity(self) -> int:
        """Positions that the static cache has room for; 0 without one."""
        return int(self._cache.layers[0].max_cache_len) if self._is_static else 0

    def read(self, ids: torch.Tensor) -> torch.Tensor:
        """Read a prompt, int64 [1, n]; returns the logits after it, [1, 1, n_classes].

        Raises
        ------
        RequestError
            If one has been read, or it is longer than `max_tokens`.
        """
        if self.n_tokens:
            raise RequestError("this decoder has read a prompt", hint="make another one for another text")
        n = ids.shape[1]
        if n > self.max_tokens:
            raise RequestError(
                f"a prompt of {n} tokens, max_tokens={self.max_tokens}", hint="raise max_tokens"
            )
        if not self.reason and self.max_tokens - n < WORTH_RECORDING:
            self.reason = "few tokens"
        if not self.reason:
            self._cache = _static_cache(self.module, self._room_for(n))
            self._is_static = self._cache is not None
            if not self._is_static:
                self.reason = "layers that forget positions"
        logits = self._run(ids)
        self.n_tokens = n
        return logits

    def next(self, token: int) -> torch.Tensor:
        """Read one more token; returns the logits after it, [1, 1, n_classes], until the next call.

        Raises
        ------
        RequestError
            If no prompt or `max_tokens` have been read, or the vocabulary lacks the token.
        """
        if not self.n_tokens:
            raise RequestError("no prompt has been read", hint="call read first")
        if self.n_tokens >= self.max_tokens:
            raise RequestError(f"{self.n_tokens} tokens have been read", hint="raise max_tokens")
        n_classes = getattr(self.module.get_input_embeddings(), "num_embeddings", token + 1)
        if not 0 <= token < n_classes:
            raise RequestError(f"token {token}: the vocabulary has {n_classes}", hint="use its own tokenizer")
        self._token.fill_(token)
        if self.n_tokens == self.capacity:
            self._grow()
        logits = self._run(self._token) if self.reason else self._step()
        self.n_tokens += 1
        return logits

    @torch.inference_mode(mode=False)
    @torch.no_grad()  # not inference mode: siblings compute together only where changes are seen
    def _run(self, ids: torch.Tensor) -> torch.Tensor:
        output = self.module(input_ids=ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        self._cache = output.past_key_values
        logits: torch.Tensor = output.logits
        return logits

    def _step(self) -> torch.Tensor:
        """Read the token in `_token` by whatever is known of the tokens before it."""
        if self._weights is not None and not self._weights.are_same():
            self._forget()
        if self._program is None:
            return self._record()
        if not self._is_trusted:
            return self._compare()
        assert self._logits is not None
        self._program.run()
        return self._logits

    def _forget(self) -> None:
        """What was recorded pointed to memory that is no longer used."""
        self._events: list[Event] = []
        self._program: Program | None = None
        self._logits: torch.Tensor | None = None
        self._weights: _Weights | None = None
        self._is_trusted = False

    def _refuse(self, reason: str) -> None:
        self._forget()
        self.reason = reason

    def _record(self) -> torch.Tensor:
        """Run a token and record it; the second recording becomes the program."""
        recording = Recording()
        with recording:
            logits = self._run(self._token)
        try:
            if self._events:
                check_same(self._events, recording.events)
                self._program, self._logits = lower(recording.events, [self._token]), logits
                self._weights = _Weights(self.module)
            self._events = recording.events
        except NotRecordableError as obstacle:
            self._refuse(str(obstacle))
        return logits

    def _compare(self) -> torch.Tensor:
        """Compute a token both ways; the program is trusted if both changed the same memory alike."""
        assert self._program is not None
        assert self._logits is not None
        counters = self._counters()
        before = [memory.clone() for memory in counters]
        self._program.run()
        repeated = [self._logits.clone(), *self._written_now(), *(memory.clone() for memory in counters)]
        for memory, value in zip(counters, before, strict=True):
            memory.copy_(value)
        logits = self._run(self._token)
        difference = max(map(_difference, repeated, [logits, *self._written_now(), *counters]))
        if difference <= TOLERANCE[logits.dtype]:
            self._is_trusted = True
        else:
            self._refuse(f"repeating a token differs by {difference:.1g} of its logits or of what it keeps")
        return logits

    def _written_now(self) -> list[torch.Tensor]:
        """What the current token put into the cache."""
        place = self.n_tokens
        return [
            part[:, :, place].clone() for layer in self._cache.layers for part in (layer.keys, layer.values)
        ]

    def _counters(self) -> list[torch.Tensor]:
        """Bytes of all memory that a token changes, besides the cache and what it makes itself."""
        cached = {storage_of(part) for layer in self._cache.layers for part in (layer.keys, layer.values)}
        return [
            torch.empty(0, dtype=torch.uint8).set_(storage)
            for key, storage in changed_outside(self._events).items()
            if key not in cached
        ]

    def _room_for(self, n_tokens: int) -> int:
        capacity = FIRST_CAPACITY
        while capacity < min(n_tokens + WORTH_RECORDING, self.max_tokens):
            capacity *= 2
        return min(capacity, self.max_tokens)

    @torch.inference_mode(mode=False)
    def _grow(self) -> None:
        """Move to a larger cache."""
        old, self._cache = self._cache, _static_cache(self.module, self._room_for(self.n_tokens + 1))
        for layer, source in zip(self._cache.layers, old.layers, strict=True):
            layer.lazy_initialization(source.keys, source.values)
            layer.keys[:, :, : source.keys.shape[2]] = source.keys
            layer.values[:, :, : source.values.shape[2]] = source.values
            layer.cumulative_length.copy_(source.cumulative_length)
        self._forget()


def _obstacle(module: Any) -> str:
    if not has_kernels():
        return "no native kernels"
    if not getattr(module, "_can_compile_fullgraph", False):
        return f"{type(module).__name__} takes no static cache"
    return ""


@torch.inference_mode(mode=False)
def _static_cache(module: Any, capacity: int) -> Any:
    """Return a cache of transformers whose layers all keep every position; None if the model wants others."""
    from transformers.cache_utils import StaticCache, StaticLayer

    cache = StaticCache(config=module.config, max_cache_len=capacity)
    return cache if all(type(layer) is StaticLayer for layer in cache.layers) else None


class _Weights:
    """Tells whether the tensors of a network are still the same, where they were, unchanged."""

    def __init__(self, module: nn.Module) -> None:
        held = [
            (store, name, tensor)
            for part in module.modules()
            for store in (part._parameters, part._buffers)
            for name, tensor in store.items()
            if tensor is not None
        ]
        self._stores = [store for store, _, _ in held]
        self._names = [name for _, name, _ in held]
        self._tensors = [tensor for _, _, tensor in held]
        self._parameters = list(module.parameters())
        self._seen = self._state()

    def are_same(self) -> bool:
        """Whether nothing has happened to them; asked for at every token, so it must be fast."""
        here = (store.get(name) for store, name in zip(self._stores, self._names, strict=True))
        is_held = all(map(operator.is_, here, self._tensors))
        return is_held and self._seen == self._state()

    def _state(self) -> tuple[object, ...]:
        return versions_of(self._tensors), [parameter.data_ptr() for parameter in self._parameters]


def _difference(repeated: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference relative to the largest value; NaN and infinities count as equal to themselves."""
    if torch.equal(repeated, expected) or not expected.numel():
        return 0.0
    if expected.dtype == torch.uint8:
        return float("inf")
    same = torch.nan_to_num(repeated.float() - expected.float(), nan=float("inf"))
    scale = float(expected.float().abs().max())
    return float(same.abs().max()) / scale if scale > 0 else float("inf")
