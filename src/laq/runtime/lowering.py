"""From recorded operations of torch to steps of the native kernels."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from laq.kernels.steps import N_AXES, Attention, Kind, Step
from laq.runtime import products
from laq.runtime.program import Handler, Program, collapsed, padded, type_of
from laq.runtime.recording import FRESH, Event, NotRecordableError, storage_of

ELEMENTWISE: Mapping[str, Kind] = {
    "aten.neg": Kind.NEGATE,
    "aten.abs": Kind.ABSOLUTE,
    "aten.sqrt": Kind.SQRT,
    "aten.rsqrt": Kind.RSQRT,
    "aten.reciprocal": Kind.RECIPROCAL,
    "aten.exp": Kind.EXP,
    "aten.cos": Kind.COS,
    "aten.sin": Kind.SIN,
    "aten.tanh": Kind.TANH,
    "aten.sigmoid": Kind.SIGMOID,
    "aten.silu": Kind.SILU,
    "aten.relu": Kind.RELU,
    "aten.logical_not": Kind.NOT,
    "aten.mul": Kind.MULTIPLY,
    "aten.div": Kind.DIVIDE,
    "aten.minimum": Kind.MINIMUM,
    "aten.maximum": Kind.MAXIMUM,
    "aten.lt": Kind.LESS,
    "aten.le": Kind.LESS_EQUAL,
    "aten.eq": Kind.EQUAL,
    "aten.ne": Kind.NOT_EQUAL,
    "aten.logical_and": Kind.AND,
    "aten.logical_or": Kind.OR,
    "aten.where": Kind.WHERE,
}
"""Operations whose operands are their positional arguments, in order."""


def lower(events: Sequence[Event], inputs: Iterable[torch.Tensor]) -> Program:
    """Return steps that compute again whatever depends on `inputs` or on memory that was changed in place.

    Parameters
    ----------
    events : sequence of Event
        A recording; its tensors are where the steps read and write.
    inputs : iterable of Tensor
        Memory that the caller will change between runs.

    Raises
    ------
    NotRecordableError
        Naming an operation that has no step.
    """
    program = Program(kept=[events])
    changing = _storages(inputs) | set(changed_outside(events))
    frozen: set[int] = set()  # made once, for all runs
    missing: set[int] = set()  # further results, which no step computes
    for event in events:
        made, written = _storages(event.outputs), _storages(event.written)
        if event.is_view:
            frozen |= made if event.name == FRESH else set()
        elif event.written or changing & _storages(event.inputs):
            if written & frozen or missing & _storages(event.inputs):
                raise NotRecordableError(f"{event.name} needs what is made anew for every token")
            changing |= made | written
            missing |= _storages(event.outputs[1:]) - _storages(event.outputs[:1])
            _lower(program, event)
        elif event.is_random:
            raise NotRecordableError(f"{event.name} draws random numbers")
        elif "empty" not in event.name:
            frozen |= made
    products.finish(program)
    return program


def _storages(tensors: Iterable[torch.Tensor]) -> set[int]:
    return {storage_of(tensor) for tensor in tensors}


def changed_outside(events: Sequence[Event]) -> dict[int, torch.UntypedStorage]:
    """Return memory that lives from call to call and is changed in place, such as a cache."""
    made: set[int] = set()
    outside: dict[int, torch.UntypedStorage] = {}
    for event in events:
        for tensor in event.written:
            if storage_of(tensor) not in made:
                outside[storage_of(tensor)] = tensor.untyped_storage()
        if event.name == FRESH or not event.is_view:
            made |= _storages(event.outputs) - set(outside)
    return outside


def _lower(program: Program, event: Event) -> None:
    name = ".".join(event.name.split(".")[:2])
    if event.written:
        name = name.removesuffix("_")
    try:
        if name in HANDLERS:
            HANDLERS[name](program, event)
        elif name in ELEMENTWISE and not event.options.keys() - {"out"}:
            program.elementwise(ELEMENTWISE[name], event.target, event.arguments)
        else:
            raise NotRecordableError(f"no step for {event.name}")
    except (
        IndexError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:  # a form that its handler does not know
        raise NotRecordableError(f"{event.name}: {error}") from error


# ---------------------------------------------------------------- elementwise, arguments of their own


def _add(program: Program, event: Event) -> None:
    kind = Kind.ADD if event.name.startswith("aten.add") else Kind.SUBTRACT
    program.elementwise(kind, event.target, _without_factor(event))


def _without_factor(event: Event) -> Sequence[Any]:
    if any(factor != 1 for factor in (*event.arguments[2:], event.options.get("alpha", 1))):
        raise NotRecordableError(f"{event.name} with a factor")
    return event.arguments[:2]


def _subtract_from(program: Program, event: Event) -> None:
    program.elementwise(Kind.SUBTRACT, event.target, _without_factor(event)[::-1])


def _power(program: Program, event: Event) -> None:
    base, exponent = event.arguments
    if not event.target.is_floating_point():
        raise NotRecordableError(f"{event.name} of integers")
    if isinstance(exponent, (int, float)) and exponent == 2:
        program.elementwise(Kind.SQUARE, event.target, [base])
    else:
        program.elementwise(Kind.POWER, event.target, [base, exponent])


def _copy(program: Program, event: Event) -> None:
    program.elementwise(Kind.COPY, event.target, event.arguments[:1])


def _copy_into(program: Program, event: Event) -> None:
    program.elementwise(Kind.COPY, event.target, event.arguments[1:2])


def _gelu(program: Program, event: Event) -> None:
    kind = Kind.GELU_TANH if event.options.get("approximate", "none") == "tanh" else Kind.GELU
    program.elementwise(kind, event.target, event.arguments[:1])


def _greater(program: Program, event: Event) -> None:
    kind = Kind.LESS if event.name.startswith("aten.gt") else Kind.LESS_EQUAL
    program.elementwise(kind, event.target, event.arguments[::-1])


def _bitwise(program: Program, event: Event) -> None:
    if any(tensor.dtype != torch.bool for tensor in event.inputs):
        raise NotRecordableError(f"{event.name} of numbers")
    kinds = {"bitwise_and": Kind.AND, "bitwise_or": Kind.OR, "bitwise_not": Kind.NOT}
    kind = kinds[event.name.split(".")[1].removesuffix("_")]
    program.elementwise(kind, event.target, event.arguments)


def _masked_fill(program: Program, event: Event) -> None:
    values, mask, filler = event.arguments
    program.elementwise(Kind.WHERE, event.target, [mask, filler, values])


# ---------------------------------------------------------------- moving rows


def _concatenate(program: Program, event: Event) -> None:
    parts, axis = event.arguments[0], event.arguments[1] if len(event.arguments) > 1 else 0
    start = 0
    for part in parts:
        if not part.numel():
            continue  # torch takes an empty tensor of any shape
        size = part.shape[axis]
        program.elementwise(Kind.COPY, event.target.narrow(axis, start, size), [part])
        start += size


def _stack(program: Program, event: Event) -> None:
    parts, axis = event.arguments[0], event.arguments[1] if len(event.arguments) > 1 else 0
    for index, part in enumerate(parts):
        program.elementwise(Kind.COPY, event.target.select(axis, index), [part])


def _index_copy(program: Program, event: Event) -> None:
    target, axis, index, source = event.arguments
    if index.numel() != 1 or not event.written:
        raise NotRecordableError(f"{event.name} of several places")
    axis %= target.ndim
    here = target.narrow(axis, 0, 1)
    strides = [padded(tensor.stride(), 0) for tensor in (here, source)]
    place = axis + N_AXES - target.ndim
    strides[0][place] = target.stride(axis)
    step = program.step(
        Kind.COPY_AT,
        (here, source, index),
        sizes=padded(here.shape, 1),
        strides=[*strides, [0] * N_AXES],
        details=ctypes.c_int64(target.shape[axis]),
    )
    step.number = place


def _embedding(program: Program, event: Event) -> None:
    table, ids = event.arguments[:2]
    if ids.dtype != torch.int64 or not ids.is_contiguous() or not table.is_floating_point():
        raise NotRecordableError(f"{event.name} of {ids.dtype} and {table.dtype}")
    n_rows, width = table.shape
    program.step(
        Kind.GATHER,
        (event.target, ids, table),
        sizes=[1, 1, ids.numel(), width],
        strides=[[0, 0, width, 1], [0, 0, 1, 0], [0, 0, *table.stride()]],
        details=ctypes.c_int64(n_rows),
    )


# ---------------------------------------------------------------- over the last axis


def _along_last(
    program: Program, kind: Kind, out: torch.Tensor, operands: Sequence[torch.Tensor | None]
) -> Step:
    """Append a step over the last axis of the first operand; `out` has that axis, perhaps of size 1."""
    read = operands[0]
    assert read is not None
    leading, strides = collapsed(read.shape[:-1], [tensor.stride()[:-1] for tensor in (out, read)])
    if leading[0] != 1:
        raise NotRecordableError(f"{read.ndim} axes")
    walks = [[*walk[1:], tensor.stride(-1)] for walk, tensor in zip(strides, (out, read), strict=True)]
    walks += [[0, 0, 0, 0 if tensor is None else tensor.stride(-1)] for tensor in operands[1:]]
    return program.step(kind, (out, *operands), sizes=[*leading[1:], read.shape[-1]], strides=walks)


def _reduce(program: Program, event: Event) -> None:
    read, axes = event.arguments[0], event.arguments[1] if len(event.arguments) > 1 else None
    if not axes or [axis % read.ndim for axis in axes] != [read.ndim - 1] or not read.is_floating_point():
        raise NotRecordableError(f"{event.name} over {axes}")
    out = event.target if event.target.ndim == read.ndim else event.target.unsqueeze(-1)
    _along_last(program, Kind.MEAN if event.name.startswith("aten.mean") else Kind.SUM, out, [read])


def _softmax(program: Program, event: Event) -> None:
    read, axis = event.arguments[:2]
    if axis % read.ndim != read.ndim - 1:
        raise NotRecordableError(f"{event.name} over axis {axis}")
    _along_last(program, Kind.SOFTMAX, event.target, [read])


def _layer_norm(program: Program, event: Event) -> None:
    read, shape, weight, bias, epsilon = event.arguments
    if len(shape) != 1:
        raise NotRecordableError(f"{event.name} over {len(shape)} axes")
    _along_last(program, Kind.LAYER_NORM, event.target, [read, weight, bias]).number = epsilon


def _attention(program: Program, event: Event) -> None:
    query, key, value = event.arguments[:3]
    mask, scale = event.options.get("attn_mask"), event.options.get("scale")
    if any(event.arguments[3:]):
        raise NotRecordableError(f"{event.name} with dropout or a causal mask of its own")
    if not query.shape[:2] == key.shape[:2] == value.shape[:2]:
        raise NotRecordableError(f"{event.name} of {query.shape[1]} heads and {key.shape[1]}")
    operands = (event.target, query, key, value)
    sizes = [*query.shape[:3], key.shape[2]]
    details = Attention(width=key.shape[3], value_width=value.shape[3])
    details.scale = 1 / math.sqrt(key.shape[3]) if scale is None else scale
    if mask is not None:
        details.mask, details.mask_type = program.address(mask), type_of(mask)
        details.mask_strides[:] = mask.expand(sizes).stride()
    strides = [tensor.stride() for tensor in operands]
    program.step(Kind.ATTENTION, operands, sizes=sizes, strides=strides, details=details)


HANDLERS: dict[str, Handler] = {
    **products.HANDLERS,
    "aten.add": _add,
    "aten.sub": _add,
    "aten.rsub": _subtract_from,
    "aten.pow": _power,
    "aten.clone": _copy,
    "aten._to_copy": _copy,
    "aten.copy": _copy_into,
    "aten.gelu": _gelu,
    "aten.gt": _greater,
    "aten.ge": _greater,
    "aten.bitwise_and": _bitwise,
    "aten.bitwise_or": _bitwise,
    "aten.bitwise_not": _bitwise,
    "aten.masked_fill": _masked_fill,
    "aten.cat": _concatenate,
    "aten.stack": _stack,
    "aten.index_copy": _index_copy,
    "aten.embedding": _embedding,
    "aten.mean": _reduce,
    "aten.sum": _reduce,
    "aten._softmax": _softmax,
    "aten.native_layer_norm": _layer_norm,
    "aten._scaled_dot_product_flash_attention_for_cpu": _attention,
}
