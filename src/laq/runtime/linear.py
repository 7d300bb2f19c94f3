"""A linear layer over a packed weight."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn import functional

from laq.core.groups import TILE_ROWS
from laq.runtime import operators  # noqa: F401 - registers torch.ops.laq
from laq.runtime.calls import can_run, is_recorded
from laq.runtime.packed import DECODE_ELEMENTS, PackedWeight, index_of
from laq.runtime.siblings import Siblings, linear

EVALUATED_BITS = 16
"""Bits of activations during evaluation: what is measured is the loss of the weights alone."""


class PackedLinear(nn.Module):
    """y = x W' + b by the native kernels; without them W is decoded a few row blocks at a time.

    Parameters
    ----------
    packed : PackedWeight
        The weight; may be shared with a `PackedEmbedding`.
    bias : Tensor or None
        float [out_features].

    Attributes
    ----------
    activation_bits : int or None
        Bits that native kernels round inputs to, 8 or 16; None lets the number of inputs decide.
    siblings : Siblings or None
        Layers that read the same input and are computed together.
    """

    def __init__(self, packed: PackedWeight, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.packed = packed
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=False)
        self.activation_bits: int | None = None
        self.siblings: Siblings | None = None

    @property
    def in_features(self) -> int:
        """Columns of the weight."""
        return self.packed.n_columns

    @property
    def out_features(self) -> int:
        """Rows of the weight."""
        return self.packed.n_rows

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return float [..., out_features] for float [..., in_features], in the input's type."""
        if torch.is_autocast_enabled("cpu"):
            inputs = inputs.to(torch.get_autocast_dtype("cpu"))
        outputs, correction = self._of_tiles(inputs), self.packed.correction
        return outputs if correction is None else outputs + correction(inputs)

    def _of_tiles(self, inputs: torch.Tensor) -> torch.Tensor:
        if not can_run(inputs, self.bias):
            return self._decoded(inputs)
        if is_recorded():
            return self._operator(inputs)
        return linear(self, inputs) if self.siblings is None else self.siblings.linear(self, inputs)

    def _operator(self, inputs: torch.Tensor) -> torch.Tensor:
        packed = self.packed
        sizes = packed.n_rows, packed.n_columns, packed.grid.group_size
        bits = self.activation_bits or 0
        result: torch.Tensor = torch.ops.laq.linear(inputs, self.bias, bits, *packed.sections(), *sizes)
        return result

    def _decoded(self, inputs: torch.Tensor) -> torch.Tensor:
        packed, grid = self.packed, self.packed.grid
        columns, rows = packed.column_permutation, packed.row_permutation
        gathered = inputs if columns is None else inputs[..., index_of(columns)]
        if grid.padded_columns != grid.n_columns:
            gathered = functional.pad(gathered, (0, grid.padded_columns - grid.n_columns))
        step = max(1, DECODE_ELEMENTS // (TILE_ROWS * grid.padded_columns))
        blocks = torch.arange(grid.n_row_blocks, device=inputs.device)
        parts = [gathered @ packed.decode(some).to(inputs.dtype).T for some in blocks.split(step)]
        stored = torch.cat(parts, -1) if len(parts) > 1 else parts[0]
        outputs = stored[..., : grid.n_rows]
        if rows is not None:
            outputs = torch.empty_like(outputs).index_copy(-1, index_of(rows), outputs)
        return outputs if self.bias is None else outputs + self.bias.to(outputs.dtype)

    def extra_repr(self) -> str:
        """Return the sizes, for printing."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        )


@contextmanager
def rounding_activations(modules: Iterable[nn.Module], bits: int | None) -> Iterator[None]:
    """Let packed linears round their inputs to `bits` for a while."""
    layers = [layer for module in modules for layer in module.modules() if isinstance(layer, PackedLinear)]
    before = [layer.activation_bits for layer in layers]
    try:
        for layer in layers:
            layer.activation_bits = bits
        yield
    finally:
        for layer, its in zip(layers, before, strict=True):
            layer.activation_bits = its
