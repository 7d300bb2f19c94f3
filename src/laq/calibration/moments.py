"""Running sums of second and fourth moments, filled by hooks on the modules that are at work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from laq.calibration.spool import Spool
from laq.core.errors import CalibrationError
from laq.core.stats import Moments
from laq.networks.module import Network

SLICE_ROWS = 256
"""Rows of a second-moment matrix updated at a time, from the diagonal on; the rest follows by symmetry."""

PENDING_VECTORS = 2048
"""Vectors gathered before the matrix is updated: its float64 totals are read and written less often."""


@dataclass(slots=True)
class MomentSum:
    """float64 totals of v v' (or v^2) and v^4 over samples.

    Parameters
    ----------
    second : float64 [size, size] or [size]
        Total of outer products, of which slices left of the diagonal are filled by `close`, or of squares.
    fourth : float64 [size]
        Total of fourth powers.
    n_samples : int
        Samples added.
    pending : list of Tensor
        Vectors not yet in `second`.
    """

    second: npt.NDArray[np.float64]
    fourth: npt.NDArray[np.float64]
    n_samples: int = 0
    pending: list[torch.Tensor] = field(default_factory=list)

    @staticmethod
    def of_vectors(size: int) -> MomentSum:
        """Return an empty sum of outer products."""
        return MomentSum(np.zeros((size, size)), np.zeros(size))

    @staticmethod
    def of_squares(size: int) -> MomentSum:
        """Return an empty sum of squares."""
        return MomentSum(np.zeros(size), np.zeros(size))

    def add_vectors(self, vectors: torch.Tensor) -> None:
        """Add vectors, float32 [n, size]; they are copied, for what follows may write into them."""
        self.pending.append(vectors.clone())
        self.fourth += vectors.square().square_().sum(0).numpy()
        self.n_samples += len(vectors)
        if sum(map(len, self.pending)) >= PENDING_VECTORS:
            self._update()

    def _update(self) -> None:
        vectors = torch.cat(self.pending)
        self.pending.clear()
        for start in range(0, vectors.shape[1], SLICE_ROWS):
            stop = start + SLICE_ROWS
            self.second[start:stop, start:] += (vectors[:, start:stop].T @ vectors[:, start:]).numpy()

    def add_squares(self, squares: torch.Tensor) -> None:
        """Add squared values, float32 [n, size]."""
        self.second += squares.sum(0).numpy()
        self.fourth += squares.square().sum(0).numpy()
        self.n_samples += len(squares)

    def close(self) -> None:
        """Add what is pending and fill the other half of a matrix; nothing may be added after it."""
        if self.pending:
            self._update()
        if self.second.ndim == 2:
            for start in range(0, len(self.second), SLICE_ROWS):
                stop = start + SLICE_ROWS
                self.second[stop:, start:stop] = self.second[start:stop, stop:].T


@dataclass(slots=True)
class Collector:
    """Sums of the modules hooked now, and the moments of those that are done.

    Keys are `NAME:input` (H of a linear), `NAME:rows` (G of a linear), `NAME:gradient` (what multiplies an
    embedding row's error) and `NAME:frequency` (how often a row is looked up). `n_tokens` ran backward too,
    `n_forward_tokens` only forward.
    """

    spool: Spool
    n_tokens: int = 0
    n_forward_tokens: int = 0
    n_parked: int = 0
    moments: dict[str, Moments] = field(default_factory=dict)
    input_keys: dict[str, str] = field(default_factory=dict)
    sums: dict[str, MomentSum] = field(default_factory=dict)
    seen: list[tuple[torch.Tensor, str]] = field(default_factory=list)

    def linear_hook(
        self, name: str, *, with_rows: bool = True, alone: bool = False
    ) -> Callable[..., torch.Tensor]:
        """Return a forward hook that adds the input to H and, `with_rows`, the output's gradient to G.

        A weight that several linears hold has inputs from several places: it keeps moments `alone`.
        """

        def hook(module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
            del module
            if alone:
                self.input_keys[name] = f"{name}:input"
                self._add_vectors(f"{name}:input", args[0])
            else:
                self._add_input(name, args[0])
            if not with_rows:
                return output
            if not output.requires_grad:
                output = output.detach().requires_grad_().clone()  # no leaf: in-place activations may follow
            output.register_hook(lambda gradient: self.add_rows(name, squares(gradient)))
            return output

        return hook

    def embedding_hook(self, name: str) -> Callable[..., torch.Tensor]:
        """Return a forward hook that counts rows and adds the output's gradient."""

        def hook(module: nn.Embedding, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
            counts = torch.bincount(args[0].flatten(), minlength=module.num_embeddings).double().numpy()
            total = self.sums.setdefault(f"{name}:frequency", MomentSum.of_squares(len(counts)))
            total.second += counts
            total.fourth += counts
            output = output.detach().requires_grad_().clone()
            scale = float(getattr(module, "embed_scale", 1.0))  # some embeddings multiply what they look up
            output.register_hook(lambda gradient: self._add_vectors(f"{name}:gradient", gradient * scale))
            return output

        return hook

    def add_rows(self, name: str, values: torch.Tensor) -> None:
        """Add squared gradients of the outputs of a linear, float32 [n, n_rows]."""
        self.sums.setdefault(f"{name}:rows", MomentSum.of_squares(values.shape[1])).add_squares(values)

    def _add_input(self, name: str, tensor: torch.Tensor) -> None:
        """Siblings receive the same tensor object: the first one's name stands for all."""
        key = next((key for held, key in self.seen if held is tensor), f"{name}:input")
        if self.input_keys.setdefault(name, key) != key:
            raise CalibrationError(f"{name}: shares its input with other weights in some batches only")
        if key == f"{name}:input":
            self._add_vectors(key, tensor)
            self.seen.append((tensor, key))

    def _add_vectors(self, key: str, tensor: torch.Tensor) -> None:
        vectors = tensor.detach().float().flatten(0, -2)
        self.sums.setdefault(key, MomentSum.of_vectors(vectors.shape[1])).add_vectors(vectors)

    def finish(self) -> None:
        """Turn the sums into moments on disk; rows and frequencies are means per token of the network."""
        for key, total in self.sums.items():
            per_token = key.endswith((":rows", ":frequency"))
            total.close()
            n = max(self.n_tokens if per_token else total.n_samples, 1)
            if key in self.moments:  # more samples of the same
                before = self.moments[key]
                for start in range(0, len(total.second), SLICE_ROWS):
                    rows = slice(start, start + SLICE_ROWS)
                    total.second[rows] += before.second[rows].astype(np.float64) * before.n_samples
                total.fourth += before.fourth.astype(np.float64) * before.n_samples
                n += before.n_samples
            self.n_parked += 1
            second = self.spool.park_array(f"moments-{self.n_parked}", total.second, 1 / n)
            if key in self.moments:
                self.spool.forget_array(self.moments[key].second)
            self.moments[key] = Moments(second, (total.fourth / n).astype(np.float32), n)
        self.sums.clear()
        self.seen.clear()


def squares(gradient: torch.Tensor) -> torch.Tensor:
    """Return squared values as float32 [n, size]."""
    return gradient.detach().float().flatten(0, -2).square()


def hook_weights(
    network: Network, collector: Collector, wanted: Callable[[str], bool], *, with_rows: bool = True
) -> list[torch.utils.hooks.RemovableHandle]:
    """Hook the linears, and without blocks the embeddings, whose path is wanted."""
    handles = []
    for weight in network.weights:
        held_by = [network.module.get_submodule(path) for path in weight.modules]
        alone = sum(isinstance(child, nn.Linear) for child in held_by) > 1
        for path in filter(wanted, weight.modules):
            child = network.module.get_submodule(path)
            if isinstance(child, nn.Linear):
                hook = collector.linear_hook(weight.name, with_rows=with_rows, alone=alone)
                handles.append(child.register_forward_hook(hook))
            elif with_rows and not network.blocks:
                handles.append(child.register_forward_hook(collector.embedding_hook(weight.name)))
    return handles


@contextmanager
def hooks(*handles: torch.utils.hooks.RemovableHandle) -> Iterator[None]:
    """Remove hooks at the end of the block."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
