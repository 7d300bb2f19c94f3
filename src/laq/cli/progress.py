"""Progress on stderr: bars on a terminal, one line a finished step elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar, final

from laq.core.progress import Progress, Silent

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

Item = TypeVar("Item")
LABEL_WIDTH = 24


def chosen_progress(*, quiet: bool) -> Progress:
    """Return what fits the place that stderr leads to."""
    if quiet:
        return Silent()
    return Bars() if sys.stderr.isatty() else Lines()


@final
class Lines:
    """One plain line a step, when it is done."""

    def track(self, items: Iterable[Item], *, label: str, total: int) -> Iterator[Item]:
        """Yield the items, then say how long they took."""
        start = time.perf_counter()
        yield from items
        of = f" ({total})" if total > 1 else ""
        print(f"{label}{of}: {time.perf_counter() - start:.1f} s", file=sys.stderr, flush=True)


@final
class Bars:
    """A bar a step; those that are done stay as one line each."""

    def track(self, items: Iterable[Item], *, label: str, total: int) -> Iterator[Item]:
        """Yield the items, moving a bar."""
        with _rich_progress() as bars:
            yield from bars.track(items, total=total, description=label.ljust(LABEL_WIDTH))


def _rich_progress() -> RichProgress:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as RichProgress

    return RichProgress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=16),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left", markup=False),
        TimeRemainingColumn(),
        console=Console(stderr=True, markup=False, highlight=False),
        transient=False,
    )
