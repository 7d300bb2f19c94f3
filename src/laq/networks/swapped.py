"""A network with other values for some of its parameters, which leaves the original as it is."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from laq.networks.module import Network


class Swapped(nn.Module):
    """A module run with other values for some of its parameters; tied ones follow.

    Parameters
    ----------
    module : nn.Module
        Left as it is.
    tensors : mapping
        Values by parameter name.
    """

    def __init__(self, module: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self.module, self.tensors = module, dict(tensors)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module."""
        return functional_call(self.module, self.tensors, args, kwargs)


def sharing_parameters(module: nn.Module) -> nn.Module:
    """Return a copy of a module that holds the same parameters."""
    return copy.deepcopy(module, {id(parameter): parameter for parameter in module.parameters()})


def replace_parameters_(module: nn.Module, changed: Mapping[str, torch.Tensor]) -> None:
    """Give a module parameters of other values, wherever those called so are held."""
    holders: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        holders.setdefault(id(parameter), []).append(name)
    for name, values in changed.items():
        old = module.get_parameter(name)
        new = nn.Parameter(values, requires_grad=old.requires_grad)
        for shared in holders[id(old)]:
            path, _, attribute = shared.rpartition(".")
            setattr(module.get_submodule(path), attribute, new)


def with_parameters(network: Network, changed: Mapping[str, torch.Tensor]) -> Network:
    """Return a network of other parameters; those not in `changed` are shared with the original."""
    module = sharing_parameters(network.module)
    replace_parameters_(module, changed)
    return replace(network, module=module)
