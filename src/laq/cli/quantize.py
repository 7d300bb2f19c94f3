"""laq quantize: from a network and a limit to an archive."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from laq.cli.options import (
    AllocatorName,
    AsJson,
    Bpw,
    ControlName,
    Data,
    Debug,
    EffortName,
    EffortTokens,
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
    Size,
    TransformNames,
    check_allocator,
    check_corrections,
    check_data,
    check_formats,
    check_limits,
    stored_options,
)
from laq.cli.output import running
from laq.core.effort import effort_of
from laq.core.scale_units import ScalePer
from laq.core.target import Unit, check_unit

if TYPE_CHECKING:
    from rich.console import RenderableType

    from laq.runtime.result import Result

Out = Annotated[
    Path, typer.Option("-o", "--output", metavar="OUT", help="Folder to write; an archive is replaced.")
]
MaxKl = Annotated[
    float | None,
    typer.Option("--max-kl", help="Smallest archive whose KL (nats per token) stays below this."),
]
Measured = Annotated[
    Path | None,
    typer.Option("--measured", metavar="DIR", help="Folder that `laq measure` wrote: skips measuring."),
]
Distill = Annotated[
    int | None,
    typer.Option(
        "--distill",
        metavar="STEPS",
        help="Tune norm gains and biases against the original after rounding, in so many steps.",
    ),
]
Checkpoint = Annotated[
    Path | None,
    typer.Option(
        "--checkpoint",
        metavar="DIR",
        help="Keep what is finished there; the same command goes on from it after an interruption.",
    ),
]
Compare = Annotated[
    bool,
    typer.Option(
        "--compare/--no-compare", help="Hold the plan against uniform and per-tensor plans; keep the best."
    ),
]
Sequential = Annotated[
    bool,
    typer.Option(
        "--sequential", help="Round block after block, each for what the rounded ones before return."
    ),
]
UnitName = Annotated[Unit, typer.Option("--unit", help="What shares one decision.")]


def quantize(
    model: Model,
    output: Out,
    bpw: Bpw = None,
    size: Size = None,
    max_kl: MaxKl = None,
    unit: UnitName = Unit.TILE,
    allocator: AllocatorName = "lagrange",
    formats: FormatNames = "all",
    quantizer: QuantizerName = "gptq",
    sequential: Sequential = False,
    range: RangeName = "mse",
    group_size: Group = None,
    scale_format: Scales = None,
    scale_per: ScalesPer = ScalePer.GROUP,
    transform: TransformNames = None,
    low_rank: LowRank = "0",
    outliers: Outliers = "0",
    keep: Keep = None,
    control: ControlName = None,
    seed: Seed = 0,
    effort: EffortName = "default",
    tokens: EffortTokens = None,
    distill: Distill = None,
    checkpoint: Checkpoint = None,
    data: Data = None,
    measured: Measured = None,
    sensitivity: SensitivityName = "fisher",
    mixes: Mixes = 0,
    compare: Compare = True,
    as_json: AsJson = False,
    debug: Debug = False,
    quiet: Quiet = False,
) -> None:
    """Quantize a network to a size, and say what it cost.

    Give exactly one of --bpw, --size and --max-kl. The whole folder stays within the limit.
    """
    with running(debug=debug, as_json=as_json, quiet=quiet, may_download=not Path(model).exists()) as out:
        start = time.perf_counter()
        check_limits(bpw=bpw, size=size, max_kl=max_kl, names="--bpw, --size and --max-kl")
        check_data(data)
        check_corrections(low_rank=low_rank, outliers=outliers)
        check_allocator(allocator)
        check_formats(formats)
        check_unit(unit, scale_per)
        stored = stored_options(formats, group_size, scale_format, scale_per)
        effort_of(effort, tokens=tokens, distill=distill)

        from laq.cli.paths import check_checkpoint
        from laq.measuring import measuring_of

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
        measuring_of(**options)
        names = {"quantizer": quantizer, "range": range, "transform": transform}
        check_checkpoint(checkpoint, output)
        network = _open(model, output, formats, keep=keep, names=names)

        from laq.cli.paths import check_room
        from laq.pipeline import budget_bytes
        from laq.pipeline import quantize as run

        check_room(output, budget_bytes(network, bpw, size) or network.original_bytes)

        result = run(
            network,
            bpw=bpw,
            size=size,
            max_kl=max_kl,
            data=data,
            unit=unit.value,
            allocator=allocator,
            sequential=sequential,
            control=None if control is None else control.value,
            compare=compare,
            measured=measured,
            effort=effort,
            tokens=tokens,
            distill=distill,
            checkpoint=checkpoint,
            **options,
        )
        result.save(output)
        out.show(
            result_json(result, output, time_s=time.perf_counter() - start), *result_parts(result, output)
        )


def _open(model: str, output: Path, formats: str, *, keep: str | None, names: dict[str, str | None]) -> Any:
    """Check what can be checked at once, then load."""
    from laq.cli.loading import opened_network
    from laq.cli.paths import check_output
    from laq.core.formats import check_range
    from laq.io.archive import ARCHIVE_FOLDER

    check_output(output, ARCHIVE_FOLDER)
    range, quantizer = str(names["range"]), str(names["quantizer"])
    check_range(range, formats)
    return opened_network(model, keep=keep, quantizer=quantizer, range=range, transform=names["transform"])


def result_json(result: Result, folder: Path, *, time_s: float) -> dict[str, Any]:
    """Return what was done and what it cost.

    Parameters
    ----------
    result : Result
        Evaluated and saved.
    folder : Path
        Where.
    time_s : float
        What it took.
    """
    from laq.cli.bits import bits_of_plan, histograms

    weights = bits_of_plan(result.plan)
    comparisons = [
        {
            "label": one.label,
            "size_bytes": one.plan.size_bytes,
            "predicted_loss_nats": one.plan.predicted_loss_nats,
            "selection": one.selection.to_json(),
            "test": one.test.to_json(),
        }
        for one in result.comparisons
    ]
    return {
        "folder": str(folder),
        "time_s": time_s,
        "verdict": result.verdict,
        "record": None if result.record is None else result.record.to_json(),
        "plan": result.plan.summary(),
        "comparisons": comparisons,
        "kept": [{"name": k.name, "shape": k.shape, "reason": k.reason} for k in result.network.kept],
        "provenance": dict(result.provenance),
        **histograms(weights),
    }


def result_parts(result: Result, folder: Path) -> list[RenderableType]:
    """Return the same for people."""
    from laq.cli.bits import bits_of_plan
    from laq.cli.tables import cost_table, mega, role_table

    weights = bits_of_plan(result.plan)
    rows = [(_label(result, one.label), one.test) for one in result.comparisons]
    return [
        cost_table(rows, title="what it costs, on text that was not used to choose"),
        role_table(weights, total_bytes=result.plan.size_bytes),
        _kept_in_float(result),
        _calibrated_on(result),
        result.verdict,
        f"saved {folder} ({mega(result.plan.size_bytes)} MB)",
    ]


def _kept_in_float(result: Result) -> str:
    kept = result.network.kept
    reasons = sorted({tensor.reason for tensor in kept})
    n = sum(tensor.n_elements for tensor in kept)
    return f"kept in float, and counted: {len(kept)} tensors of {n} weights ({'; '.join(reasons) or 'none'})"


def _calibrated_on(result: Result) -> str:
    source, n_tokens = (result.provenance[name] for name in ("data", "n_tokens"))
    asked = result.provenance["tokens_asked_for"]
    fewer = f", fewer than the {asked} asked for: the text has no more" if n_tokens < asked else ""
    return f"calibrated on {n_tokens} tokens of {source}{fewer}"


def _label(result: Result, label: str) -> str:
    kept = next((one.label for one in result.comparisons if one.test is result.record), "")
    return f"laq, {label}" if label == kept else label
