"""A torch module as laq sees it: which weights it has, how blocks follow each other, what it returns."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeGuard

import torch
from torch import nn

from laq.core.errors import DataError, NetworkError, RequestError
from laq.networks.tensors import SAFETENSORS_NAMES

Batch = Mapping[str, Any] | Sequence[Any] | torch.Tensor
"""Arguments of one forward call: module(**batch), module(*batch), or module(batch) for one tensor."""


def arguments_of(batch: Batch) -> list[Any]:
    """Return everything that a batch passes to the module."""
    if isinstance(batch, torch.Tensor):
        return [batch]
    return list(batch.values() if isinstance(batch, Mapping) else batch)


@dataclass(frozen=True, slots=True)
class WeightRef:
    """A matrix that can be quantized.

    Parameters
    ----------
    name : str
        Name of the parameter; of the first one, if tied.
    kind : "linear" or "embedding" or "tied"
        How it is used; "tied" is an embedding that is also the output head.
    modules : tuple of str
        Paths of the modules that hold it.
    shape : tuple of int
        [n_rows, n_columns]: outputs x inputs, or vocabulary x width.
    dtype : str
        Type in the loaded module, as torch spells it, such as "float32".
    """

    name: str
    kind: Literal["linear", "embedding", "tied"]
    modules: tuple[str, ...]
    shape: tuple[int, int]
    dtype: str


@dataclass(frozen=True, slots=True)
class KeptTensor:
    """A tensor that stays as it is: name, shape, dtype as torch spells it, and why it stays."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    reason: str

    @property
    def n_elements(self) -> int:
        """Number of elements."""
        n = 1
        for size in self.shape:
            n *= size
        return n


Sidecars = Callable[[Path], None]
"""Writes the source's config, generation config and tokenizer files into a folder."""


@dataclass(frozen=True, slots=True)
class Network:
    """A module and its description.

    Parameters
    ----------
    module : nn.Module
        Runs forward; never changed.
    weights : tuple of WeightRef
        What can be quantized, in the module's order.
    kept : tuple of KeptTensor
        Everything else that must be stored.
    blocks : str
        Path of the list of blocks that follow each other; empty where that is not known.
    architecture : str
        What `laq.load` needs to build the module again: "transformers", or "module" for one given by hand.
    tokenizer : object or None
        Turns text into tokens, if the source has one.
    sidecars : callable or None
        Writes the source's other files.
    source : str
        Where it came from, for people.
    original_bytes : int
        Bytes of the tensors in the source's own types.
    """

    module: nn.Module
    weights: tuple[WeightRef, ...]
    kept: tuple[KeptTensor, ...]
    blocks: str
    architecture: Literal["transformers", "module"]
    tokenizer: Any
    sidecars: Sidecars | None
    source: str
    original_bytes: int

    @property
    def n_params(self) -> int:
        """Number of stored weights, tied ones once."""
        return sum(w.shape[0] * w.shape[1] for w in self.weights) + sum(t.n_elements for t in self.kept)

    def weight(self, name: str) -> torch.Tensor:
        """Return the parameter `name`, detached; [n_rows, n_columns]."""
        return self.module.get_parameter(name).detach()

    def keeping(self, pattern: str) -> Network:
        """Return the same network, with weights whose name matches a regular expression left as they are.

        Raises
        ------
        NetworkError
            If the expression is malformed, matches nothing, or leaves nothing to quantize.
        """
        try:
            matches = [weight for weight in self.weights if re.search(pattern, weight.name)]
        except re.error as error:
            raise NetworkError(f"--keep {pattern!r}: not a regular expression ({error})") from error
        names = {weight.name for weight in matches}
        if not matches or len(matches) == len(self.weights):
            raise NetworkError(
                f"--keep {pattern!r} matches {len(matches)} of the {len(self.weights)} weights",
                hint=f"names look like {self.weights[0].name}; `laq inspect` lists them",
            )
        kept = tuple(KeptTensor(w.name, w.shape, w.dtype, "left alone by --keep") for w in matches)
        return replace(
            self, weights=tuple(w for w in self.weights if w.name not in names), kept=self.kept + kept
        )

    def check_same(self, source_hash: str, names: Iterable[str]) -> None:
        """Raise RequestError unless a plan or measurement of weights `names` was made for this network."""
        if self.content_hash() != source_hash:
            raise RequestError(
                f"{self.source}: plan or measurement was made for another network",
                hint="measure this network",
            )
        different = {weight.name for weight in self.weights} ^ set(names)
        if different:
            raise RequestError(
                f"{self.source}: plan or measurement was made with another --keep: {min(different)}",
                hint="measure again, or give the same --keep",
            )

    def content_hash(self) -> str:
        """Return sha256 over the names and bytes of all stored tensors, whatever --keep leaves alone."""
        digest = hashlib.sha256()
        for name in sorted([w.name for w in self.weights] + [t.name for t in self.kept]):
            tensor = stored_tensor(self.module, name)
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.contiguous().view(-1).view(torch.uint8).cpu().numpy().data)
        return digest.hexdigest()


@contextmanager
def evaluation_mode(*modules: nn.Module) -> Iterator[None]:
    """Switch dropout and the like off; every part's mode is put back."""
    was_training = [(child, child.training) for module in modules for child in module.modules()]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for child, training in was_training:
            child.training = training


def run_logits(module: nn.Module, batch: Batch) -> torch.Tensor:
    """Call `module` with a batch, and return its logits, from a tensor or from `.logits`.

    Raises
    ------
    NetworkError
        If the module returns neither.
    DataError
        If the batch is padded: padding would count like text.
    """
    mask: Any = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    if isinstance(mask, torch.Tensor) and bool((mask == 0).any()):
        raise DataError(
            "a batch is padded (zeros in attention_mask): padding would count like text",
            hint="pass sequences of one length in each batch, without padding",
        )
    output = module(**batch) if isinstance(batch, Mapping) else module(*arguments_of(batch))
    logits = output if isinstance(output, torch.Tensor) else getattr(output, "logits", None)
    if not isinstance(logits, torch.Tensor):
        raise NetworkError(
            f"{type(module).__name__} returned {type(output).__name__}, expected a tensor or .logits",
            hint="wrap the module so that forward returns the logits",
        )
    return logits


def stored_tensor(module: nn.Module, name: str) -> torch.Tensor:
    """Return a parameter or persistent buffer by name, detached."""
    path, _, attribute = name.rpartition(".")
    tensor = getattr(module.get_submodule(path), attribute)
    assert isinstance(tensor, torch.Tensor)
    return tensor.detach()


def describe(
    module: nn.Module,
    *,
    architecture: Literal["transformers", "module"] = "module",
    tokenizer: Any = None,
    sidecars: Sidecars | None = None,
    source: str = "a module in memory",
    original_bytes: int | None = None,
) -> Network:
    """Find the weights of a module: linears and embeddings, tied ones once.

    Raises
    ------
    NetworkError
        If the module has no linear or embedding, or a weight is not finite (all are named).
    """
    if isinstance(module, nn.Linear | nn.Embedding):
        raise NetworkError(f"{source}: is a single layer", hint="wrap it: nn.Sequential(layer)")
    elsewhere = sorted({p.device.type for p in module.parameters()} - {"cpu"})
    if elsewhere:
        raise NetworkError(
            f"{source}: has parameters on {', '.join(elsewhere)}", hint="move it: module.cpu()"
        )
    holders = _holders(module)
    weights = tuple(_weight_ref(module, paths) for paths in holders.values())
    if not weights:
        raise NetworkError(
            f"{source}: {type(module).__name__} has no linear or embedding weights to quantize"
        )
    kept = tuple(_kept(module, set(holders)))
    network = Network(
        module=module,
        weights=weights,
        kept=kept,
        # a module given by hand may run its lists in any order: it is calibrated as a whole
        blocks=_find_blocks(module) if architecture == "transformers" else "",
        architecture=architecture,
        tokenizer=tokenizer,
        sidecars=sidecars,
        source=source,
        original_bytes=original_bytes if original_bytes is not None else _bytes_of(module, weights, kept),
    )
    _check_storable(network)
    _check_finite(network)
    return network


def _holders(module: nn.Module) -> dict[int, list[str]]:
    """Modules that hold each quantizable parameter, by the parameter's identity."""
    holders: dict[int, list[str]] = {}
    for path, child in module.named_modules():
        if _is_plain(child) and child.weight.is_floating_point():
            holders.setdefault(id(child.weight), []).append(path)
    return holders


def _is_plain(child: nn.Module) -> TypeGuard[nn.Linear | nn.Embedding]:
    """Linears and embeddings with torch's own forward, or an embedding that only scales its rows."""
    if isinstance(child, nn.Embedding):
        return type(child).forward is nn.Embedding.forward or hasattr(child, "embed_scale")
    return isinstance(child, nn.Linear) and type(child).forward is nn.Linear.forward


def _weight_ref(module: nn.Module, paths: list[str]) -> WeightRef:
    children = [module.get_submodule(path) for path in paths]
    embeds = any(isinstance(child, nn.Embedding) for child in children)
    multiplies = any(isinstance(child, nn.Linear) for child in children)
    weight = children[0].weight
    assert isinstance(weight, torch.Tensor)
    return WeightRef(
        name=f"{paths[0]}.weight" if paths[0] else "weight",
        kind="tied" if embeds and multiplies else "embedding" if embeds else "linear",
        modules=tuple(paths),
        shape=(weight.shape[0], weight.shape[1]),
        dtype=dtype_name(weight.dtype),
    )


def dtype_name(dtype: torch.dtype) -> str:
    """Return a dtype without its prefix: "float32"."""
    return str(dtype).removeprefix("torch.")


def _kept(module: nn.Module, quantized: set[int]) -> list[KeptTensor]:
    persistent = set(module.state_dict(keep_vars=False))
    found = []
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if id(tensor) in quantized or name not in persistent:
            continue
        reason = "not a matrix" if tensor.ndim < 2 else "not a linear or embedding weight"
        found.append(KeptTensor(name, tuple(tensor.shape), dtype_name(tensor.dtype), reason))
    return found


def _find_blocks(module: nn.Module) -> str:
    """Path of the list of like blocks that holds most weights; empty if there is none."""
    best, most = "", 0
    for path, child in module.named_modules():
        if not isinstance(child, nn.ModuleList) or not len(child):
            continue
        alike = len({type(block) for block in child}) == 1 and any(True for _ in child[0].children())
        n_weights = sum(parameter.numel() for parameter in child.parameters()) if alike else 0
        if n_weights > most:
            best, most = path, n_weights
    return best


def _bytes_of(module: nn.Module, weights: Sequence[WeightRef], kept: Sequence[KeptTensor]) -> int:
    names = [w.name for w in weights] + [t.name for t in kept]
    return sum(t.numel() * t.element_size() for t in (stored_tensor(module, name) for name in names))


def _check_storable(network: Network) -> None:
    storable = {dtype_name(dtype) for dtype in SAFETENSORS_NAMES}
    bad = [f"{kept.name} ({kept.dtype})" for kept in network.kept if kept.dtype not in storable]
    if bad:
        raise NetworkError(
            f"{network.source}: types that safetensors cannot hold: {', '.join(bad[:8])}",
            hint="convert them, or register the buffers with persistent=False",
        )


def _check_finite(network: Network) -> None:
    names = [w.name for w in network.weights] + [t.name for t in network.kept]
    bad = [name for name in names if not _is_finite(stored_tensor(network.module, name))]
    if bad:
        shown = ", ".join(bad[:10]) + (f" and {len(bad) - 10} more" if len(bad) > 10 else "")
        raise NetworkError(
            f"{network.source}: NaN or Inf in {shown}",
            hint="mend the checkpoint: no quantizer can use such weights",
        )


def _is_finite(tensor: torch.Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor.sum(dtype=torch.float64)))
