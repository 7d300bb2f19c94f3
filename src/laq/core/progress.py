"""How long work says where it stands: the steps call this, the command line draws it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol, TypeVar

Item = TypeVar("Item")


class Progress(Protocol):
    """Receives every long loop."""

    def track(self, items: Iterable[Item], *, label: str, total: int) -> Iterator[Item]:
        """Yield the items, showing how many of `total` are done."""


class Silent:
    """Shows nothing: the default in Python."""

    def track(self, items: Iterable[Item], *, label: str, total: int) -> Iterator[Item]:
        """Yield the items."""
        del label, total
        yield from items


_current: ContextVar[Progress] = ContextVar("laq_progress", default=Silent())  # noqa: B039 - it holds no state


@contextmanager
def shown_by(progress: Progress) -> Iterator[None]:
    """Send the progress of everything inside of the block to `progress`."""
    token = _current.set(progress)
    try:
        yield
    finally:
        _current.reset(token)


def track(items: Iterable[Item], *, label: str, total: int) -> Iterator[Item]:
    """Yield the items, telling the current `Progress`.

    Parameters
    ----------
    items : iterable
        What the loop runs over.
    label : str
        What is being done, in a few words.
    total : int
        How many items there are.
    """
    return _current.get().track(items, label=label, total=total)
