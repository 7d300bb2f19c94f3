"""Memory and disk that a run will need, checked before it starts."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence

import psutil
import torch

from laq.core.errors import ResourceError
from laq.distillation import tunable
from laq.networks import Batch, Network
from laq.networks.module import arguments_of

WORKING_BYTES = 1 << 30
"""Activations of one block, logits and one weight in float32: what a step holds besides the network."""


PLAN_BYTES = 3
"""Bytes per weight of three rival plans of four bits: packed once for the archive and once to run."""


DENSE_BYTES = 6
"""Bytes per weight of the network that distillation teaches, dense, and of what is gathered while it runs."""


FACTOR_BYTES = 56
"""Bytes per element of a weight's second moments while it is measured: float64 copies and their factors."""


def check_resources(network: Network, batches: Sequence[Batch], *, n_gradient: int | None = None) -> None:
    """Raise ResourceError if calibration will not fit in memory or its files on disk.

    Parameters
    ----------
    network : Network
        Already loaded.
    batches : sequence of Batch
        Calibration data.
    n_gradient : int, optional
        Batches that also run backward; all if not given.
    """
    widths = [weight.shape[1] for weight in network.weights]
    memory = WORKING_BYTES + PLAN_BYTES * network.n_params + _factor_bytes(widths)
    check_memory(network.source, memory)
    disk = sum(4 * width * width for width in widths) + _block_inputs(network, batches, n_gradient)
    folder = tempfile.gettempdir()
    free_disk = shutil.disk_usage(folder).free
    if disk > free_disk:
        raise ResourceError(
            f"{folder}: calibration parks up to {disk / 1e9:.1f} GB there, {free_disk / 1e9:.1f} GB are free",
            hint="set TMPDIR to a larger disk (not one in memory), or lower --tokens",
        )


def check_distillation(network: Network) -> None:
    """Raise NetworkError if there is nothing to tune, ResourceError if teaching will not fit in memory."""
    tunable(network)
    check_memory(network.source, WORKING_BYTES + (PLAN_BYTES + DENSE_BYTES) * network.n_params)


def check_memory(source: str, size_bytes: int) -> None:
    """Raise ResourceError unless `size_bytes` more of memory are free; names the `source` that needs them."""
    free = psutil.virtual_memory().available
    if size_bytes > free:
        raise ResourceError(
            f"{source}: needs about {size_bytes / 1e9:.1f} GB more memory, {free / 1e9:.1f} GB are free",
            hint="close other programs, or use a machine with more memory",
        )


def _factor_bytes(widths: Sequence[int]) -> int:
    """Second moments and inverse factors of the widest weights, as many as are worked on side by side."""
    side_by_side = min(torch.get_num_threads(), len(widths))
    return FACTOR_BYTES * sum(width**2 for width in sorted(widths)[-side_by_side:])


def _block_inputs(network: Network, batches: Sequence[Batch], n_gradient: int | None) -> int:
    """Inputs of all blocks for batches that run backward, of one block for the others."""
    if not network.blocks or not batches:
        return 0
    n_tokens = sum(
        value.numel()
        for batch in batches
        for value in arguments_of(batch)
        if isinstance(value, torch.Tensor) and not value.is_floating_point()
    )
    n_blocks = len(list(network.module.get_submodule(network.blocks).children()))
    graded = min(1.0, (len(batches) if n_gradient is None else max(n_gradient, 1)) / len(batches))
    held = n_tokens * (graded * n_blocks + (1 - graded))
    return int(4 * held * min(weight.shape[1] for weight in network.weights))
