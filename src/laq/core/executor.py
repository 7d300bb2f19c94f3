"""Independent work side by side; the results do not depend on how many workers there are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_in_order(
    function: Callable[[Item], Result], items: Sequence[Item], *, n_workers: int
) -> Iterator[Result]:
    """Yield function(item) for every item, in order; threads, as numpy and torch let go of the lock.

    Parameters
    ----------
    function : callable
        Must not change what other items use.
    items : sequence
        The work; `n_workers` at a time, results that nobody took yet are kept. After an error no item begins.
    n_workers : int
        Threads.

    Examples
    --------
    >>> list(map_in_order(abs, [-1, 2, -3], n_workers=2))
    [1, 2, 3]
    """
    with ThreadPoolExecutor(n_workers) as pool:
        yield from pool.map(function, items)
