"""Where the scale of a channel can move from what writes it to what reads it, without changing any output.

A norm's gain or a linear's rows write a vector; other linears read it. Candidates are found by watching one
forward pass, and kept only if moving random powers of two leaves a block's output as it was: no name of a
module is relied on, and an activation in between that does not keep scales is found out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from laq.networks.module import Network, evaluation_mode

N_PROBES = 16
"""Tokens that run through the network to find places."""

SHARE_LEFT = 0.02
"""Of the change that scaling the readers alone makes, what may be left when the writer is scaled too."""


@dataclass(frozen=True, slots=True)
class Place:
    """A vector of channels that one module writes and linears read.

    Parameters
    ----------
    writer : str
        Path of a norm with a gain, or of a linear.
    offset : float
        The norm multiplies by offset + weight: 1 in Gemma, else 0.
    readers : tuple of str
        Paths of linears.
    repeats, width : int
        Each head of `width` channels is read `repeats` times in a row (query heads share key-value heads).
    """

    writer: str
    offset: float
    readers: tuple[str, ...]
    repeats: int = 1
    width: int = 1

    def spread(self, channels: torch.Tensor) -> torch.Tensor:
        """Return the value of every column from those of the channels it reads; [n_columns]."""
        heads = channels.view(-1, 1, self.width)
        return heads.expand(-1, self.repeats, -1).reshape(-1)

    def gathered(self, columns: torch.Tensor) -> torch.Tensor:
        """Return the mean over the columns that read each channel; [n_channels]."""
        return columns.view(-1, self.repeats, self.width).mean(1).view(-1)

    def moved(self, module: nn.Module, factors: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the changed parameters: what is written is divided by factors, readers multiply by them.

        Parameters
        ----------
        module : nn.Module
            Holds writer and readers under their paths.
        factors : float32 [n_channels]
            Positive.
        """
        return self.scaled_writer(module, factors) | self.scaled_readers(module, factors)

    def scaled_writer(self, module: nn.Module, factors: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the writer's parameters for outputs divided by factors."""
        writer = module.get_submodule(self.writer)
        found = {}
        for name, parameter in writer.named_parameters(recurse=False):
            values, offset = parameter.detach().float(), self.offset if name == "weight" else 0.0
            divisor = factors[:, None] if values.ndim == 2 else factors
            found[f"{self.writer}.{name}"] = ((values + offset) / divisor - offset).to(parameter.dtype)
        return found

    def scaled_readers(self, module: nn.Module, factors: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the readers' weights for inputs divided by factors."""
        columns, found = self.spread(factors), {}
        for path in self.readers:
            weight = module.get_parameter(f"{path}.weight").detach()
            found[f"{path}.weight"] = (weight.float() * columns).to(weight.dtype)
        return found


@dataclass(slots=True)
class _Call:
    """How a module was called, and what its parts read and wrote, in order; tensors are held to tell them."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    reads: dict[str, torch.Tensor] = field(default_factory=dict)
    writes: dict[str, torch.Tensor] = field(default_factory=dict)


def probe(network: Network) -> dict[str, torch.Tensor]:
    """Return arguments of a short forward pass of a language model."""
    module: Any = network.module
    n_tokens = module.get_input_embeddings().weight.shape[0]
    ids = torch.randint(n_tokens, (1, N_PROBES), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids}


@torch.no_grad()
def find_places(network: Network) -> list[Place]:
    """Return all places of a causal language model of transformers, in the order in which they run."""
    blocks = list(network.module.get_submodule(network.blocks).children()) if network.blocks else []
    hosts = {f"{network.blocks}.{i}": block for i, block in enumerate(blocks)}
    with evaluation_mode(network.module):
        calls = _watch(network, {**hosts, "": network.module})
        return [place for path, call in calls.items() for place in _places_of(network, path, call)]


def _watch(network: Network, hosts: Mapping[str, nn.Module]) -> dict[str, _Call]:
    """Run once; what lies in no block belongs to the whole module, which comes last."""
    calls: dict[str, _Call] = {}
    linears = _own_linears(network.module)

    def enter(host: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            del module
            calls[host] = _Call(args, kwargs)

        return hook

    def watch(host: str, path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            del module
            if path in linears:
                calls[host].reads[path] = args[0]
            if isinstance(output, torch.Tensor):
                calls[host].writes[path] = output

        return hook

    with ExitStack() as stack:
        for host, module in hosts.items():
            handle = module.register_forward_pre_hook(enter(host), with_kwargs=True)
            stack.callback(handle.remove)
        for path, module in network.module.named_modules():
            host = next((name for name in hosts if name and path.startswith(f"{name}.")), "")
            if path in linears or _is_norm(module):
                stack.callback(module.register_forward_hook(watch(host, path)).remove)
        network.module(**probe(network), use_cache=False)
    return {host: calls[host] for host in hosts if host in calls}


def _own_linears(module: nn.Module) -> set[str]:
    """Paths of linears whose weight nothing else holds."""
    holders: dict[int, list[str]] = {}
    for path, child in module.named_modules(remove_duplicate=False):
        if isinstance(getattr(child, "weight", None), torch.Tensor):
            holders.setdefault(id(child.weight), []).append(path)
    own = {paths[0] for paths in holders.values() if len(paths) == 1}
    return {
        path
        for path, child in module.named_modules()
        if path in own and isinstance(child, nn.Linear) and type(child).forward is nn.Linear.forward
    }


def _is_norm(module: nn.Module) -> bool:
    """Say whether a module could multiply channels by a gain."""
    parameters = dict(module.named_parameters())
    return "weight" in parameters and all(parameter.ndim == 1 for parameter in parameters.values())


def _places_of(network: Network, host: str, call: _Call) -> Iterator[Place]:
    prefix = f"{host}." if host else ""
    module = network.module.get_submodule(host)
    for readers in _siblings(call.reads):
        for candidate in _candidates(network.module, readers, call):
            inside = replace(
                candidate,
                writer=candidate.writer.removeprefix(prefix),
                readers=tuple(path.removeprefix(prefix) for path in candidate.readers),
            )
            if _keeps_output(module, inside, call):
                yield candidate
                break


def _siblings(reads: Mapping[str, torch.Tensor]) -> list[tuple[str, ...]]:
    """Linears that read the same tensor, together."""
    found: dict[tuple[Any, ...], list[str]] = {}
    for path, tensor in reads.items():
        found.setdefault(_identity(tensor), []).append(path)
    return [tuple(paths) for paths in found.values()]


def _identity(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tensor.shape, tensor.stride()


def _candidates(module: nn.Module, readers: Sequence[str], call: _Call) -> Iterator[Place]:
    """What could write the readers' input: the norm that returned it, else linears before, the last first."""
    paths, read = tuple(readers), call.reads[readers[0]]
    n_columns = read.shape[-1]
    writers = list(call.writes)
    before = writers[: min(writers.index(path) for path in paths)]
    for path in reversed(before):
        weight = module.get_parameter(f"{path}.weight")
        if weight.ndim == 1 and _identity(call.writes[path]) == _identity(read):
            yield from (Place(path, offset, paths) for offset in (0.0, 1.0))
            return
    parent: Any = module.get_submodule(paths[0].rpartition(".")[0])
    width = getattr(parent, "head_dim", None)
    for path in reversed(before):
        n_rows = module.get_parameter(f"{path}.weight").shape[0]
        if path not in call.reads or n_columns % n_rows:
            continue
        if n_columns == n_rows:
            yield Place(path, 0.0, paths)
        elif isinstance(width, int) and n_rows % width == 0:
            yield Place(path, 0.0, paths, n_columns // n_rows, width)


def _keeps_output(host: nn.Module, place: Place, call: _Call) -> bool:
    """Move powers of two, which round nothing, and compare with what the readers' half of that does."""
    n_channels = len(host.get_parameter(f"{place.writer}.weight"))
    generator = torch.Generator().manual_seed(0)
    factors = torch.exp2(torch.randint(-2, 3, (n_channels,), generator=generator).float())

    def output(changed: Mapping[str, torch.Tensor]) -> torch.Tensor:
        found = torch.func.functional_call(host, dict(changed), call.args, call.kwargs)
        return output_of(found).double()

    before = output({})
    half = (output(place.scaled_readers(host, factors)) - before).norm()
    whole = (output(place.moved(host, factors)) - before).norm()
    return bool(half > 0) and bool(whole <= SHARE_LEFT * half)


def output_of(found: Any) -> torch.Tensor:
    """Return the tensor that a block or a language model is there for."""
    tensor: torch.Tensor = found if isinstance(found, torch.Tensor) else found[0]
    return tensor
