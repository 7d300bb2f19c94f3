"""Steps of the native kernels over the memory of torch tensors."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from laq.kernels import native
from laq.kernels.steps import BOOL, INT64, N_AXES, Kind, Step
from laq.runtime.calls import TYPES
from laq.runtime.recording import Event, NotRecordableError

STEP_TYPES = {**TYPES, torch.int64: INT64, torch.bool: BOOL}


@dataclass(slots=True)
class Program:
    """Steps in order, and what must stay alive while they may run.

    Parameters
    ----------
    steps : list of Step
        What csrc/laq.h calls `laq_step`.
    kept : list
        Owners of the memory that steps point to.
    products : list of (Step, PackedProduct)
        Steps of packed linears, whose details are made when it is known which of them run as one.
    """

    steps: list[Step] = field(default_factory=list)
    kept: list[object] = field(default_factory=list)
    products: list[tuple[Step, Any]] = field(default_factory=list)
    _together: Any = None

    def run(self) -> None:
        """Run all steps.

        Raises
        ------
        RequestError, MemoryError
            As `native.raise_problem` says.
        """
        library = native.library()
        assert library is not None
        if self._together is None:
            self._together = (Step * len(self.steps))(*self.steps)
        native.raise_problem(library.run(self._together, len(self.steps)), name="recorded step")

    def keep(self, value: Any) -> Any:
        """Keep a value alive and return it."""
        self.kept.append(value)
        return value

    def elementwise(self, kind: Kind, out: torch.Tensor, arguments: Sequence[Any]) -> None:
        """Append out = f(arguments), tensors or numbers, broadcast to the shape of `out`."""
        operands = [self._operand(argument).expand(out.shape) for argument in arguments]
        sizes, strides = collapsed(out.shape, [tensor.stride() for tensor in (out, *operands)])
        self.step(kind, (out, *operands), sizes=sizes, strides=strides)

    def step(
        self,
        kind: Kind,
        operands: Sequence[torch.Tensor | None],
        *,
        sizes: Sequence[int] = (1,) * N_AXES,
        strides: Sequence[Sequence[int]] | None = None,
        details: Any = None,
    ) -> Step:
        """Append one step and return it.

        Parameters
        ----------
        kind : Kind
            What it computes.
        operands : sequence of Tensor or None
            The result, then what is read.
        sizes, strides : sequences of int
            `N_AXES` of each, strides for every operand; see csrc/laq.h.
        details : ctypes value, optional
            What the kind needs beyond that.
        """
        step = Step(kind=kind)
        step.sizes[:] = sizes
        for index, tensor in enumerate(operands):
            if tensor is None:
                continue
            step.types[index] = type_of(tensor)
            step.data[index] = tensor.data_ptr()
            if strides is not None:
                step.strides[index][:] = strides[index]
        if details is not None:
            step.details = ctypes.addressof(self.keep(details))
        self.steps.append(step)
        return step

    def _operand(self, value: Any) -> torch.Tensor:
        if isinstance(value, torch.Tensor):
            return value
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise NotRecordableError(f"an operand {value!r}")
        number: torch.Tensor = self.keep(
            torch.tensor(value, dtype=torch.int64 if isinstance(value, int) else torch.float32)
        )
        return number


Handler = Callable[[Program, Event], None]
"""Appends the steps of one operation."""


def type_of(tensor: torch.Tensor) -> int:
    """Return a tensor's type as csrc/laq.h numbers it.

    Raises
    ------
    NotRecordableError
        If steps do not know it, or it is not in the processor's memory.
    """
    if tensor.dtype not in STEP_TYPES or tensor.device.type != "cpu":
        raise NotRecordableError(f"a tensor of {tensor.dtype} on {tensor.device}")
    return STEP_TYPES[tensor.dtype]


def collapsed(shape: Sequence[int], strides: Sequence[Sequence[int]]) -> tuple[list[int], list[list[int]]]:
    """Merge neighbouring axes that all operands walk through evenly.

    Returns
    -------
    sizes, strides
        `N_AXES` axes, leading ones of size 1.

    Raises
    ------
    NotRecordableError
        If more axes are left.

    Examples
    --------
    >>> collapsed((2, 3, 5), [(15, 5, 1), (5, 0, 1)])
    ([1, 2, 3, 5], [[0, 15, 5, 1], [0, 5, 0, 1]])
    >>> collapsed((2, 3, 5), [(15, 5, 1), (15, 5, 1)])
    ([1, 1, 1, 30], [[0, 0, 0, 1], [0, 0, 0, 1]])
    """
    sizes: list[int] = []
    walks: list[list[int]] = [[] for _ in strides]
    for axis, size in enumerate(shape):
        if size == 1:
            continue
        here = [stride[axis] for stride in strides]
        if sizes and all(walk[-1] == size * its for walk, its in zip(walks, here, strict=True)):
            sizes[-1] *= size
            for walk, its in zip(walks, here, strict=True):
                walk[-1] = its
        else:
            sizes.append(size)
            for walk, its in zip(walks, here, strict=True):
                walk.append(its)
    return padded(sizes, 1), [padded(walk, 0) for walk in walks]


def padded(values: Sequence[int], filler: int) -> list[int]:
    """Return `N_AXES` values, fillers first.

    Raises
    ------
    NotRecordableError
        If there are more.
    """
    if len(values) > N_AXES:
        raise NotRecordableError(f"{len(values)} axes")
    return [filler] * (N_AXES - len(values)) + list(values)
