"""Packed linears on the native kernels, siblings together."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from laq.kernels import native
from laq.runtime.calls import call_linear

if TYPE_CHECKING:
    from laq.runtime.linear import PackedLinear


def linear(layers: Sequence[PackedLinear], inputs: torch.Tensor) -> list[torch.Tensor]:
    """Compute several layers of one input; all share its order of columns and group size.

    Parameters
    ----------
    layers : sequence of PackedLinear
        The first one's `activation_bits` count for all.
    inputs : float [..., in_features]
        Of a type that the kernels know.

    Returns
    -------
    list of Tensor
        float [..., out_features] of each, in the input's type.
    """
    matrices = [layer.packed.matrix() for layer in layers]
    if len(matrices) > 1:  # equal orders of columns, each in its own buffer: the kernels want one
        matrices = [native.with_columns_of(matrix, matrices[0]) for matrix in matrices]
    return call_linear(matrices, [layer.bias for layer in layers], inputs, layers[0].activation_bits or 0)


@dataclass(slots=True)
class _Held:
    """Outputs that were computed together with a sibling's, until they are asked for."""

    inputs: torch.Tensor
    version: int
    outputs: dict[PackedLinear, torch.Tensor]


class Siblings:
    """Linears that read the same input, such as q, k and v: the first one asked computes all of them.

    Inputs are gathered and rounded once, and threads share one larger call. What the others will ask for is
    held until they do, as long as the input is the same tensor, unchanged. If they do not ask, each computes
    its own from then on.

    Parameters
    ----------
    layers : sequence of PackedLinear
        With one order of columns and one group size.
    """

    def __init__(self, layers: Sequence[PackedLinear]) -> None:
        self.layers = tuple(layers)
        self._together = True
        self._local = threading.local()

    def __deepcopy__(self, memo: dict[int, object]) -> Siblings:
        """Copy the layers, not what is held."""
        twin = Siblings(())
        memo[id(self)] = twin
        twin.layers = tuple(copy.deepcopy(layer, memo) for layer in self.layers)
        return twin

    def linear(self, layer: PackedLinear, inputs: torch.Tensor) -> torch.Tensor:
        """Return the output of one of the layers; see `linear`."""
        if not self._together or inputs.is_inference():  # those do not say whether they changed
            return linear([layer], inputs)[0]
        held: _Held | None = getattr(self._local, "held", None)
        if held is None or held.inputs is not inputs or held.version != inputs._version:
            self._together = held is None
            if not self._together:
                self._local.held = None
                return linear([layer], inputs)[0]
            outputs = linear(self.layers, inputs)
            held = _Held(inputs, inputs._version, dict(zip(self.layers, outputs, strict=True)))
        output = held.outputs.pop(layer, None)
        self._local.held = held if held.outputs else None
        return linear([layer], inputs)[0] if output is None else output


def join_siblings(layers: Mapping[str, PackedLinear]) -> None:
    """Let linears of one parent that share their order of columns, hence their input, compute together.

    layers : PackedLinear by its path in the network
    """
    families: dict[tuple[str, bytes], list[PackedLinear]] = {}
    for path, layer in layers.items():
        order = layer.packed.column_permutation
        if order is not None:
            key = (path.rpartition(".")[0], order.numpy().tobytes())
            families.setdefault(key, []).append(layer)
    for family in families.values():
        if len(family) > 1 and len({layer.packed.grid.group_size for layer in family}) == 1:
            siblings = Siblings(family)
            for layer in family:
                layer.siblings = siblings


@contextmanager
def rounding_activations(modules: Iterable[nn.Module], bits: int | None) -> Iterator[None]:
    """Let packed linears round their inputs to `bits` for a while."""
    from laq.runtime.linear import PackedLinear

    layers = [layer for module in modules for layer in module.modules() if isinstance(layer, PackedLinear)]
    before = [layer.activation_bits for layer in layers]
    try:
        for layer in layers:
            layer.activation_bits = bits
        yield
    finally:
        for layer, its in zip(layers, before, strict=True):
            layer.activation_bits = its
