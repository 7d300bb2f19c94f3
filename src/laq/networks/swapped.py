"""A network with a few weights swapped for others, run without changing or copying the rest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.func import functional_call


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
