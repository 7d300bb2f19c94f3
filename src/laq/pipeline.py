"""The main path: load -> calibrate -> transform -> measure -> allocate -> quantize -> pack -> evaluate."""

from __future__ import annotations

import math
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import torch

from laq.allocation import ALLOCATORS
from laq.allocation.common import count_units
from laq.calibration.blocks import chain_of
from laq.checkpoint import checkpoint_at
from laq.core.budget import bpw_to_bytes, bytes_to_bpw, parse_size
from laq.core.effort import effort_of
from laq.core.errors import BudgetError, RequestError
from laq.core.formats import check_range
from laq.core.groups import TileGrid
from laq.core.target import check_unit
from laq.distillation import Distillation
from laq.measurement import begin, measurement, reopened
from laq.measuring import measuring_of
from laq.networks import Network
from laq.resources import check_distillation
from laq.runtime.result import Result, sidecar_bytes
from laq.selection import Job, best_plan, distilled, smallest_budget
from laq.steps import Data, Source, open_network, splits_of, unit_of
from laq.transforms import check_transformable

NUMBERS = {
    "bpw": "for example bpw=4.0",
    "size": "for example size='60MB'",
    "max_kl": "for example max_kl=0.1",
}
"""How limits are written."""

MAX_NAME = 250
"""Characters of a path that laq.json has room for; the end says most."""


def quantize(  # noqa: PLR0913 - the options of a command, all by keyword
    source: Source,
    *,
    bpw: float | None = None,
    size: int | str | None = None,
    max_kl: float | None = None,
    data: Data = None,
    unit: str = "tile",
    allocator: str = "lagrange",
    formats: str = "all",
    quantizer: str = "gptq",
    sequential: bool = False,
    range: str = "mse",
    group_size: int | str | None = None,
    scale_format: str | None = None,
    scale_per: str = "group",
    transform: str | None = None,
    low_rank: int | str = 0,
    outliers: float | str = 0,
    keep: str | None = None,
    control: str | None = None,
    compare: bool = True,
    measured: str | Path | None = None,
    sensitivity: str = "fisher",
    mixes: int = 0,
    effort: str = "default",
    tokens: int | None = None,
    distill: int | None = None,
    checkpoint: str | Path | None = None,
    seed: int = 0,
) -> Result:
    """Return a network that is as close to the original as a limit allows.

    Parameters
    ----------
    source : str, Path, nn.Module or Network
        A Hugging Face folder, a .gguf file, a hub id, or a module in memory (with `data`).
    bpw, size, max_kl
        The limit, one of: bits per weight with everything counted; bytes of the saved folder (or "60MB"); KL
        to the original on the selection split, for which the smallest archive is searched.
    data : str, Path, sequence of batches, or None
        Text file, folder, token ids, "self", or batches that feed module(**batch) or module(*batch).
    unit : "tile", "row", "tensor" or "network"
        What shares one decision.
    allocator : str
        Method that spends bytes over units, see `laq methods`.
    formats : str
        Families of number formats that tiles may take, see docs/METHODS.md: "all" (integers and trellises),
        "integer", "trellis", "palette", "nf4", "fp4", "mxfp4", "ternary", "binary", "residual_binary"; with
        commas between several. Or "product": whole weights in product codes.
    quantizer : str
        Method that picks codes, see `laq methods`.
    sequential : bool
        Round block after block, each for what the rounded ones before it return; see
        `laq.calibration.sequential`.
    range : str
        Method that chooses scales and zero points of integers, see `laq methods`; others than "mse" with
        formats="integer".
    group_size : int or "auto", optional
        32, 64 or 128 columns that share a scale; "auto" chooses for each weight. 64 if not given, 32 with
        mxfp4.
    scale_format : "log4", "log8", "float16" or "e8m0", optional
        How scales are stored; log4 if not given, e8m0 with mxfp4, log8 where they serve more than a group.
    scale_per : "group", "tile", "channel" or "tensor"
        What a scale, and a zero point, serves: a group, all rows of a tile, a row of the weight, all of it.
    transform : str, optional
        Methods that the network goes through first, such as "column_norm,awq"; see `laq methods`.
    low_rank : int or "auto"
        Rank of what is stored in 8 bits beside the tiles of every linear; "auto" chooses for each.
    outliers : float or "auto"
        Share of the weights of every linear that are stored by themselves, such as 0.002; "auto" chooses for
        each.
    keep : str, optional
        Regular expression of weights to leave alone.
    control : "permuted", optional
        Shuffle the measured losses first: what is the signal worth?
    compare : bool
        Hold the plan against per-tensor and uniform plans of the same bytes and keep the best.
    measured : path, optional
        Folder that `laq measure` wrote: calibration and measurement are taken from there.
    sensitivity : str
        Metric of what an error costs, see `laq methods`.
    mixes : int
        Mixes of formats to run through the whole network first, so that predicted losses are its KL; 0 for
        none. With `measured` what was measured counts.
    effort : "default" or "max"
        "max" takes four times the calibration tokens and 192 steps of distillation.
    tokens : int, optional
        Calibration tokens; as `effort` says if not given.
    distill : int, optional
        Steps in which norm gains and biases are tuned after rounding, see `laq.distillation`; as `effort`
        says if not given. A limit on KL is searched before.
    checkpoint : path, optional
        Folder that statistics, curves and the state of the distillation are kept in: after an interruption
        the same call goes on from there.
    seed : int
        Seeds everything that is sampled.

    Raises
    ------
    RequestError
        If the request cannot be met; before the slow work where that can be known.
    """
    _check_limits(bpw, size, max_kl)
    _check_options(unit, control)
    measuring = measuring_of(
        quantizer=quantizer,
        range=range,
        group_size=group_size,
        scale_format=scale_format,
        scale_per=scale_per,
        transform=transform,
        sensitivity=sensitivity,
        mixes=mixes,
        seed=seed,
        formats=formats,
        low_rank=low_rank,
        outliers=outliers,
    )
    check_range(range, formats)
    spent = effort_of(effort, tokens=tokens, distill=distill)
    kept = None if checkpoint is None else checkpoint_at(checkpoint)
    network = open_network(source, keep=keep)
    if spent.n_steps:
        check_distillation(network)
    if measuring.transforms:
        check_transformable(network)
    grids = [TileGrid(*weight.shape, min(measuring.stored.group_sizes)) for weight in network.weights]
    check_unit(unit_of(unit), measuring.stored.scale_per)
    ALLOCATORS.get(allocator).check(count_units(grids, unit_of(unit)))
    budget = budget_bytes(network, bpw, size)
    splits = splits_of(network, data, tokens=spent.n_tokens, seed=seed)
    if sequential:
        chain_of(network, splits.calibration[0], asked="--sequential")
    if kept is not None:
        begin(kept, network, splits, measuring)
    if measured is not None:
        splits, made, curves = reopened(network, splits, measuring, folder=Path(measured))
    else:
        splits, made, curves = measurement(network, splits, measuring, kept=kept)
    job = Job(network, made, splits, curves, unit, allocator, formats, control, seed, sequential)
    result = best_plan(
        job, smallest_budget(job, float(max_kl or 0)) if budget is None else budget, compare=compare
    )
    if spent.n_steps:
        result = distilled(job, result, Distillation(spent.n_steps, seed=seed), checkpoint=kept)
    verdict = result.verdict
    if max_kl is not None:
        verdict += f"; the limit {max_kl:g} is held on the selection split"
    n_steps = spent.n_steps if result.network is not made.network else 0
    return result.updated(
        verdict=verdict, provenance=_provenance(job, verdict, n_tokens=spent.n_tokens, n_steps=n_steps)
    )


def _check_limits(bpw: object, size: object, max_kl: float | None) -> None:
    """Refuse anything but exactly one limit, and values of another type."""
    if sum(limit is not None for limit in (bpw, size, max_kl)) != 1:
        raise RequestError("give exactly one of bpw, size and max_kl", hint=NUMBERS["bpw"])
    for name, limit, types in (
        ("bpw", bpw, Real),
        ("size", size, (Integral, str)),
        ("max_kl", max_kl, Real),
    ):
        if isinstance(limit, float) and not math.isfinite(limit):
            raise RequestError(f"{name}={limit} is not a finite number", hint=NUMBERS[name])
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, types)):
            raise RequestError(
                f"{name}={limit!r} is {type(limit).__name__}, not a number", hint=NUMBERS[name]
            )
    if max_kl is not None and not 0 < max_kl < math.inf:
        raise RequestError(f"max_kl {max_kl} is not a positive number", hint=NUMBERS["max_kl"])


def _check_options(unit: str, control: str | None) -> None:
    """Refuse what the steps would refuse after the slow work."""
    unit_of(unit)
    if control not in ("permuted", None):
        raise RequestError(f"unknown control {control!r}", hint="choose one of: permuted, None")


def budget_bytes(network: Network, bpw: float | None, size: int | str | None) -> int | None:
    """Return the bytes that `bpw` or `size` allow, None if neither is given.

    Raises
    ------
    BudgetError
        If that is above the original's size or below what cannot be saved; before anything slow happens.
    """
    if bpw is None and size is None:
        return None
    if bpw is not None:
        budget = bpw_to_bytes(bpw, network.n_params)
    else:
        budget = parse_size(size) if isinstance(size, str) else int(size or 0)
    smallest, largest = _least_bytes(network), network.original_bytes
    if not smallest <= budget <= largest:
        asked, limit = (
            f"{size / 1e6:.2f} MB ({bytes_to_bpw(size, network.n_params):.2f} bits per weight)"
            for size in (budget, smallest if budget < smallest else largest)
        )
        if budget < smallest:
            raise BudgetError(
                f"budget {asked} is out of range: what is never quantized and the tables alone take {limit}",
                hint="choose a larger budget; after measuring, the smallest possible one is told",
            )
        raise BudgetError(
            f"budget {asked} is out of range: the original takes {limit}", hint="choose a smaller budget"
        )
    return budget


def _least_bytes(network: Network) -> int:
    """Bytes that no archive can go below: kept tensors as they are, sidecars, a bit table for the rest."""
    kept = sum(k.n_elements * int(getattr(torch, k.dtype).itemsize) for k in network.kept)
    n_weights = sum(weight.shape[0] * weight.shape[1] for weight in network.weights)
    return kept + sidecar_bytes(network) + n_weights // 64


def _provenance(job: Job, verdict: str, *, n_tokens: int, n_steps: int) -> dict[str, Any]:
    """What made the result."""
    gains = job.curves.gains
    return {
        "source": job.network.source[-MAX_NAME:],
        "data": job.splits.source[-MAX_NAME:],
        "data_hash": job.made.stats.data_hash,
        "n_tokens": job.made.stats.n_tokens,
        "tokens_asked_for": n_tokens,
        "distillation_steps": n_steps,
        "seed": job.seed,
        "allocator": job.allocator,
        "formats": job.formats,
        "sensitivity": job.curves.sensitivity,
        "mixes": 0 if gains is None else gains.n_fitted + gains.n_held_out,
        "verdict": verdict,
        **({} if job.curves.low_rank == "0" else {"low_rank": job.curves.low_rank}),
        **({"sequential": True} if job.sequential else {}),
        **({} if job.curves.outliers == "0" else {"outliers": job.curves.outliers}),
    }
