"""laq plan: from a measurement and a budget to a plan, in seconds and without torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from laq.cli.options import (
    AllocatorName,
    AsJson,
    Bpw,
    ControlName,
    Debug,
    FormatNames,
    Quiet,
    Seed,
    Size,
    check_allocator,
    check_formats,
    check_limits,
)
from laq.cli.output import running
from laq.core.budget import bpw_to_bytes, parse_size
from laq.core.target import Unit

if TYPE_CHECKING:
    from laq.core.curve import Curves
    from laq.core.plan import Plan

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder that `laq measure` wrote.")]
UnitName = Annotated[Unit, typer.Option("--unit", help="What shares one decision.")]
Out = Annotated[
    Path | None, typer.Option("-o", "--output", metavar="PLAN.json", help="File to write the plan to.")
]


def plan(
    folder: Folder,
    bpw: Bpw = None,
    size: Size = None,
    unit: UnitName = Unit.TILE,
    allocator: AllocatorName = "lagrange",
    formats: FormatNames = "all",
    control: ControlName = None,
    seed: Seed = 0,
    output: Out = None,
    as_json: AsJson = False,
    debug: Debug = False,
    quiet: Quiet = False,
) -> None:
    """Spend a budget on what was measured.

    Takes seconds, and shows where the bits go.
    Give exactly one of --bpw and --size.
    """
    with running(debug=debug, as_json=as_json, quiet=quiet) as out:
        check_limits(bpw=bpw, size=size, names="--bpw and --size")
        check_allocator(allocator)
        check_formats(formats)
        from laq.cli.bits import bits_of_plan
        from laq.cli.tables import depth_table, format_table, role_table
        from laq.core.curve import Curves

        if output is not None:
            _check_output(output)
        curves = Curves.open(folder / "curves")
        budget = bpw_to_bytes(bpw, curves.n_params) if bpw is not None else parse_size(size or "")
        found = _allocate(
            curves,
            budget,
            unit=unit,
            allocator=allocator,
            formats=formats,
            control=None if control is None else control.value,
            seed=seed,
        )
        if output is not None:
            found.save(output)
        weights = bits_of_plan(found)
        out.show(
            plan_json(found) | {"file": None if output is None else str(output)},
            _headline(found),
            format_table(weights),
            depth_table(weights),
            role_table(weights, total_bytes=found.size_bytes),
            *([] if output is None else [f"saved {output}"]),
        )


def _allocate(
    curves: Curves,
    budget_bytes: int,
    *,
    unit: Unit,
    allocator: str,
    formats: str,
    control: str | None,
    seed: int,
) -> Plan:
    """Formats below two bits are used where the budget leaves no choice, as in `laq quantize`."""
    from laq.allocation.common import allocate, size_range

    smallest, _ = size_range(curves, unit=unit, formats=formats, floor=True)
    floor = budget_bytes >= smallest
    return allocate(
        curves,
        budget_bytes,
        unit=unit,
        allocator=allocator,
        formats=formats,
        control=control,
        floor=floor,
        seed=seed,
    )


def _check_output(file: Path) -> None:
    """Refuse to write over anything that is not a plan."""
    from laq.core.errors import FormatError, RequestError
    from laq.core.plan import Plan

    if not file.exists():
        return
    try:
        Plan.open(file)
    except FormatError as error:
        raise RequestError(
            f"{file}: exists and is not a plan", hint="choose another file, or move it away yourself"
        ) from error


def plan_json(found: Plan) -> dict[str, Any]:
    """Return the plan's summary and where its bits go."""
    from laq.cli.bits import bits_of_plan, histograms

    return {
        **found.summary(),
        "bpw": found.bpw,
        **histograms(bits_of_plan(found)),
    }


def _headline(found: Plan) -> str:
    from laq.cli.tables import mega

    return (
        f"{mega(found.size_bytes)} MB of {mega(found.budget_bytes)} MB allowed, {found.bpw:.3f} bits per "
        f"weight, predicted loss {found.predicted_loss_nats:.4g} nats per token, "
        f"one decision a {found.unit.value}\n"
    )
