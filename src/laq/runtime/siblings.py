"""Packed linears on the native kernels, siblings together."""

from __future__ import annotations

import copy
import operator
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch

from laq.kernels import native
from laq.runtime.calls import call_linear
from laq.runtime.packed import PackedWeight


class Layer(Protocol):
    """What a packed linear shows its siblings."""

    activation_bits: int | None
    siblings: Siblings | None

    @property
    def packed(self) -> PackedWeight:
        """The weight."""

    @property
    def bias(self) -> torch.Tensor | None:
        """What is added."""


def linear(layer: Layer, inputs: torch.Tensor) -> torch.Tensor:
    """Compute one layer natively: float [..., in_features] to [..., out_features], in the input's type."""
    return call_linear(layer.packed.checked().alone, [layer.bias], inputs, layer.activation_bits or 0)[0]


MAX_MISSES = 8
"""Times in a row that siblings were computed for nothing before each goes its own way."""


@dataclass(slots=True)
class _Held:
    """Outputs that were computed together with a sibling's, until they are asked for."""

    inputs: torch.Tensor
    version: int
    is_inference: bool
    outputs: dict[Layer, tuple[_State, torch.Tensor]]

    def is_of(self, inputs: torch.Tensor) -> bool:
        same = self.inputs is inputs and self.version == inputs._version
        return same and self.is_inference == torch.is_inference_mode_enabled()


class Siblings:
    """Linears that read the same input, such as q, k and v: the first one asked computes all of them.

    Inputs are gathered and rounded once, and threads share one larger call. What the others will ask for is
    held until they do, as long as the input is the same tensor and nothing was changed meanwhile. Where the
    others do not ask, each soon computes its own.

    Parameters
    ----------
    layers : sequence of packed linears
        With one order of columns and one group size.
    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.layers = tuple(layers)
        self._misses = 0
        self._matrices: tuple[native.Matrix, ...] = ()
        self._together = native.matrices(())
        self._alike = False
        self._local = threading.local()

    def __deepcopy__(self, memo: dict[int, object]) -> Siblings:
        """Copy the layers, not what is held."""
        twin = Siblings(())
        memo[id(self)] = twin
        twin.layers = tuple(copy.deepcopy(layer, memo) for layer in self.layers)
        return twin

    def linear(self, layer: Layer, inputs: torch.Tensor) -> torch.Tensor:
        """Return the output of one of the layers; see `linear`."""
        if inputs.is_inference() or self._misses >= MAX_MISSES:  # inference tensors do not count changes
            return linear(layer, inputs)
        held: _Held | None = getattr(self._local, "held", None)
        if held is None or not held.is_of(inputs):
            self._misses = 0 if held is None else self._misses + 1
            held = self._compute(inputs)
        found = held.outputs.pop(layer, None)
        self._local.held = held if held.outputs else None
        if found is None or not found[0].is_same(_state(layer)):
            return linear(layer, inputs)
        return found[1]

    def _compute(self, inputs: torch.Tensor) -> _Held:
        """Compute all layers, or none if they cannot go together now."""
        held = _Held(inputs, inputs._version, torch.is_inference_mode_enabled(), {})
        states = [_state(layer) for layer in self.layers]
        if self._go_together(states):
            biases = [layer.bias for layer in self.layers]
            outputs = call_linear(self._together, biases, inputs, self.layers[0].activation_bits or 0)
            held.outputs = dict(zip(self.layers, zip(states, outputs, strict=True), strict=True))
        return held

    def _go_together(self, states: Sequence[_State]) -> bool:
        """Say whether the layers agree; their orders of columns are compared when a weight has changed."""
        matrices = tuple(state.matrix for state in states)
        if len(self._matrices) != len(matrices) or not all(map(operator.is_, matrices, self._matrices)):
            orders = [layer.packed.column_permutation for layer in self.layers]
            first = orders[0]
            self._alike = first is not None and all(
                order is not None and torch.equal(order, first) for order in orders
            )
            # equal orders, each in its own buffer: the kernels want one
            self._together = native.matrices([native.with_columns_of(m, matrices[0]) for m in matrices])
            self._matrices = matrices
        return self._alike and all(state.activation_bits == states[0].activation_bits for state in states)


class _State(NamedTuple):
    """What an output depends on besides the input; a matrix is another one once a buffer has changed."""

    matrix: native.Matrix
    activation_bits: int | None
    bias: torch.Tensor | None
    bias_version: int

    def is_same(self, other: _State) -> bool:
        same = self.matrix is other.matrix and self.bias is other.bias
        return same and self[1::2] == other[1::2]


def _state(layer: Layer) -> _State:
    bias = layer.bias
    version = -1 if bias is None or bias.is_inference() else bias._version
    return _State(layer.packed.matrix(), layer.activation_bits, bias, version)


def join_siblings(layers: Mapping[str, Layer]) -> None:
    """Let linears of one parent that share their order of columns, hence their input, compute together.

    layers : packed linear by its path in the network
    """
    families: dict[tuple[str, bytes], list[Layer]] = {}
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
