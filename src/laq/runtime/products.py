"""Steps of products: with packed matrices, siblings together, and with dense ones."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from laq.kernels import native
from laq.kernels.steps import Kind, Lookup, Product
from laq.runtime.calls import activation_bits, outliers_of
from laq.runtime.operators import matrix_of
from laq.runtime.packed import SECTIONS
from laq.runtime.program import Handler, Program, type_of
from laq.runtime.recording import Event, NotRecordableError, storage_of


def _matmul(program: Program, event: Event) -> None:
    _append_matmul(program, event.result, *event.arguments)


def _matmul_and_bias(program: Program, event: Event) -> None:
    bias, left, right = event.arguments
    if event.written:
        raise NotRecordableError(f"{event.name} in place")
    if any(factor != 1 for factor in event.options.values()):
        raise NotRecordableError(f"{event.name} with factors")
    _append_matmul(program, event.result, left, right)
    program.elementwise(Kind.ADD, event.result, [event.result, bias])


def _append_matmul(program: Program, out: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    if not all(tensor.is_floating_point() for tensor in (out, left, right)):
        raise NotRecordableError(f"a product of {left.dtype} and {right.dtype}")
    batch = [tensor.stride(0) if tensor.ndim == 3 else 0 for tensor in (out, left, right)]
    strides = [
        [batch[0], out.stride(-2), out.stride(-1), 0],
        [batch[1], left.stride(-2), 0, left.stride(-1)],
        [batch[2], 0, right.stride(-1), right.stride(-2)],
    ]
    sizes = [out.shape[0] if out.ndim == 3 else 1, out.shape[-2], out.shape[-1], left.shape[-1]]
    program.step(Kind.MATMUL, (out, left, right), sizes=sizes, strides=strides)


def _rows(program: Program, event: Event) -> None:
    ids, row_index, _, *rest = event.arguments
    if ids.dtype != torch.int64 or not ids.is_contiguous():
        raise NotRecordableError(f"{event.name} of {ids.dtype}")
    lookup = Lookup(matrix=ctypes.pointer(matrix_of(*rest)), n=ids.numel())
    lookup.row_index = None if row_index is None else program.address(row_index)
    _keep_sections(program, rest)
    program.step(Kind.ROWS, (event.result, ids), details=lookup)


def _outliers(program: Program, event: Event) -> None:
    inputs, starts, columns, values = event.arguments
    if not inputs.is_contiguous():
        raise NotRecordableError("outliers of inputs that are not contiguous")
    details = outliers_of(starts, columns, values, inputs.shape[-1])
    _keep_sections(program, (starts, columns, values))
    sizes = [_n_inputs(inputs), 1, 1, 1]
    program.step(Kind.OUTLIERS, (event.result, inputs), sizes=sizes, details=details)


# ---------------------------------------------------------------- packed linears


@dataclass(slots=True)
class PackedProduct:
    """Packed linears of one input, as details of a step.

    Parameters
    ----------
    inputs : Tensor
        float [..., n_columns], contiguous.
    bits : int
        Of activations.
    order : Tensor or None
        Their order of columns.
    matrices, biases, outputs : lists
        One of each for every linear.
    """

    inputs: torch.Tensor
    bits: int
    order: torch.Tensor | None
    matrices: list[native.Matrix]
    biases: list[torch.Tensor | None]
    outputs: list[torch.Tensor]

    def takes(self, other: PackedProduct) -> bool:
        """Add the linears of another product if they read the same input in the same order."""
        mine, its = self.matrices[0], other.matrices[0]
        if (
            not _is_same_memory(self.inputs, other.inputs)
            or (self.bits, mine.n_columns, mine.group_size) != (other.bits, its.n_columns, its.group_size)
            or not _is_same_order(self.order, other.order)
        ):
            return False
        self.matrices += [native.with_columns_of(matrix, mine) for matrix in other.matrices]
        self.biases += other.biases
        self.outputs += other.outputs
        return True

    def details(self, program: Program) -> Product:
        """Return what the kernels take."""
        matrices = program.keep(native.matrices(self.matrices))
        outputs = program.keep(native.addresses([program.address(output) for output in self.outputs]))
        biases = program.keep(
            native.addresses([None if bias is None else program.address(bias) for bias in self.biases])
        )
        product = Product(matrices=matrices, n_matrices=len(matrices), type=type_of(self.inputs))
        product.x, product.n_inputs = program.address(self.inputs), _n_inputs(self.inputs)
        product.stride, product.activation_bits = self.inputs.shape[-1], self.bits
        product.y, product.bias = ctypes.addressof(outputs), ctypes.addressof(biases)
        return product


def _is_same_memory(one: torch.Tensor, other: torch.Tensor) -> bool:
    mine, its = (one.data_ptr(), one.shape, one.dtype), (other.data_ptr(), other.shape, other.dtype)
    return mine == its


def _is_same_order(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    return one is other if one is None or other is None else torch.equal(one, other)


def _n_inputs(inputs: torch.Tensor) -> int:
    return inputs.numel() // inputs.shape[-1]


def _linear(program: Program, event: Event) -> None:
    inputs, bias, bits, *rest = event.arguments
    if not inputs.is_contiguous():
        raise NotRecordableError("a packed linear of inputs that are not contiguous")
    inside = bias if bias is not None and bias.dtype == torch.float32 else None
    _keep_sections(program, rest)
    product = PackedProduct(
        inputs,
        bits or activation_bits(_n_inputs(inputs)),
        rest[SECTIONS.index("column_permutation")],
        [matrix_of(*rest)],
        [inside],
        [event.result],
    )
    if not _joins(program, product):
        step = program.step(Kind.LINEAR, (event.result,))
        program.products[id(step)] = product
    if bias is not None and inside is None:
        program.elementwise(Kind.ADD, event.result, [event.result, bias])


def _keep_sections(program: Program, arguments: Sequence[object]) -> None:
    """Keep the memory of a packed weight, which its matrix points to."""
    for section in arguments:
        if isinstance(section, torch.Tensor):
            program.address(section)


REACH = 8
"""Steps back that a sibling is looked for: q, k, v and gate, up stand close."""


def _joins(program: Program, product: PackedProduct) -> bool:
    """Let a packed linear run together with an earlier one of the same input and order of columns, if it can.

    Nobody touches its outputs before: they are memory of their own. The input must not change in between.
    """
    for step, target in zip(
        program.steps[: -REACH - 1 : -1], program.targets[: -REACH - 1 : -1], strict=True
    ):
        if target == storage_of(product.inputs):
            return False
        if id(step) in program.products and program.products[id(step)].takes(product):
            return True
    return False


def finish(program: Program) -> None:
    """Make the details of packed linears, now that it is known which of them run as one."""
    for step in program.steps:
        if id(step) in program.products:
            details = program.keep(program.products[id(step)].details(program))
            step.details = ctypes.addressof(details)


HANDLERS: dict[str, Handler] = {
    "aten.mm": _matmul,
    "aten.bmm": _matmul,
    "aten.addmm": _matmul_and_bias,
    "aten.baddbmm": _matmul_and_bias,
    "laq.rows": _rows,
    "laq.linear": _linear,
    "laq.outliers": _outliers,
}
