"""One token after the other: a static key-value cache, and a call that is recorded and repeated natively."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from laq.core.errors import RequestError
from laq.runtime.calls import has_kernels
from laq.runtime.lowering import lower
from laq.runtime.program import Program
from laq.runtime.recording import Event, NotRecordableError, Recording, check_same

WORTH_RECORDING = 24
"""Tokens below which recording takes longer than it saves."""

FIRST_CAPACITY = 1024
"""Positions that a cache has room for at first, if so many are wanted; doubled when they are full."""

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Largest difference of repeated logits, relative to the largest of them: sums are added in another order."""


class Decoder:
    """Feeds a causal language model of transformers token by token and returns what it expects next.

    The model's own code runs for the prompt and for two tokens, which are recorded. If both did the same, and
    repeating the second gives its logits, further tokens are repeated by the native kernels. Else the model's
    own code goes on.

    Parameters
    ----------
    module : nn.Module
        A causal language model of transformers, in evaluation mode.
    max_tokens : int
        The longest text, prompt included.

    Attributes
    ----------
    reason : str
        Why tokens are not repeated natively; empty if they are, or will be.
    """

    def __init__(self, module: nn.Module, *, max_tokens: int) -> None:
        self.module: Any = module
        self.max_tokens = max_tokens
        self.n_tokens = 0
        self.reason = _obstacle(module)
        self._cache: Any = None
        self._is_static = False
        self._token = torch.zeros((1, 1), dtype=torch.int64)
        self._events: list[Event] = []
        self._program: Program | None = None
        self._logits: torch.Tensor | None = None

    @property
    def is_native(self) -> bool:
        """Whether the next token is repeated by the native kernels."""
        return self._program is not None

    @property
    def capacity(self) -> int:
        """Positions that the static cache has room for; 0 without one."""
        return int(self._cache.layers[0].max_cache_len) if self._is_static else 0

    def read(self, ids: torch.Tensor) -> torch.Tensor:
        """Read a prompt, int64 [1, n]; returns the logits after it, [1, 1, n_classes]."""
        worth = self.max_tokens - ids.shape[1] >= WORTH_RECORDING
        if not self.reason and not worth:
            self.reason = "few tokens"
        if not self.reason:
            self._cache = _static_cache(self.module, self._room_for(ids.shape[1]))
            self._is_static = self._cache is not None
            if not self._is_static:
                self.reason = "layers that forget positions"
        self.n_tokens += ids.shape[1]
        return self._run(ids)

    def next(self, token: int) -> torch.Tensor:
        """Read one more token; returns the logits after it, [1, 1, n_classes], until the next call.

        Raises
        ------
        RequestError
            If `max_tokens` have been read.
        """
        if self.n_tokens >= self.max_tokens:
            raise RequestError(f"{self.n_tokens} tokens have been read", hint="raise max_tokens")
        self._token.fill_(token)
        if self.n_tokens == self.capacity:
            self._grow()
        self.n_tokens += 1
        if self._program is not None:
            assert self._logits is not None
            self._program.run()
            return self._logits
        return self._run(self._token) if self.reason else self._record()

    @torch.no_grad()  # not inference mode: siblings compute together only where changes are seen
    def _run(self, ids: torch.Tensor) -> torch.Tensor:
        output = self.module(input_ids=ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1)
        self._cache = output.past_key_values
        logits: torch.Tensor = output.logits
        return logits

    def _record(self) -> torch.Tensor:
        """Run a token and record it; the second recording becomes the program."""
        before = [(tensor, tensor.clone()) for tensor in _counters(self._events)]
        recording = Recording()
        with recording:
            logits = self._run(self._token)
        try:
            if self._events:
                check_same(self._events, recording.events)
                program = lower(recording.events, [self._token])
                logits = self._tried(program, logits, before)
            self._events = recording.events
        except NotRecordableError as obstacle:
            self.reason = str(obstacle)
        return logits

    def _tried(
        self, program: Program, logits: torch.Tensor, before: list[tuple[torch.Tensor, torch.Tensor]]
    ) -> torch.Tensor:
        """Repeat the recorded token; if its logits come out as they were, so shall the next ones."""
        expected = logits.clone()
        for tensor, value in before:
            tensor.copy_(value)
        program.run()
        largest = float((logits.float() - expected.float()).abs().max())
        if largest <= TOLERANCE[expected.dtype] * float(expected.float().abs().max()):
            self._program, self._logits = program, logits
            return logits
        self.reason = f"repeated logits differ by {largest:.3g}"
        for tensor, value in before:
            tensor.copy_(value)
        return self._run(self._token)

    def _room_for(self, n_tokens: int) -> int:
        capacity = FIRST_CAPACITY
        while capacity < min(n_tokens + WORTH_RECORDING, self.max_tokens):
            capacity *= 2
        return min(capacity, self.max_tokens)

    def _grow(self) -> None:
        """Move to a larger cache; what was recorded pointed to the old one."""
        old, self._cache = self._cache, _static_cache(self.module, self._room_for(self.n_tokens + 1))
        for layer, source in zip(self._cache.layers, old.layers, strict=True):
            layer.lazy_initialization(source.keys, source.values)
            layer.keys[:, :, : source.keys.shape[2]] = source.keys
            layer.values[:, :, : source.values.shape[2]] = source.values
            layer.cumulative_length.copy_(source.cumulative_length)
        self._events, self._program, self._logits = [], None, None


def _obstacle(module: Any) -> str:
    if not has_kernels():
        return "no native kernels"
    if not getattr(module, "_can_compile_fullgraph", False):
        return f"{type(module).__name__} takes no static cache"
    return ""


def _static_cache(module: Any, capacity: int) -> Any:
    """Return a cache of transformers whose layers all keep every position; None if the model wants others."""
    from transformers.cache_utils import StaticCache, StaticLayer

    cache = StaticCache(config=module.config, max_cache_len=capacity)
    return cache if all(type(layer) is StaticLayer for layer in cache.layers) else None


def _counters(events: list[Event]) -> list[torch.Tensor]:
    """Memory that a token changes relative to what it was; a cache gets the same values again."""
    changed = {
        tensor.data_ptr(): tensor
        for event in events
        if not event.name.startswith("aten.index_copy_")
        for tensor in event.written
    }
    return list(changed.values())
