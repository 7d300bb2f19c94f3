"""How fast things are: competitors in turns, so that all see the same machine, and medians."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from laq.core.progress import track

Item = TypeVar("Item")

ROTATED_BYTES = 192 << 20
"""So much is read before a matrix comes again: more than the caches hold."""

SETTLE_S = 0.01
"""How long each runs uncounted when its turn comes: after others, OpenMP's threads spin for half of that."""

MAX_COPIES = 4096
"""Of a matrix so small that it stays in the caches even so."""


@dataclass(frozen=True, slots=True, eq=False)
class Contender:
    """Something that multiplies by a matrix, of which it holds several equal copies.

    Parameters
    ----------
    name : str
        What the tables call it.
    weight_bytes : int
        Bytes of one copy.
    n_copies : int
        As many as `copies_of` says.
    bind : callable
        From inputs, float32 [n, n_columns], to a function of a copy's number that multiplies once.
    """

    name: str
    weight_bytes: int
    n_copies: int
    bind: Callable[[torch.Tensor], Callable[[int], object]]


@dataclass(frozen=True, slots=True, eq=False)
class Writer:
    """Something that reads a prompt and continues it.

    Parameters
    ----------
    name : str
        What the tables call it.
    weight_bytes : int
        Bytes of weights that are read for one further token.
    write : callable
        Starts a text; yields each token when it is known.
    remark : callable
        What there is to say of the last text, why it was slow.
    """

    name: str
    weight_bytes: int
    write: Callable[[], Iterator[int]]
    remark: Callable[[], str] = str


@dataclass(frozen=True, slots=True)
class ProductSpeed:
    """How fast a contender is.

    Parameters
    ----------
    name : str
        The contender.
    n_inputs : int
        Inputs of one product.
    time_s : float
        Median time of one product.
    weight_bytes : int
        Bytes of the matrix.
    share_of_read : float
        How fast the matrix goes by, over how fast the machine reads memory.
    """

    name: str
    n_inputs: int
    time_s: float
    weight_bytes: int
    share_of_read: float


@dataclass(frozen=True, slots=True)
class TextSpeed:
    """How fast a writer is.

    Parameters
    ----------
    name : str
        The writer.
    prefill_tokens_per_s : float
        Tokens of the prompt over the median time until the first new one.
    decode_tokens_per_s : float
        Over the median time of the others.
    bytes_per_token : int
        Bytes of weights that are read for one further token.
    share_of_read : float
        How fast these go by, over how fast the machine reads memory.
    remark : str
        The writer's, empty if there is none.
    """

    name: str
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    bytes_per_token: int
    share_of_read: float
    remark: str


class Stopwatch:
    """Notes the seconds between items as they pass.

    Attributes
    ----------
    laps_s : list of float
        Seconds until the first item, then from each to the next.
    """

    def __init__(self) -> None:
        self.laps_s: list[float] = []

    def each(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield the items."""
        last = time.perf_counter()
        for item in items:
            now = time.perf_counter()
            self.laps_s.append(now - last)
            last = now
            yield item


def copies_of(weight_bytes: int) -> int:
    """Return how many copies of a matrix take turns, so that each comes from memory and not from a cache."""
    return min(MAX_COPIES, max(2, -(-ROTATED_BYTES // weight_bytes)))


def seconds_in_turns(
    runs: Mapping[str, Callable[[int], object]], *, seconds: float, min_turns: int = 8
) -> dict[str, float]:
    """Return the median seconds of each; one run of each is counted a turn.

    Parameters
    ----------
    runs : mapping
        What to run, by name; called with 0, 1, 2 ...
    seconds : float
        Time for each of them, at least.
    min_turns : int
        Turns that are counted, at least.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    counts = {name: itertools.count() for name in runs}
    end = time.perf_counter() + seconds * len(runs)
    while time.perf_counter() < end or len(times[next(iter(runs))]) < min_turns:
        for name, run in runs.items():
            settled = time.perf_counter() + SETTLE_S
            while time.perf_counter() < settled:
                run(next(counts[name]))
            start = time.perf_counter()
            run(next(counts[name]))
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(found) for name, found in times.items()}


def product_speeds(
    contenders: Sequence[Contender], reading: Contender, inputs: torch.Tensor, *, seconds: float
) -> list[ProductSpeed]:
    """Time the product of the same inputs with every contender's matrix.

    Parameters
    ----------
    contenders : sequence of Contender
        With names of their own.
    reading : Contender
        Reads its bytes and does nothing else.
    inputs : float32 [n, n_columns]
        What is multiplied.
    seconds : float
        Time for each contender.
    """
    several = (*contenders, reading)
    runs = {one.name: _rotating(one, inputs) for one in several}
    found = seconds_in_turns(runs, seconds=seconds)
    read_bytes_per_s = reading.weight_bytes / found[reading.name]
    return [
        ProductSpeed(
            one.name,
            len(inputs),
            found[one.name],
            one.weight_bytes,
            one.weight_bytes / found[one.name] / read_bytes_per_s,
        )
        for one in several
    ]


def _rotating(contender: Contender, inputs: torch.Tensor) -> Callable[[int], object]:
    run, n_copies = contender.bind(inputs), contender.n_copies
    return lambda count: run(count % n_copies)


def text_speeds(
    writers: Sequence[Writer], reading: Contender, *, n_prompt: int, rounds: int
) -> tuple[list[TextSpeed], float]:
    """Let every writer write its text a few times, in turns.

    Parameters
    ----------
    writers : sequence of Writer
        With names of their own; each writes two tokens or more.
    reading : Contender
        Reads its bytes and does nothing else.
    n_prompt : int
        Tokens of the prompt.
    rounds : int
        Texts of each writer.

    Returns
    -------
    speeds : list of TextSpeed
        One a writer.
    read_bytes_per_s : float
        How fast the machine reads memory.
    """
    prefill: dict[str, list[float]] = {writer.name: [] for writer in writers}
    decode: dict[str, list[float]] = {writer.name: [] for writer in writers}
    reads: list[float] = []
    read = _rotating(reading, torch.empty(0))
    for writer in writers:
        next(writer.write())  # what is made once is not counted
    turns = [writer for _ in range(rounds) for writer in writers]
    for writer in track(turns, label="writing in turns", total=len(turns)):
        watch = Stopwatch()
        n_new = sum(1 for _ in watch.each(writer.write()))
        assert n_new > 1, "one token is all prompt"
        prefill[writer.name].append(watch.laps_s[0])
        decode[writer.name] += watch.laps_s[1:]
        reads.append(seconds_in_turns({"": read}, seconds=0, min_turns=1)[""])
    read_bytes_per_s = reading.weight_bytes / statistics.median(reads)
    speeds = []
    for writer in writers:
        per_s = 1 / statistics.median(decode[writer.name])
        share = per_s * writer.weight_bytes / read_bytes_per_s
        first_s = statistics.median(prefill[writer.name])
        rates = n_prompt / first_s, per_s
        speeds.append(TextSpeed(writer.name, *rates, writer.weight_bytes, share, writer.remark()))
    return speeds, read_bytes_per_s


TORCH_NAMES = {torch.float32: "torch fp32", torch.bfloat16: "torch bf16"}


def torch_contender(shape: tuple[int, int], dtype: torch.dtype) -> Contender:
    """Return torch's dense linear of one type."""
    size = shape[0] * shape[1] * dtype.itemsize
    copies = [torch.randn(shape, dtype=dtype) for _ in range(copies_of(size))]

    def bind(inputs: torch.Tensor) -> Callable[[int], object]:
        typed = inputs.to(dtype)
        return lambda copy: torch.nn.functional.linear(typed, copies[copy])

    return Contender(TORCH_NAMES[dtype], size, len(copies), bind)
