"""One forward and one backward pass over calibration tokens, block by block with recomputation.

H = E[x x'] of every distinct linear input; G = E[g^2] of every output by the true Fisher of the network's
own distribution. Only the inputs of blocks (on disk) and one block's activations are held. H wants more
tokens than G does, and costs a third of what it does: some batches may run forward only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from laq.calibration.blocks import (
    BlockCall,
    BlockInputs,
    ReachedBlock,
    blocks_of,
    call_of,
    find_chain,
    has_own_blocks,
    hidden_of,
    input_of,
)
from laq.calibration.moments import Collector, hook_weights, hooks
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
        if not has_own_blocks(network):
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


class _NotAChainError(Exception):
    """A block's input is not the output of the block before it, so gradients cannot pass block by block."""


@dataclass(slots=True)
class _Pass:
    """One run over the calibration data."""

    network: Network
    batches: Sequence[Batch]
    others: Sequence[Batch]
    generator: torch.Generator
    collector: Collector
    calls: dict[tuple[int, int], BlockCall] = field(default_factory=dict)

    def whole(self) -> None:
        """Forward and backward through the whole network at once, for those without a list of blocks."""
        with hooks(*self._install(lambda _: True)):
            for batch in track(self.batches, label="calibrating", total=len(self.batches)):
                logits = run_logits(self.network.module, batch)
                logits.backward(self._fisher_gradient(logits))
                self.collector.seen.clear()
        self.collector.finish()
        self._inputs_at_once()

    def _inputs_at_once(self) -> None:
        """Add the inputs of all linears over the other batches; the sums of all are held."""
        with torch.no_grad(), hooks(*self._install(lambda _: True, with_rows=False)):
            for batch in track(self.others, label="calibrating: inputs", total=len(self.others)):
                logits = run_logits(self.network.module, batch)
                self.collector.n_forward_tokens += logits.shape[:-1].numel()
                self.collector.seen.clear()
        self.collector.finish()

    def blockwise(self) -> None:
        """Forward once, then backward block by block, then through the embedding; others only forward."""
        blocks = blocks_of(self.network)
        n = len(self.batches)
        for index in track(range(n), label="calibrating: forward", total=n):
            self._forward(index, blocks)
        self.collector.finish()
        steps = iter(track(range(len(blocks) * n), label="calibrating: backward", total=len(blocks) * n))
        for block in reversed(range(len(blocks))):
            with hooks(*self._install(self._is_in(block))):
                for index, _ in zip(range(n), steps, strict=False):
                    self._backward(block, blocks[block], index)
            self.collector.finish()
        next(steps, None)  # lets the display finish
        for index in track(range(n), label="calibrating: embedding", total=n):
            self._backward_embedding(index, blocks[0])
        self.collector.finish()
        for index in range(n):
            self.collector.spool.drop(f"gradient-{index}")
        if self.others:
            self._inputs()

    @torch.no_grad()
    def _inputs(self) -> None:
        """Add the inputs of all blocks over the other batches, block by block: one output each is held.

        What lies outside of the blocks keeps the moments of the batches that run backward.
        """
        chain = find_chain(self.network, self.batches[0])
        if chain is None:
            self._inputs_at_once()
            return
        inputs = BlockInputs(chain, self.others, self.collector.spool)
        self.collector.n_forward_tokens += inputs.n_tokens
        n = len(chain.blocks) * len(self.others)
        steps = iter(track(range(n), label="calibrating: inputs", total=n))
        for block in range(len(chain.blocks)):
            with hooks(*self._install(self._is_in(block), with_rows=False)):
                for index, _ in zip(range(len(self.others)), steps, strict=False):
                    inputs.advance(block, index)
                    self.collector.seen.clear()
            self.collector.finish()
        next(steps, None)  # lets the display finish

    def _forward(self, index: int, blocks: list[nn.Module]) -> None:
        """Run all of the network; gradients start at the last block's output."""
        last: list[torch.Tensor] = []

        def cut(module: nn.Module, args: Any, output: Any) -> Any:
            del module, args
            last.append(hidden_of(output).detach().requires_grad_())
            return last[0] if isinstance(output, torch.Tensor) else (last[0], *output[1:])

        before: list[torch.Tensor] = []

        def remember(module: nn.Module, args: Any, output: Any) -> None:
            del module, args
            before[:] = [hidden_of(output)]

        handles = [
            block.register_forward_pre_hook(self._keep(i, index, before), with_kwargs=True)
            for i, block in enumerate(blocks)
        ]
        handles += [block.register_forward_hook(remember) for block in blocks]
        handles.append(blocks[-1].register_forward_hook(cut))
        outputs: list[torch.Tensor] = []
        head = self._head()
        if head is not None:
            handles.append(
                head[1].register_forward_hook(self.collector.linear_hook(head[0].name, with_rows=False))
            )
            handles.append(head[1].register_forward_hook(lambda module, args, output: outputs.append(output)))
        outside = self._install(lambda path: not self._in_blocks(path) and (head is None or path != head[2]))
        with hooks(*handles, *outside):
            logits = run_logits(self.network.module, self.batches[index])
            gradient = self._fisher_gradient(logits, head=head[0] if head else None, head_output=outputs)
            logits.backward(gradient)
        assert last[0].grad is not None
        self.collector.spool.put(f"gradient-{index}", last[0].grad)
        self.collector.seen.clear()

    def _keep(self, block: int, index: int, before: Sequence[torch.Tensor]) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            del module
            hidden = input_of(args, kwargs)
            if block and not (before and before[0].data_ptr() == hidden.data_ptr()):
                raise _NotAChainError
            self.collector.spool.put(f"input-{block}-{index}", hidden)
            self.calls[block, index] = call_of(args, kwargs)

        return hook

    def _backward(self, block: int, module: nn.Module, index: int) -> None:
        spool, call = self.collector.spool, self.calls.pop((block, index))
        hidden = spool.get(f"input-{block}-{index}").requires_grad_()
        output = hidden_of(module(hidden, *call.args, **call.kwargs))
        output.backward(spool.get(f"gradient-{index}"))
        assert hidden.grad is not None
        spool.drop(f"input-{block}-{index}")
        spool.put(f"gradient-{index}", hidden.grad)
        self.collector.seen.clear()

    def _backward_embedding(self, index: int, first: nn.Module) -> None:
        """Carry the gradient of the first block's input back to what the embeddings returned."""

        def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            del module
            raise ReachedBlock(input_of(args, kwargs))

        handles = [first.register_forward_pre_hook(stop, with_kwargs=True)]
        for weight in self.network.weights:
            for path in weight.modules:
                child = self.network.module.get_submodule(path)
                if isinstance(child, nn.Embedding) and not self._in_blocks(path):
                    handles.append(child.register_forward_hook(self.collector.embedding_hook(weight.name)))
        with hooks(*handles):
            try:
                run_logits(self.network.module, self.batches[index])
            except ReachedBlock as reached:
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
        """Hook the weights whose path is wanted."""
        return hook_weights(self.network, self.collector, wanted, with_rows=with_rows)

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
