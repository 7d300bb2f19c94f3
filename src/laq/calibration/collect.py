"""One forward and one backward pass over calibration tokens, block by block with recomputation.

H = E[x x'] of every distinct linear input; G = E[g^2] of every output by the true Fisher of the network's
own distribution. Only the inputs of blocks (on disk) and one block's activations are held. H wants more
tokens than G does, and costs a third of what it does: some batches may run forward only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from laq.calibration.moments import Collector
from laq.calibration.spool import Spool
from laq.core.errors import CalibrationError, DataError
from laq.core.progress import track
from laq.core.stats import Stats, Use
from laq.networks.module import Batch, Network, WeightRef, arguments_of, evaluation_mode, run_logits

SLICE_TOKENS = 64
"""Tokens whose class probabilities are squared at a time: bounds the temporary for large vocabularies."""


def calibrate(
    network: Network, batches: Sequence[Batch], *, n_gradient: int | None = None, seed: int = 0
) -> Stats:
    """Collect the statistics of all quantizable weights.

    Parameters
    ----------
    network : Network
        Run in evaluation mode; left as it was.
    batches : sequence of Batch
        Calibration data.
    n_gradient : int, optional
        Batches that also run backward, spread evenly; the others only add to the moments of inputs. All if
        not given.
    seed : int
        Seeds the gradients at the logits.

    Raises
    ------
    DataError
        If there are no batches.
    CalibrationError
        If a weight is never used or the network's output is not finite.
    """
    if not batches:
        raise DataError("no calibration data", hint="pass a text file with --data")

    graded, others = _spread(batches, len(batches) if n_gradient is None else n_gradient)

    def new_pass(blocks: str) -> _Pass:
        own = replace(network, blocks=blocks)
        return _Pass(own, graded, others, torch.Generator().manual_seed(seed), Collector(Spool()))

    pass_ = new_pass(network.blocks)
    with _frozen(network.module), torch.enable_grad():
        if not network.blocks or _shared_between_blocks(network):
            pass_ = new_pass("")
            pass_.whole()
        else:
            try:
                pass_.blockwise()
            except _NotAChainError:
                pass_ = new_pass("")
                pass_.whole()
    return _stats(network, pass_.collector, hash_batches(batches))


def _spread(batches: Sequence[Batch], n: int) -> tuple[list[Batch], list[Batch]]:
    """Split into `n` batches (at least one) that lie evenly among all, and the others."""
    n = min(max(n, 1), len(batches))
    chosen = {index * len(batches) // n for index in range(n)}
    parts: tuple[list[Batch], list[Batch]] = ([], [])
    for index, batch in enumerate(batches):
        parts[index not in chosen].append(batch)
    return parts


def _shared_between_blocks(network: Network) -> bool:
    """Say whether a weight is held by several blocks: its sums would close before all of them ran."""
    prefix = f"{network.blocks}."
    for weight in network.weights:
        inside = [
            path.removeprefix(prefix).partition(".")[0] for path in weight.modules if path.startswith(prefix)
        ]
        if len(set(inside)) > 1 or (inside and len(inside) < len(weight.modules)):
            return True
    return False


def hash_batches(batches: Sequence[Batch]) -> str:
    """Return sha256 over the tensors of all batches."""
    digest = hashlib.sha256()
    for batch in batches:
        for value in arguments_of(batch):
            if isinstance(value, torch.Tensor):
                digest.update(value.contiguous().view(-1).view(torch.uint8).cpu().numpy().data)
    return digest.hexdigest()


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """Evaluation mode, no gradients of parameters; both are put back."""
    wanted = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in wanted:
        parameter.requires_grad = False
    try:
        with evaluation_mode(module):
            yield
    finally:
        for parameter in wanted:
            parameter.requires_grad = True


@contextmanager
def _hooks(*hooks: torch.utils.hooks.RemovableHandle) -> Iterator[None]:
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _forward_replaced(
    blocks: Sequence[nn.Module], replacement: Callable[[int], Callable[..., Any]]
) -> Iterator[None]:
    """Let every block run `replacement(its number)` for a while."""
    before = [vars(block).get("forward") for block in blocks]
    try:
        for number, block in enumerate(blocks):
            vars(block)["forward"] = replacement(number)
        yield
    finally:
        for block, its in zip(blocks, before, strict=True):
            if its is None:
                del vars(block)["forward"]
            else:
                vars(block)["forward"] = its


class _ReachedBlock(Exception):  # noqa: N818 - not an error: it ends a forward pass early
    """Carries a block's input out of a forward pass."""

    def __init__(self, hidden: torch.Tensor) -> None:
        super().__init__()
        self.hidden = hidden


class _NotAChainError(Exception):
    """A block's input is not the output of the block before it, so gradients cannot pass block by block."""


@dataclass(slots=True)
class _BlockCall:
    """What a block was called with besides its first argument."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def values(self) -> tuple[Any, ...]:
        """Everything in it, names included."""
        return self.args, tuple(self.kwargs), tuple(self.kwargs.values())


def _call_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> _BlockCall:
    """Return what a block was called with, but for its input and a cache that would be filled again."""
    left_out = ("hidden_states", "past_key_values", "past_key_value")
    others = {name: value for name, value in kwargs.items() if name not in left_out}
    if "use_cache" in others:
        others["use_cache"] = False
    return _BlockCall(args[1:], others)


def _are_equal(one: Any, other: Any) -> bool:
    """Compare values that may hold tensors; objects of other kinds are equal only to themselves."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(_are_equal, one, other))
    return one is other or (isinstance(one, bool | int | float | str) and one == other)


def _hidden_of(output: Any) -> torch.Tensor:
    """Return what a block hands to the next one."""
    hidden: torch.Tensor = output if isinstance(output, torch.Tensor) else output[0]
    return hidden


@dataclass(slots=True)
class _Pass:
    """One run over the calibration data."""

    network: Network
    batches: Sequence[Batch]
    others: Sequence[Batch]
    generator: torch.Generator
    collector: Collector
    calls: dict[tuple[int, int], _BlockCall] = field(default_factory=dict)
    returns_tuple: bool = False
    returns_one: bool = True

    def whole(self) -> None:
        """Forward and backward through the whole network at once, for those without a list of blocks."""
        with _hooks(*self._install(lambda _: True)):
            for batch in track(self.batches, label="calibrating", total=len(self.batches)):
                logits = run_logits(self.network.module, batch)
                logits.backward(self._fisher_gradient(logits))
                self.collector.seen.clear()
        self.collector.finish()
        self._inputs_at_once()

    def _inputs_at_once(self) -> None:
        """Add the inputs of all linears over the other batches; the sums of all are held."""
        with torch.no_grad(), _hooks(*self._install(lambda _: True, with_rows=False)):
            for batch in track(self.others, label="calibrating: inputs", total=len(self.others)):
                logits = run_logits(self.network.module, batch)
                self.collector.n_forward_tokens += logits.shape[:-1].numel()
                self.collector.seen.clear()
        self.collector.finish()

    def blockwise(self) -> None:
        """Forward once, then backward block by block, then through the embedding; others only forward."""
        blocks = list(self.network.module.get_submodule(self.network.blocks).children())
        n = len(self.batches)
        for index in track(range(n), label="calibrating: forward", total=n):
            self._forward(index, blocks)
        self.collector.finish()
        can_skip = self._can_skip(blocks)
        steps = iter(track(range(len(blocks) * n), label="calibrating: backward", total=len(blocks) * n))
        for block in reversed(range(len(blocks))):
            with _hooks(*self._install(self._is_in(block))):
                for index, _ in zip(range(n), steps, strict=False):
                    self._backward(block, blocks[block], index)
            self.collector.finish()
        next(steps, None)  # lets the display finish
        for index in track(range(n), label="calibrating: embedding", total=n):
            self._backward_embedding(index, blocks[0])
        self.collector.finish()
        for index in range(n):
            self.collector.spool.drop(f"gradient-{index}")
        if self.others and can_skip:
            self._inputs(blocks)
        elif self.others:
            self._inputs_at_once()

    @torch.no_grad()
    def _inputs(self, blocks: list[nn.Module]) -> None:
        """Add the inputs of all blocks over the other batches, block by block: one output each is held.

        What lies outside of the blocks keeps the moments of the batches that run backward.
        """
        spool, n = self.collector.spool, len(self.others)
        for index, batch in enumerate(self.others):
            hidden = self._record_calls(index, batch, blocks)
            spool.put(f"hidden-{index}", hidden)
            self.collector.n_forward_tokens += hidden.shape[:-1].numel()
        steps = iter(track(range(len(blocks) * n), label="calibrating: inputs", total=len(blocks) * n))
        for number, block in enumerate(blocks):
            with _hooks(*self._install(self._is_in(number), with_rows=False)):
                for index, _ in zip(range(n), steps, strict=False):
                    call = self.calls.pop((number, index))
                    output = block(spool.get(f"hidden-{index}"), *call.args, **call.kwargs)
                    if block is blocks[-1]:
                        spool.drop(f"hidden-{index}")
                    else:
                        spool.put(f"hidden-{index}", _hidden_of(output))
                    self.collector.seen.clear()
            self.collector.finish()
        next(steps, None)  # lets the display finish

    def _can_skip(self, blocks: list[nn.Module]) -> bool:
        """Say whether blocks are called the same when none of them runs; tried on the first batch."""
        if not self.others or not self.returns_one:
            return False
        with torch.no_grad():
            self._record_calls(-1, self.batches[0], blocks)
        return all(
            _are_equal(self.calls.pop((block, -1)).values, self.calls[block, 0].values)
            for block in range(len(blocks))
        )

    def _record_calls(self, index: int, batch: Batch, blocks: list[nn.Module]) -> torch.Tensor:
        """Record what every block is called with, without running any of them; returns the first's input."""
        first: list[torch.Tensor] = []

        def skip(block: int) -> Callable[..., Any]:
            def forward(*args: Any, **kwargs: Any) -> Any:
                hidden = args[0] if args else kwargs["hidden_states"]
                first.append(hidden)
                self.calls[block, index] = _call_of(args, kwargs)
                if block == len(blocks) - 1:
                    raise _ReachedBlock(hidden)
                return (hidden,) if self.returns_tuple else hidden

            return forward

        with _forward_replaced(blocks, skip), suppress(_ReachedBlock):
            run_logits(self.network.module, batch)
        return first[0]

    def _forward(self, index: int, blocks: list[nn.Module]) -> None:
        """Run all of the network; gradients start at the last block's output."""
        last: list[torch.Tensor] = []

        def cut(module: nn.Module, args: Any, output: Any) -> Any:
            del module, args
            last.append(_hidden_of(output).detach().requires_grad_())
            self.returns_tuple = not isinstance(output, torch.Tensor)
            return (last[0], *output[1:]) if self.returns_tuple else last[0]

        before: list[torch.Tensor] = []

        def remember(module: nn.Module, args: Any, output: Any) -> None:
            del module, args
            before[:] = [_hidden_of(output)]
            self.returns_one &= isinstance(output, torch.Tensor) or len(output) == 1

        hooks = [
            block.register_forward_pre_hook(self._keep(i, index, before), with_kwargs=True)
            for i, block in enumerate(blocks)
        ]
        hooks += [block.register_forward_hook(remember) for block in blocks]
        hooks.append(blocks[-1].register_forward_hook(cut))
        outputs: list[torch.Tensor] = []
        head = self._head()
        if head is not None:
            hooks.append(
                head[1].register_forward_hook(self.collector.linear_hook(head[0].name, with_rows=False))
            )
            hooks.append(head[1].register_forward_hook(lambda module, args, output: outputs.append(output)))
        outside = self._install(lambda path: not self._in_blocks(path) and (head is None or path != head[2]))
        with _hooks(*hooks, *outside):
            logits = run_logits(self.network.module, self.batches[index])
            gradient = self._fisher_gradient(logits, head=head[0] if head else None, head_output=outputs)
            logits.backward(gradient)
        assert last[0].grad is not None
        self.collector.spool.put(f"gradient-{index}", last[0].grad)
        self.collector.seen.clear()

    def _keep(self, block: int, index: int, before: Sequence[torch.Tensor]) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            del module
            hidden = args[0] if args else kwargs["hidden_states"]
            if block and not (before and before[0].data_ptr() == hidden.data_ptr()):
                raise _NotAChainError
            self.collector.spool.put(f"input-{block}-{index}", hidden)
            self.calls[block, index] = _call_of(args, kwargs)

        return hook

    def _backward(self, block: int, module: nn.Module, index: int) -> None:
        spool, call = self.collector.spool, self.calls.pop((block, index))
        hidden = spool.get(f"input-{block}-{index}").requires_grad_()
        output = _hidden_of(module(hidden, *call.args, **call.kwargs))
        output.backward(spool.get(f"gradient-{index}"))
        assert hidden.grad is not None
        spool.drop(f"input-{block}-{index}")
        spool.put(f"gradient-{index}", hidden.grad)
        self.collector.seen.clear()

    def _backward_embedding(self, index: int, first: nn.Module) -> None:
        """Carry the gradient of the first block's input back to what the embeddings returned."""

        def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            del module
            raise _ReachedBlock(args[0] if args else kwargs["hidden_states"])

        hooks = [first.register_forward_pre_hook(stop, with_kwargs=True)]
        for weight in self.network.weights:
            for path in weight.modules:
                child = self.network.module.get_submodule(path)
                if isinstance(child, nn.Embedding) and not self._in_blocks(path):
                    hooks.append(child.register_forward_hook(self.collector.embedding_hook(weight.name)))
        with _hooks(*hooks):
            try:
                run_logits(self.network.module, self.batches[index])
            except _ReachedBlock as reached:
                if reached.hidden.requires_grad:
                    reached.hidden.backward(self.collector.spool.get(f"gradient-{index}"))

    def _is_in(self, block: int) -> Callable[[str], bool]:
        prefix = f"{self.network.blocks}.{block}."
        return lambda path: path.startswith(prefix)

    def _in_blocks(self, path: str) -> bool:
        return path.startswith(f"{self.network.blocks}.")

    def _install(
        self, wanted: Callable[[str], bool], *, with_rows: bool = True
    ) -> list[torch.utils.hooks.RemovableHandle]:
        """Hook the linears, and without blocks the embeddings, whose path is wanted."""
        handles = []
        for weight in self.network.weights:
            held_by = [self.network.module.get_submodule(path) for path in weight.modules]
            alone = sum(isinstance(child, nn.Linear) for child in held_by) > 1
            for path in filter(wanted, weight.modules):
                child = self.network.module.get_submodule(path)
                if isinstance(child, nn.Linear):
                    hook = self.collector.linear_hook(weight.name, with_rows=with_rows, alone=alone)
                    handles.append(child.register_forward_hook(hook))
                elif with_rows and not self.network.blocks:
                    handles.append(child.register_forward_hook(self.collector.embedding_hook(weight.name)))
        return handles

    def _head(self) -> tuple[WeightRef, nn.Module, str] | None:
        """Return the weight, module and path of the output head, if the module names one."""
        getter = getattr(self.network.module, "get_output_embeddings", None)
        module = getter() if getter is not None else None
        for weight in self.network.weights:
            for path in weight.modules:
                if module is not None and self.network.module.get_submodule(path) is module:
                    return weight, module, path
        return None

    def _fisher_gradient(
        self, logits: torch.Tensor, *, head: WeightRef | None = None, head_output: Sequence[torch.Tensor] = ()
    ) -> torch.Tensor:
        """Return a random gradient at the logits whose covariance is the true Fisher, diag(p) - p p'.

        Gradients of -log p(label) over sampled labels have it too, but a class that no label hit then seems
        not to matter. With random signs e the vector sqrt(p) e - p sum(sqrt(p) e) has it and reaches all
        classes. The squared gradient of the head's own output has a closed mean, p (1 - p), which is used.
        """
        probabilities = logits.detach().float().flatten(0, -2).softmax(-1)
        if not bool(torch.isfinite(probabilities).all()):
            raise CalibrationError(
                f"{self.network.source}: the network's output is not finite on calibration data"
            )
        self.collector.n_tokens += len(probabilities)
        if head is not None:
            if any(output.data_ptr() == logits.data_ptr() for output in head_output):
                for part in probabilities.split(SLICE_TOKENS):
                    self.collector.add_rows(head.name, part * (1 - part))
            else:
                head_output[0].register_hook(
                    lambda g: self.collector.add_rows(head.name, g.float().flatten(0, -2) ** 2)
                )
        roots = probabilities.sqrt().mul_(random_signs(probabilities.shape, self.generator))
        roots.addcmul_(probabilities, roots.sum(-1, keepdim=True), value=-1)
        return roots.view(logits.shape).to(logits.dtype)


def random_signs(shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """Return float32 values of -1 and 1, one random bit each."""
    n = shape.numel()
    octets = torch.randint(256, (-(-n // 8),), dtype=torch.uint8, generator=generator)
    bits = torch.from_numpy(np.unpackbits(octets.numpy(), count=n))
    return bits.float().mul_(2).sub_(1).view(shape)


def _stats(network: Network, collector: Collector, data_hash: str) -> Stats:
    uses = {weight.name: _uses(weight.name, collector) for weight in network.weights}
    unused = [name for name, found in uses.items() if not found]
    if unused:
        raise CalibrationError(
            f"calibration never used {', '.join(unused[:8])}" + (" and others" if len(unused) > 8 else ""),
            hint="give data that reaches every part of the network, or leave these weights alone with --keep",
        )
    n_tokens = collector.n_tokens + collector.n_forward_tokens
    return Stats(collector.moments, uses, n_tokens, data_hash)


def _uses(name: str, collector: Collector) -> tuple[Use, ...]:
    pairs = [(collector.input_keys.get(name, ""), f"{name}:rows"), (f"{name}:gradient", f"{name}:frequency")]
    found = [Use(*pair) for pair in pairs if pair[0] in collector.moments and pair[1] in collector.moments]
    return tuple(found)
