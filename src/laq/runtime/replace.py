"""From a module and packed weights to a packed module of the same class."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import NoReturn

import torch
from torch import nn

from laq.core.errors import RequestError
from laq.core.packing import StoredTensor
from laq.core.product import ProductTensor
from laq.networks.module import Network
from laq.runtime.arena import Arena, Memory
from laq.runtime.embedding import PackedEmbedding
from laq.runtime.linear import PackedLinear
from laq.runtime.packed import PackedWeight
from laq.runtime.siblings import join_siblings


def packed_copy(network: Network, packed: Mapping[str, StoredTensor]) -> nn.Module:
    """Return a copy of the network's module whose weights in `packed` are packed; the source stays as it is.

    Parameters
    ----------
    network : Network
        The original.
    packed : mapping
        Packed weights by name.
    """
    # the copy shares the big float weights for a moment instead of duplicating them
    memo = {id(weight): weight for weight in (network.module.get_parameter(name) for name in packed)}
    module = copy.deepcopy(network.module, memo)
    holders = {weight.name: weight.modules for weight in network.weights if weight.name in packed}
    replace_weights_(module, holders, packed, memory=Arena())
    return module


def replace_weights_(
    module: nn.Module,
    holders: Mapping[str, tuple[str, ...]],
    packed: Mapping[str, StoredTensor],
    *,
    memory: Memory,
) -> None:
    """Put packed layers in place of the linears and embeddings that hold each weight.

    Weights in a product code become dense: linears and embeddings stay, with values of their own.

    Parameters
    ----------
    module : nn.Module
        Changed in place.
    holders : mapping
        Paths of the modules that hold each weight.
    packed : mapping
        Packed weights by name.
    memory : Memory
        Where their sections go.
    """
    linears: dict[str, PackedLinear] = {}
    for name, paths in holders.items():
        stored = packed[name]
        if isinstance(stored, ProductTensor):
            _put_dense(module, paths, stored)
            continue
        weight = PackedWeight(stored, memory=memory)
        for path in paths:
            parent, _, attribute = path.rpartition(".")
            layer = _packed_layer(module.get_submodule(path), weight)
            setattr(module.get_submodule(parent), attribute, layer)
            if isinstance(layer, PackedLinear):
                linears[path] = layer
    join_siblings(linears)
    # tied names would make transformers look for parameters that are no longer there
    if hasattr(module, "tie_weights"):
        module.tie_weights = _nothing_to_tie  # type: ignore[assignment]  # instance attribute shadows the method
    if hasattr(module, "save_pretrained"):
        module.save_pretrained = _refuse_save  # type: ignore[assignment]  # the same


def dense_values(stored: StoredTensor) -> torch.Tensor:
    """Return the matrix that is stored; float32 [n_rows, n_columns]."""
    if isinstance(stored, ProductTensor):
        return torch.from_numpy(stored.dequantize())
    return PackedWeight(stored, memory=Arena()).dequantize()


def _put_dense(module: nn.Module, paths: tuple[str, ...], stored: ProductTensor) -> None:
    """Give the modules that hold a weight its values, in the type that they compute in."""
    dtype = module.get_parameter(f"{paths[0]}.weight").dtype
    dense = nn.Parameter(dense_values(stored).to(dtype), requires_grad=False)
    for path in paths:
        module.get_submodule(path).weight = dense


def _refuse_save(*args: object, **kwargs: object) -> NoReturn:
    raise RequestError(
        "a packed model cannot be saved with save_pretrained: its packed weights would be missing",
        hint="save it with result.save(FOLDER), open it with laq.load(FOLDER)",
    )


def _nothing_to_tie(*args: object, **kwargs: object) -> None:
    del args, kwargs


def _packed_layer(old: nn.Module, weight: PackedWeight) -> nn.Module:
    new: nn.Module
    if isinstance(old, nn.Embedding):
        scale = float(getattr(old, "embed_scale", 1.0))
        new = PackedEmbedding(weight, dtype=old.weight.dtype, scale=scale)
    else:
        assert isinstance(old, nn.Linear)
        new = PackedLinear(weight, old.bias)
    new.train(mode=old.training)
    return new


def resident_bytes(module: nn.Module) -> int:
    """Return the bytes of all distinct parameters and buffers."""
    tensors = {id(t): t for t in (*module.parameters(), *module.buffers())}
    storages: dict[int, int] = {}
    for tensor in tensors.values():
        if tensor.device.type != "meta":
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())
