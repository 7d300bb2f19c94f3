"""One torch thread a worker: small operations lose more by waiting for each other than they gain."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

from laq.core.executor import map_in_order

Item = TypeVar("Item")
Result = TypeVar("Result")


def side_by_side(function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """Yield function(item) in order, as many side by side as torch has threads.

    Each item runs on one thread, so that its result is the same for every number of threads.
    """
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # new threads take this number as their own
    try:
        yield from map_in_order(torch.no_grad()(function), items, n_workers=n_threads)
    finally:
        torch.set_num_threads(n_threads)
