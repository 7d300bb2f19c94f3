"""What torch does in one call of a network: its operations, in order, with the memory they read and write."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map


class NotRecordableError(Exception):
    """The call cannot be repeated without torch; the message says what stands in the way."""


@dataclass(frozen=True, slots=True)
class Event:
    """One operation of torch: its name, what it was given and what it returned.

    Parameters
    ----------
    name : str
        Such as "aten.add.Tensor".
    arguments : tuple
        Positional arguments; tensors among them keep their memory alive.
    options : dict
        Keyword arguments.
    result : Any
        A tensor, or several.
    written : tuple of Tensor
        Arguments that it changed in place.
    is_random : bool
        Whether it draws random numbers.
    """

    name: str
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    result: Any
    written: tuple[torch.Tensor, ...]
    is_random: bool = False

    @property
    def inputs(self) -> list[torch.Tensor]:
        """Tensors among the arguments."""
        return tensors_in((self.arguments, self.options))

    @property
    def outputs(self) -> list[torch.Tensor]:
        """Tensors that it returned."""
        return tensors_in(self.result)

    @property
    def target(self) -> torch.Tensor:
        """What it writes: the argument that it changed, or its first result."""
        return (*self.written, *self.outputs)[0]

    @property
    def is_view(self) -> bool:
        """Whether it only looks at memory that it was given."""
        given, returned = self.inputs, self.outputs
        if self.written or not returned:
            return False
        return {storage_of(tensor) for tensor in returned} <= {storage_of(tensor) for tensor in given}


FRESH = "aten.lift_fresh.default"
"""How torch announces a tensor that was made from Python numbers."""


class Recording(TorchDispatchMode):
    """Records every operation that runs inside of the `with` block; results are as without it.

    Attributes
    ----------
    events : list of Event
        In the order in which they ran.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch left it untyped
        self.events: list[Event] = []

    def __torch_dispatch__(self, func: Any, types: Sequence[type], args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and note it."""
        del types
        options = dict(kwargs or {})
        result = func(*args, **options)
        given = (
            dict(zip((argument.name for argument in func._schema.arguments), args, strict=False)) | options
        )
        written = [
            given.get(argument.name)
            for argument in func._schema.arguments
            if argument.alias_info is not None and argument.alias_info.is_write
        ]
        is_random = torch.Tag.nondeterministic_seeded in func.tags
        changed = tuple(tensors_in(written))
        self.events.append(Event(str(func), tuple(args), options, result, changed, is_random))
        return result


def tensors_in(value: object) -> list[torch.Tensor]:
    """Return the tensors in nested lists, tuples and dictionaries."""
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def storage_of(tensor: torch.Tensor) -> int:
    """Return what names the memory of a tensor while it is alive."""
    return int(tensor.untyped_storage()._cdata)


def check_same(first: Sequence[Event], second: Sequence[Event]) -> None:
    """Check that two calls did the same with the same memory, numbers included.

    A number of Python that differs between two tokens, such as a position, would be frozen by repeating.

    Raises
    ------
    NotRecordableError
        If they differ.
    """
    if len(first) != len(second):
        raise NotRecordableError(f"{len(first)} operations for one token, {len(second)} for the next")
    names = _Names(), _Names()
    for mine, its in zip(first, second, strict=True):
        if _signature(mine, names[0]) != _signature(its, names[1]):
            raise NotRecordableError(f"{mine.name} differs from one token to the next")


class _Names:
    """Names for memory: the order of appearance for what a call makes, addresses for what was there."""

    def __init__(self) -> None:
        self.known: dict[int, str] = {}

    def of(self, tensor: torch.Tensor, *, made_here: bool) -> str:
        storage = storage_of(tensor)
        if storage not in self.known:
            self.known[storage] = f"new {len(self.known)}" if made_here else f"at {tensor.data_ptr()}"
        return self.known[storage]


def _signature(event: Event, names: _Names) -> object:
    def describe(*, made_here: bool) -> Callable[[Any], Any]:
        def of(value: Any) -> Any:
            if not isinstance(value, torch.Tensor):
                return value
            place = names.of(value, made_here=made_here), value.storage_offset()
            return (*place, str(value.dtype), tuple(value.shape), value.stride())

        return of

    is_fresh = event.name == FRESH
    given = tree_map(describe(made_here=is_fresh), (event.arguments, event.options))
    made = tree_map(describe(made_here=True), event.result)
    return event.name, given, made, event.result.tolist() if is_fresh else None
