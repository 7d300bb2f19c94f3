"""laq measure: what every tile would cost at every width, to plan from."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from laq.cli.options import (
    AsJson,
    Data,
    Debug,
    FormatNames,
    Group,
    Keep,
    LowRank,
    Mixes,
    Model,
    Outliers,
    QuantizerName,
    Quiet,
    RangeName,
    Scales,
    ScalesPer,
    Seed,
    SensitivityName,
    Tokens,
    TransformNames,
    check_corrections,
    check_data,
    check_formats,
    stored_options,
)
from laq.cli.output import running
from laq.core.effort import CALIBRATION_TOKENS
from laq.core.scale_units import ScalePer

if TYPE_CHECKING:
    from laq.core.curve import Curves
    from laq.core.stats import Stats

Out = Annotated[
    Path, typer.Option("-o", "--output", metavar="DIR", help="Folder to write `stats` and `curves` into.")
]


def measure(
    model: Model,
    output: Out,
    quantizer: QuantizerName = "gptq",
    range: RangeName = "mse",
    group_size: Group = None,
    scale_format: Scales = None,
    scale_per: ScalesPer = ScalePer.GROUP,
    transform: TransformNames = None,
    sensitivity: SensitivityName = "fisher",
    mixes: Mixes = 0,
    low_rank: LowRank = "0",
    outliers: Outliers = "0",
    formats: FormatNames = "all",
    keep: Keep = None,
    data: Data = None,
    tokens: Tokens = CALIBRATION_TOKENS,
    seed: Seed = 0,
    as_json: AsJson = False,
    debug: Debug = False,
    quiet: Quiet = False,
) -> None:
    """Measure where precision matters.

    Once; then `laq plan` any budget in seconds.
    """
    with running(debug=debug, as_json=as_json, quiet=quiet, may_download=not Path(model).exists()) as out:
        start = time.perf_counter()
        from laq.cli.loading import opened_network
        from laq.cli.paths import check_output, check_room
        from laq.core.storage import VALUE_FOLDER
        from laq.measuring import measuring_of
        from laq.resources import check_resources
        from laq.steps import calibrate, splits_of
        from laq.steps import measure as run

        check_data(data)
        check_formats(formats)
        check_corrections(low_rank=low_rank, outliers=outliers)
        stored = stored_options(formats, group_size, scale_format, scale_per)
        _check_folder(output)
        for name in ("stats", "curves"):
            check_output(output / name, VALUE_FOLDER)
        options: dict[str, Any] = {
            "quantizer": quantizer,
            "range": range,
            **stored,
            "transform": transform,
            "sensitivity": sensitivity,
            "mixes": mixes,
            "seed": seed,
            "formats": formats,
            "low_rank": low_rank,
            "outliers": outliers,
        }
        measuring = measuring_of(**options)
        network = opened_network(model, keep=keep, quantizer=quantizer, range=range, transform=transform)
        # second moments of every input, and ten losses of four bytes for each tile of 512 weights or more
        check_room(output, sum(4 * w.shape[1] ** 2 for w in network.weights) + network.n_params // 8)
        splits = splits_of(network, data, tokens=tokens, seed=seed)
        if measuring.needs_held_out:
            splits = splits.holding_out()
        check_resources(network, splits.calibration, n_gradient=splits.n_gradient)
        stats = calibrate(network, splits, seed=seed)
        curves = run(network, stats, batches=splits.held_out, **options)
        stats.save(output / "stats")
        curves.save(output / "curves")
        time_s = time.perf_counter() - start
        content = _content(curves, stats, output, formats, data=splits.source, time_s=time_s)
        out.show(content, _text(content))


def _check_folder(folder: Path) -> None:
    """Refuse a folder that holds something else than a measurement."""
    from laq.core.errors import RequestError

    others = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    others = [name for name in others if name not in ("stats", "curves")]
    if others:
        raise RequestError(
            f"{folder}: holds something else than a measurement: {', '.join(others[:5])}",
            hint="choose a folder of its own with -o",
        )


def _content(
    curves: Curves, stats: Stats, folder: Path, formats: str, *, data: str, time_s: float
) -> dict[str, Any]:
    from laq.allocation.common import size_range
    from laq.core.target import Unit

    smallest, largest = size_range(curves, unit=Unit.TILE, formats=formats, floor=False)
    return {
        "folder": str(folder),
        "time_s": time_s,
        "n_weights": len(curves.weights),
        "n_tiles": sum(weight.grid.n_tiles for weight in curves.weights),
        "n_params": curves.n_params,
        "n_tokens": stats.n_tokens,
        "data": data,
        "data_hash": curves.data_hash,
        "source_hash": curves.source_hash,
        "quantizer": curves.quantizer,
        "range": curves.range,
        "transforms": list(curves.transforms),
        "sensitivity": curves.sensitivity,
        "gains": None if curves.gains is None else curves.gains.to_json(),
        "formats": formats,
        "scale_format": curves.scale_format.value,
        "scale_per": curves.scale_per.value,
        "original_bytes": curves.original_bytes,
        "smallest_bytes": smallest,
        "smallest_bpw": 8 * smallest / curves.n_params,
        "largest_bytes": largest,
        "largest_bpw": 8 * largest / curves.n_params,
    }


def _text(content: Mapping[str, Any]) -> str:
    from laq.cli.tables import mega
    from laq.core.formats import FIRST_RANGE

    gains = content["gains"]
    fitted = "" if gains is None else _gains_text(gains)
    return (
        "measured {n_weights} weights in {n_tiles} tiles on {n_tokens} tokens ({data}) with {quantizer}, "
        "range {range}, sensitivity {sensitivity}\n{fitted}"
        "possible sizes: {smallest} MB ({smallest_bpw:.2f} bits per weight) to {largest} MB "
        "({largest_bpw:.2f}), the original\n"
        "saved {folder}; next:\n  laq plan {folder} --bpw X{format}"
    ).format(
        **content,
        fitted=fitted,
        format="" if content["range"] == FIRST_RANGE else " --format integer",
        smallest=mega(content["smallest_bytes"]),
        largest=mega(content["largest_bytes"]),
    )


def _gains_text(gains: Mapping[str, Any]) -> str:
    return (
        "gains from {n_fitted} mixes; on {n_held_out} others predicted KL is off by {median_error:.0%} "
        "(median; {median_error_before:.0%} without), rank correlation {rank_correlation:.2f}\n"
    ).format(**gains)
