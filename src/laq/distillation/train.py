"""The steps of a distillation."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from laq.calibration.collect import hash_batches
from laq.core.effort import MAX_STEPS
from laq.core.errors import NetworkError, RequestError, RunError
from laq.core.packing import StoredTensor
from laq.core.progress import track
from laq.core.storage import HEADER_NAME
from laq.distillation.state import State
from laq.networks.module import Batch, Network, evaluation_mode, run_logits
from laq.networks.swapped import Swapped, with_parameters
from laq.runtime.replace import dense_values

BETAS = (0.9, 0.99)
WARMUP_STEPS = 10
LAST_RATE = 0.02
"""Share of the learning rate that is left at the end of its cosine."""

LEAST_SIZE = 0.1
"""Elements move in proportion to their size, or to this share of the root mean square, of 1 if that is 0."""

SAVE_EVERY = 16
"""Steps between two saved states."""


@dataclass(frozen=True, slots=True)
class Distillation:
    """How long a network is taught, and how fast.

    Parameters
    ----------
    n_steps : int
        One calibration batch each.
    learning_rate : float
        Of Adam; relative to the size of what it changes.
    seed : int
        Seeds the order of batches.
    """

    n_steps: int
    learning_rate: float = 2e-3
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse numbers out of range."""
        if not 0 < self.n_steps <= MAX_STEPS:
            raise RequestError(
                f"{self.n_steps} steps of distillation", hint=f"choose a number from 1 to {MAX_STEPS}"
            )

    def rate(self, step: int) -> float:
        """Return the learning rate of a step: it rises over the first few, then falls along a cosine.

        Examples
        --------
        >>> half_way = Distillation(100, 1.0).rate(50)
        >>> half_way, Distillation(100, 1.0).rate(0)
        (0.5, 0.1)
        """
        falling = 0.5 * (1 + math.cos(math.pi * step / self.n_steps))
        return self.learning_rate * min(1.0, (step + 1) / WARMUP_STEPS) * max(LAST_RATE, round(falling, 12))


def tunable(network: Network) -> list[str]:
    """Return the names of what is tuned: parameters in float of fewer than two dimensions.

    Raises
    ------
    NetworkError
        If there are none.
    """
    parameters = dict(network.module.named_parameters())
    names = [
        kept.name
        for kept in network.kept
        if len(kept.shape) < 2 and kept.name in parameters and parameters[kept.name].is_floating_point()
    ]
    if not names:
        raise NetworkError(
            f"{network.source}: has no norm gains or biases to tune", hint="leave the distillation away"
        )
    return names


def distill(
    original: Network,
    made: Network,
    packed: Mapping[str, StoredTensor],
    batches: Sequence[Batch],
    settings: Distillation,
    *,
    checkpoint: Path | None = None,
) -> Network:
    """Return what was quantized with its norm gains and biases tuned for the packed weights.

    Parameters
    ----------
    original : Network
        Its logits are the targets.
    made : Network
        What was packed: the original, or what transforms made of it; shares all other parameters with the
        result.
    packed : mapping
        Packed weights by name.
    batches : sequence of Batch
        Calibration data.
    settings : Distillation
        How long and how fast.
    checkpoint : Path, optional
        Folder that the state is kept in; a distillation of the same goes on from it.

    Raises
    ------
    NetworkError
        If there is nothing to tune.
    RunError
        If the loss is not finite.
    """
    student = _Student(made, packed)
    key = "" if checkpoint is None else _key(original, made, packed, batches, settings)
    state = _state_at(checkpoint, key)
    optimizer = torch.optim.Adam(student.moved.values(), betas=BETAS)
    if state is not None:
        student.restore_(optimizer, state)
    first = 0 if state is None else state.step
    order = _order(len(batches), settings)
    with evaluation_mode(original.module, made.module):
        for step in track(range(first, settings.n_steps), label="distilling", total=settings.n_steps - first):
            for group in optimizer.param_groups:
                group["lr"] = settings.rate(step)
            loss = student.loss(original.module, batches[order[step]])
            if not bool(torch.isfinite(loss)):
                raise RunError(
                    f"distillation: the loss is not finite at step {step}",
                    hint="raise the budget, or leave the distillation away",
                )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            done = step + 1
            if checkpoint is not None and (done % SAVE_EVERY == 0 or done == settings.n_steps):
                student.state(optimizer, done, key).save(checkpoint)
    return with_parameters(made, student.tuned())


class _Student:
    """The quantized network, dense while it is taught, and what of it moves."""

    def __init__(self, network: Network, packed: Mapping[str, StoredTensor]) -> None:
        self.network = network
        types = {parameter.dtype for parameter in network.module.parameters()}
        is_exact = types == {torch.float32} and not _has_bfloat16()
        self.precision = torch.float32 if is_exact else torch.bfloat16
        self.names = tunable(network)
        kinds = {weight.name: weight.kind for weight in network.weights}
        self.weights = {
            # embeddings start the stream that norms read: it stays in its own type
            name: values.to(self.precision if kinds[name] == "linear" else network.weight(name).dtype)
            for name, values in ((name, dense_values(stored)) for name, stored in packed.items())
        }
        self.start = {name: network.module.get_parameter(name).detach().float() for name in self.names}
        self.sizes = {
            name: (value.square() + LEAST_SIZE**2 * (value.square().mean() or 1.0)).sqrt()
            for name, value in self.start.items()
        }
        # what is not tuned needs no gradients, whatever the module says
        self.others = {name: value.detach() for name, value in network.module.named_parameters()}
        self.moved = {name: nn.Parameter(torch.zeros_like(value)) for name, value in self.start.items()}

    def values(self) -> dict[str, torch.Tensor]:
        """Return the tuned parameters in float32; gradients reach what moves."""
        return {name: self.start[name] + self.sizes[name] * self.moved[name] for name in self.names}

    def loss(self, teacher: nn.Module, batch: Batch) -> torch.Tensor:
        """Return KL(original || quantized) on one batch, nats per token."""
        with self._computing():
            with torch.no_grad():
                expected = functional.log_softmax(run_logits(teacher, batch).float(), -1)
            tensors = {**self.others, **self.weights, **self.values()}
            found = run_logits(Swapped(self.network.module, tensors), batch)
            found = functional.log_softmax(found.float(), -1)
        return functional.kl_div(found, expected, reduction="sum", log_target=True) / found[..., 0].numel()

    def tuned(self) -> dict[str, torch.Tensor]:
        """Return what the network stores: the tuned parameters in its own types."""
        with torch.no_grad():
            return {
                name: value.to(self.network.module.get_parameter(name).dtype)
                for name, value in self.values().items()
            }

    def state(self, optimizer: torch.optim.Adam, step: int, key: str) -> State:
        """Return what `restore_` needs."""

        def of(values: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
            return {name: value.detach().numpy().copy() for name, value in values.items()}

        kept = {name: optimizer.state[value] for name, value in self.moved.items()}
        means = of({name: one["exp_avg"] for name, one in kept.items()})
        squares = of({name: one["exp_avg_sq"] for name, one in kept.items()})
        return State(step, key, of(self.moved), means, squares)

    def restore_(self, optimizer: torch.optim.Adam, state: State) -> None:
        """Go back to a saved state."""
        with torch.no_grad():
            for name, value in self.moved.items():
                value.copy_(torch.from_numpy(state.values[name]))
                optimizer.state[value] = {
                    "step": torch.tensor(float(state.step)),
                    "exp_avg": torch.from_numpy(state.means[name].copy()),
                    "exp_avg_sq": torch.from_numpy(state.squares[name].copy()),
                }

    def _computing(self) -> AbstractContextManager[object]:
        if self.precision is torch.float32:
            return nullcontext()
        return torch.autocast("cpu", self.precision)


def _has_bfloat16() -> bool:
    """Say whether products of 16 bits are fast here."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _order(n: int, settings: Distillation) -> list[int]:
    """Index of the batch of every step: all of them in a random order, then again in another."""
    generator = torch.Generator().manual_seed(settings.seed)
    order: list[int] = []
    while len(order) < settings.n_steps:
        order += torch.randperm(n, generator=generator).tolist()
    return order


def _state_at(checkpoint: Path | None, key: str) -> State | None:
    """Return the state to go on from: none if there is none, or it is of something else."""
    if checkpoint is None or not (checkpoint / HEADER_NAME).is_file():
        return None
    state = State.open(checkpoint)
    return state if state.key == key else None


def _key(
    original: Network,
    made: Network,
    packed: Mapping[str, StoredTensor],
    batches: Sequence[Batch],
    settings: Distillation,
) -> str:
    """Hash of everything that the outcome depends on."""
    digest = hashlib.sha256()
    parts = (original.content_hash(), made.content_hash(), hash_batches(batches), repr(settings))
    digest.update("\n".join(parts).encode())
    for name, stored in packed.items():
        digest.update(name.encode())
        for section, array in stored.sections().items():
            digest.update(section.encode())
            digest.update(np.ascontiguousarray(array).view(np.uint8).reshape(-1).data)
    return digest.hexdigest()
