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
from laq.runtime.recording import Event, NotRecordableError, storage_of

COMPARISONS = (Kind.LESS, Kind.LESS_EQUAL, Kind.EQUAL, Kind.NOT_EQUAL)
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
    targets : list of int
        The storage that each step writes.
    products : dict
        Products of packed linears by the `id` of their step, until they are finished.
    """

    steps: list[Step] = field(default_factory=list)
    kept: list[object] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    products: dict[int, Any] = field(default_factory=dict)
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

    def address(self, tensor: torch.Tensor) -> int:
        """Return where a tensor lies, and keep that memory; the tensor may move elsewhere later."""
        self.kept.append(tensor.untyped_storage())
        return tensor.data_ptr()

    def elementwise(self, kind: Kind, out: torch.Tensor, arguments: Sequence[Any]) -> None:
        """Append out = f(arguments), tensors or numbers, broadcast to the shape of `out`."""
        operands = [self._operand(argument, arguments, kind).expand(out.shape) for argument in arguments]
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
            step.data[index] = self.address(tensor)
            if strides is not None:
                step.strides[index][:] = strides[index]
        if details is not None:
            step.details = ctypes.addressof(self.keep(details))
        assert operands[0] is not None
        self.steps.append(step)
        self.targets.append(storage_of(operands[0]))
        return step

    def _operand(self, value: Any, arguments: Sequence[Any], kind: Kind) -> torch.Tensor:
        if isinstance(value, torch.Tensor):
            return value
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise NotRecordableError(f"an operand {value!r}")
        dtype = torch.int64 if isinstance(value, int) else torch.float32
        if kind in COMPARISONS:  # torch rounds the number to the tensor's type first
            dtype = next(
                (a.dtype for a in arguments if isinstance(a, torch.Tensor) and a.is_floating_point()), dtype
            )
        return torch.tensor(value, dtype=dtype)


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
