"""Blocks run one at a time: what each was called with, and what it hands to the next one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from laq.calibration.moments import hooks
from laq.calibration.spool import Spool
from laq.core.errors import NetworkError
from laq.networks.module import Batch, Network, evaluation_mode, run_logits
from laq.networks.swapped import Swapped


class ReachedBlock(Exception):  # noqa: N818 - not an error: it ends a forward pass early
    """Carries a block's input out of a forward pass."""

    def __init__(self, hidden: torch.Tensor) -> None:
        super().__init__()
        self.hidden = hidden


@dataclass(frozen=True, slots=True)
class BlockCall:
    """What a block was called with besides its first argument."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def values(self) -> tuple[Any, ...]:
        """Everything in it, names included."""
        return self.args, tuple(self.kwargs), tuple(self.kwargs.values())


def call_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> BlockCall:
    """Return what a block was called with, but for its input and a cache that would be filled again."""
    left_out = ("hidden_states", "past_key_values", "past_key_value")
    others = {name: value for name, value in kwargs.items() if name not in left_out}
    if "use_cache" in others:
        others["use_cache"] = False
    return BlockCall(args[1:], others)


def input_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """Return what a block was given by the one before."""
    hidden: torch.Tensor = args[0] if args else kwargs["hidden_states"]
    return hidden


def hidden_of(output: Any) -> torch.Tensor:
    """Return what a block hands to the next one."""
    hidden: torch.Tensor = output if isinstance(output, torch.Tensor) else output[0]
    return hidden


def blocks_of(network: Network) -> list[nn.Module]:
    """Return the blocks of a network that has some."""
    return list(network.module.get_submodule(network.blocks).children())


def has_own_blocks(network: Network) -> bool:
    """Say whether there are blocks, and no weight is held by several of them."""
    prefix = f"{network.blocks}."
    for weight in network.weights:
        inside = [
            path.removeprefix(prefix).partition(".")[0] for path in weight.modules if path.startswith(prefix)
        ]
        if len(set(inside)) > 1 or (inside and len(inside) < len(weight.modules)):
            return False
    return bool(network.blocks)


@dataclass(frozen=True, slots=True)
class Chain:
    """Blocks that can run one at a time: each takes what the one before returned, and nothing else of it.

    Parameters
    ----------
    module : nn.Module
        What holds them.
    blocks : list of nn.Module
        In order.
    returns_tuple : bool
        Whether their output is a tuple of one.
    """

    module: nn.Module
    blocks: list[nn.Module]
    returns_tuple: bool

    def record(
        self, batch: Batch, values: Mapping[str, torch.Tensor] | None = None
    ) -> tuple[torch.Tensor, list[BlockCall]]:
        """Return the first block's input and what every block is called with, without running any of them.

        Parameters
        ----------
        batch : Batch
            What the module is given.
        values : mapping, optional
            Values by parameter name to take in place of the module's own.
        """
        first: list[torch.Tensor] = []
        calls: list[BlockCall] = []

        def skip(*args: Any, **kwargs: Any) -> Any:
            hidden = input_of(args, kwargs)
            first.append(hidden)
            calls.append(call_of(args, kwargs))
            if len(calls) == len(self.blocks):
                raise ReachedBlock(hidden)
            return (hidden,) if self.returns_tuple else hidden

        module = Swapped(self.module, values) if values else self.module
        with _forward_replaced(self.blocks, lambda block: skip), suppress(ReachedBlock):
            run_logits(module, batch)
        return first[0], calls


@torch.no_grad()
def find_chain(network: Network, batch: Batch) -> Chain | None:
    """Return the blocks of a network if they form a chain, tried on one batch; None if they do not."""
    if not has_own_blocks(network):
        return None
    blocks = blocks_of(network)
    calls: list[BlockCall] = []
    outputs: list[Any] = []
    follows: list[bool] = []

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        del module
        follows.append(not outputs or hidden_of(outputs[-1]).data_ptr() == input_of(args, kwargs).data_ptr())
        calls.append(call_of(args, kwargs))

    def after(module: nn.Module, args: Any, output: Any) -> None:
        del module, args
        outputs[:] = [output]
        follows.append(isinstance(output, torch.Tensor) or len(output) == 1)

    handles = [block.register_forward_pre_hook(before, with_kwargs=True) for block in blocks]
    handles += [block.register_forward_hook(after) for block in blocks]
    with hooks(*handles), evaluation_mode(network.module):
        run_logits(network.module, batch)
    if len(calls) != len(blocks) or not all(follows):
        return None
    chain = Chain(network.module, blocks, not isinstance(outputs[-1], torch.Tensor))
    _, skipped = chain.record(batch)
    same = len(skipped) == len(calls) and all(
        _are_equal(one.values, other.values) for one, other in zip(skipped, calls, strict=True)
    )
    return chain if same else None


def chain_of(network: Network, batch: Batch, *, asked: str) -> Chain:
    """Return the blocks of a network, tried on one batch.

    Raises
    ------
    NetworkError
        If it has none, or they cannot run one at a time; `asked` is the option that needs them.
    """
    chain = find_chain(network, batch)
    if chain is None:
        raise NetworkError(
            f"{network.source}: has no list of blocks that follow each other, each with weights of its own",
            hint=f"leave {asked} away; it is for networks of like blocks, as language models are",
        )
    return chain


class BlockInputs:
    """Inputs of one block after the other over many batches, on disk.

    Parameters
    ----------
    chain : Chain
        The blocks.
    batches : sequence of Batch
        What the network is given.
    spool : Spool
        Holds one tensor a batch.
    values : mapping, optional
        Values by parameter name for what lies outside of the blocks.
    """

    def __init__(
        self,
        chain: Chain,
        batches: Sequence[Batch],
        spool: Spool,
        *,
        values: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        self._chain, self._spool = chain, spool
        self._calls: dict[tuple[int, int], BlockCall] = {}
        self.n_tokens = 0
        for index, batch in enumerate(batches):
            hidden, calls = chain.record(batch, values)
            spool.put(f"hidden-{index}", hidden)
            self.n_tokens += hidden.shape[:-1].numel()
            self._calls |= {(block, index): call for block, call in enumerate(calls)}

    def run(self, block: int, index: int, values: Mapping[str, torch.Tensor] | None = None) -> torch.Tensor:
        """Return what a block makes of its input of one batch.

        Parameters
        ----------
        block, index : int
            Of the block and the batch.
        values : mapping, optional
            Values by the block's own parameter names to take in place of its own.
        """
        call = self._calls[block, index]
        arguments = (self._spool.get(f"hidden-{index}"), *call.args)
        return hidden_of(
            functional_call(self._chain.blocks[block], dict(values or {}), arguments, call.kwargs)
        )

    def advance(self, block: int, index: int, values: Mapping[str, torch.Tensor] | None = None) -> None:
        """Run a block for the last time: what it returns is the input of the next one."""
        output = self.run(block, index, values)
        del self._calls[block, index]
        if block + 1 == len(self._chain.blocks):
            self._spool.drop(f"hidden-{index}")
        else:
            self._spool.put(f"hidden-{index}", output)


@contextmanager
def recomputing(network: Network) -> Iterator[None]:
    """Keep only the inputs of blocks for the backward pass; each runs again when its turn comes."""

    def replacement(block: nn.Module) -> Callable[..., Any]:
        forward = block.forward

        def again(*args: Any, **kwargs: Any) -> Any:
            call = call_of(args, kwargs)
            return checkpoint(forward, input_of(args, kwargs), *call.args, use_reentrant=False, **call.kwargs)

        return again

    with _forward_replaced(blocks_of(network) if network.blocks else [], replacement):
        yield


@contextmanager
def _forward_replaced(
    blocks: Sequence[nn.Module], replacement: Callable[[nn.Module], Callable[..., Any]]
) -> Iterator[None]:
    """Let every block run its `replacement` for a while."""
    before = [vars(block).get("forward") for block in blocks]
    try:
        for block in blocks:
            vars(block)["forward"] = replacement(block)
        yield
    finally:
        for block, its in zip(blocks, before, strict=True):
            if its is None:
                del vars(block)["forward"]
            else:
                vars(block)["forward"] = its


def _are_equal(one: Any, other: Any) -> bool:
    """Compare values that may hold tensors; objects of other kinds are equal only to themselves."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(_are_equal, one, other))
    return one is other or (isinstance(one, bool | int | float | str) and one == other)
