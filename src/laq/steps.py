"""The steps of the main path, one function each: every value between them can be saved and opened again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from torch import nn

from laq.allocation.common import allocate as _allocate
from laq.calibration.collect import calibrate as _calibrate
from laq.calibration.collect import hash_batches
from laq.calibration.data import Splits, evaluation_batches, text_splits
from laq.calibration.sequential import apply_in_sequence
from laq.core.budget import bpw_to_bytes, bytes_to_bpw, parse_size
from laq.core.curve import Curves
from laq.core.effort import CALIBRATION_TOKENS
from laq.core.errors import DataError, RequestError
from laq.core.plan import Plan
from laq.core.record import Record
from laq.core.scheme import StoredAs
from laq.core.stats import Stats
from laq.core.target import Unit
from laq.evaluation.divergence import compare
from laq.measuring import Measuring, measure_transformed, measuring_of, transform_network
from laq.networks import Batch, Network, describe, load_network
from laq.networks.transformers import describe_causal, is_causal_model
from laq.quantizers.common.apply import apply_plans
from laq.runtime.linear import EVALUATED_BITS, rounding_activations
from laq.runtime.replace import resident_bytes
from laq.runtime.result import Result

Source = str | Path | nn.Module | Network
Data = str | Path | Iterable[Batch] | None


def open_network(source: Source, *, keep: str | None = None) -> Network:
    """Load a network, or describe a module.

    Parameters
    ----------
    source : str, Path, nn.Module or Network
        A Hugging Face folder, a .gguf file, a hub id, or a module in memory.
    keep : str, optional
        Regular expression of weights that stay as they are.

    Raises
    ------
    NetworkError
        If it cannot be loaded, or nothing is left to quantize.
    """
    if isinstance(source, nn.Module):
        network = describe_causal(source) if is_causal_model(source) else describe(source)
    else:
        network = source if isinstance(source, Network) else load_network(source)
    return network if keep is None else network.keeping(keep)


def splits_of(network: Network, data: Data, *, tokens: int = CALIBRATION_TOKENS, seed: int = 0) -> Splits:
    """Return three disjoint splits of text, token ids, or batches given in memory.

    Raises
    ------
    DataError
        If there are too few.
    """
    if data is None and network.architecture == "module":
        raise DataError("a module needs data", hint="pass batches that feed it: data=[(inputs,), ...]")
    if data is None or isinstance(data, str | Path):
        return text_splits(network, data, n_tokens=tokens, seed=seed)
    if hasattr(data, "shape"):
        raise DataError("data is one array", hint="pass a list of batches, for example list(data.split(32))")
    data = list(data)
    if len(data) < 3:
        raise DataError(
            f"{len(data)} batches; three disjoint splits need at least 3", hint="pass more batches"
        )
    n = max(1, len(data) // 5)
    return Splits(tuple(data[: -2 * n]), tuple(data[-2 * n : -n]), tuple(data[-n:]), f"{len(data)} batches")


def calibrate(
    network: Source, data: Data | Splits = None, *, tokens: int = CALIBRATION_TOKENS, seed: int = 0
) -> Stats:
    """Collect the statistics of all weights on the calibration split of `data`.

    See `laq.calibration.collect.calibrate`.
    """
    opened = open_network(network)
    splits = data if isinstance(data, Splits) else splits_of(opened, data, tokens=tokens, seed=seed)
    return _calibrate(opened, splits.calibration, n_gradient=splits.n_gradient, seed=seed)


def measure(  # noqa: PLR0913 - the options of a command, all by keyword
    network: Source,
    stats: Stats,
    *,
    quantizer: str = "gptq",
    range: str = "mse",
    group_size: int | str | None = None,
    scale_format: str | None = None,
    scale_per: str = "group",
    transform: str | None = None,
    sensitivity: str = "fisher",
    mixes: int = 0,
    batches: Sequence[Batch] = (),
    seed: int = 0,
    formats: str = "all",
    low_rank: int | str = 0,
    outliers: float | str = 0,
) -> Curves:
    """Measure the loss of every tile at every format that plans may use.

    Parameters
    ----------
    network : Source
        The original.
    stats : Stats
        What calibration saw of it.
    quantizer : str
        Method whose error is measured.
    range : str
        Method that chooses scales and zero points of integers, see `laq methods`.
    group_size : int or "auto", optional
        32, 64 or 128 columns that share a scale; "auto" measures all for a plan to choose from. 64 if not
        given, 32 with mxfp4.
    scale_format : "log4", "log8", "float16" or "e8m0", optional
        How scales are stored; log4 if not given, e8m0 with mxfp4, log8 where they serve more than a group.
    scale_per : "group", "tile", "channel" or "tensor"
        What a scale, and a zero point, serves: a group, all rows of a tile, a row of the weight, all of it.
    transform : str, optional
        Methods that the network goes through first, such as "column_norm,awq"; see `laq methods`.
    sensitivity : str
        Metric of what an error costs, see `laq methods`.
    mixes : int
        Mixes of formats to run through the whole network, so that sums of curves predict its KL; 0 for none.
    batches : sequence of Batch
        What mixes, and metrics that run the network, run on: data that `stats` did not see, and that nothing
        will be judged on.
    seed : int
        Seeds what is sampled.
    formats : str
        Families of formats, see `laq.core.formats.FAMILIES`; with commas between several.
    low_rank : int or "auto"
        Rank of the correction of every linear; "auto" measures several for a plan to choose from.
    outliers : float or "auto"
        Share of the weights of every linear that are stored by themselves; likewise.

    Raises
    ------
    RequestError
        If there is no such method, group size or scale format, mixes are too few, or what is asked for
        cannot go together.
    DataError
        If batches are needed and there are none.
    """
    opened = open_network(network)
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
    measuring.check_batches(batches)
    made = transform_network(opened, stats, measuring)
    return measure_transformed(opened, made, measuring, batches=tuple(batches))


def allocate(  # noqa: PLR0913 - the options of a command, all by keyword
    curves: Curves,
    *,
    bpw: float | None = None,
    size: int | str | None = None,
    unit: str = "tile",
    allocator: str = "lagrange",
    formats: str = "all",
    control: str | None = None,
    floor: bool = True,
    seed: int = 0,
    target: str = "laq",
) -> Plan:
    """Choose a format for every tile within a budget; takes seconds, no torch.

    See `laq.allocation.common.allocate`; give either `bpw` or `size` (bytes, or text like "60MB"). The only
    target so far is laq's own archive.
    """
    if target != "laq":
        raise RequestError(f"unknown target {target!r}", hint="the only target is: laq")
    if (bpw is None) == (size is None):
        raise RequestError("give one of bpw and size", hint="for example bpw=4.0 or size='60MB'")
    if bpw is not None:
        budget = bpw_to_bytes(bpw, curves.n_params)
    else:
        budget = parse_size(size) if isinstance(size, str) else int(size or 0)
    return _allocate(
        curves,
        budget,
        unit=unit_of(unit),
        allocator=allocator,
        formats=formats,
        control=control,
        floor=floor,
        seed=seed,
    )


def unit_of(name: str) -> Unit:
    """Return the unit of decision called `name`, or raise RequestError with the list."""
    names = [unit.value for unit in Unit]
    if name not in names:
        raise RequestError(f"unknown unit {name!r}", hint=f"choose one of: {', '.join(names)}")
    return Unit(name)


def apply(network: Source, plan: Plan, stats: Stats, *, sequential: Sequence[Batch] = ()) -> Result:
    """Quantize and pack a network by a plan, after the transforms that the plan names.

    Parameters
    ----------
    network : Source
        The original.
    plan : Plan
        Formats of all tiles.
    stats : Stats
        What calibration saw.
    sequential : sequence of Batch, optional
        Calibration data to round block after block with, each for what the rounded ones before it return; see
        `laq.calibration.sequential`. Without any, all by the moments in `stats`.

    Raises
    ------
    RequestError
        If the plan was made for another network.
    NetworkError
        If it has no blocks to go through in sequence.
    """
    opened = open_network(network)
    opened.check_same(plan.source_hash, (weight.name for weight in plan.weights))
    stored = StoredAs((plan.group_size,), plan.scale_format, plan.scale_per)
    made = transform_network(opened, stats, Measuring(plan.quantizer, plan.range, stored, plan.transforms))
    return apply_all(made.network, [plan], made.stats, sequential=sequential)[0]


def apply_all(
    network: Network, plans: Sequence[Plan], stats: Stats, *, sequential: Sequence[Batch] = ()
) -> list[Result]:
    """Quantize and pack what transforms made of a network, by several plans of one measurement of it."""
    if sequential:
        packed = [apply_in_sequence(network, plan, stats, sequential) for plan in plans]
    else:
        packed = apply_plans(network, plans, stats)
    provenance = {"data_hash": stats.data_hash, "n_tokens": stats.n_tokens}
    return [
        Result(network, plan, tensors, provenance=provenance)
        for plan, tensors in zip(plans, packed, strict=True)
    ]


def evaluate(
    model: nn.Module,
    *,
    reference: Source,
    data: Data = None,
    size_bytes: int | None = None,
    split: str = "test",
) -> Record:
    """Measure how far `model` is from its original on held-out data.

    Parameters
    ----------
    model : nn.Module
        The quantized network.
    reference : Source
        The original.
    data : str, Path, sequence of Batch, or None
        Held-out data; None for the test split of the built-in text.
    size_bytes : int, optional
        Bytes of the archive; what the module holds in memory if not given.
    split : str
        Name of the data in the record.
    """
    original = open_network(reference)
    if data is None or isinstance(data, str | Path):
        batches: Sequence[Batch] = evaluation_batches(original, data)
    else:
        batches = list(data)
    return records(original, {"": (model, size_bytes)}, batches, split=split)[""]


def records(
    original: Network,
    models: Mapping[str, tuple[nn.Module, int | None]],
    batches: Sequence[Batch],
    *,
    split: str,
) -> dict[str, Record]:
    """Evaluate several quantized networks side by side: the original runs once."""
    modules = [module for module, _ in models.values()]
    with rounding_activations(modules, EVALUATED_BITS):
        found = compare(original.module, modules, batches, label=f"evaluating on {split}")
    data_hash = hash_batches(batches)
    result = {}
    for (name, (module, size_bytes)), divergence in zip(models.items(), found, strict=True):
        size = size_bytes if size_bytes is not None else resident_bytes(module)
        result[name] = Record(
            kl_nats=divergence.kl_nats,
            kl_stderr_nats=divergence.kl_stderr_nats,
            perplexity_original=divergence.perplexity_original,
            perplexity=divergence.perplexity,
            top1_agreement=divergence.top1_agreement,
            n_tokens=divergence.n_tokens,
            size_bytes=size,
            original_bytes=original.original_bytes,
            bpw=bytes_to_bpw(size, original.n_params),
            split=split,
            data_hash=data_hash,
        )
    return result
