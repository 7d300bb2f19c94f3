"""Tables that several commands print."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from laq.cli.bits import Bits, bar_of, by_depth, by_format, by_role, symbol_of
from laq.core.record import nats_text

if TYPE_CHECKING:
    from rich.table import Table

    from laq.core.record import Record

BAR_WIDTH = 28


def table_of(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """Return a table; columns whose head starts with ">" are flush right.

    Parameters
    ----------
    title : str
        Line above it.
    columns : sequence of str
        Heads.
    rows : iterable of sequence of str
        Cells.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    for head in columns:
        right = head.startswith(">")
        table.add_column(head.removeprefix(">"), justify="right" if right else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def cost_table(rows: Iterable[tuple[str, Record]], *, title: str) -> Table:
    """Return what quantized networks cost, the original first.

    Parameters
    ----------
    rows : iterable of (label, record)
        Measured on the same data against the same original.
    title : str
        Line above it.
    """
    found = list(rows)
    columns = ["", ">MB", ">bits/weight", ">KL, nats/token", ">perplexity", ">same top-1"]
    return table_of(title, columns, [_original_row(found[0][1]), *(_cost_row(*row) for row in found)])


def _original_row(record: Record) -> tuple[str, ...]:
    bpw = record.bpw * record.original_bytes / record.size_bytes
    return (
        "original",
        mega(record.original_bytes),
        f"{bpw:.2f}",
        "-",
        _number(record.perplexity_original),
        "-",
    )


def _cost_row(label: str, record: Record) -> tuple[str, ...]:
    error = "" if record.kl_stderr_nats is None else f" ± {nats_text(record.kl_stderr_nats)}"
    return (
        label,
        mega(record.size_bytes),
        f"{record.bpw:.2f}",
        f"{nats_text(record.kl_nats)}{error}",
        _number(record.perplexity),
        f"{100 * record.top1_agreement:.1f} %",
    )


def role_table(weights: Iterable[Bits], *, total_bytes: int) -> Table:
    """Return where the bits went by role; the rows add up to `total_bytes`."""
    return _bits_table("where the bits went, by role", by_role(weights), total_bytes=total_bytes)


def depth_table(weights: Sequence[Bits]) -> Table:
    """Return where the bits went by thirds of the depth."""
    return _bits_table("where the bits went, by depth", by_depth(weights), total_bytes=None)


def format_table(weights: Iterable[Bits]) -> Table:
    """Return the number of tiles of each format."""
    tiles = by_format(weights)
    total = sum(tiles.values())
    rows = [(name, symbol_of(name), str(n), f"{100 * n / total:.1f} %") for name, n in tiles.items()]
    return table_of("tiles by format", ["format", "in bars", ">tiles", ">share"], rows)


def _bits_table(title: str, groups: Sequence[Bits], *, total_bytes: int | None) -> Table:
    rows = [
        (
            g.name,
            f"{g.n_params / 1e6:.2f}",
            f"{g.bpw:.2f}",
            mega(g.size_bytes),
            bar_of(g.tiles, width=BAR_WIDTH),
        )
        for g in groups
    ]
    if total_bytes is not None:
        rest = total_bytes - sum(group.size_bytes for group in groups)
        rows.append(("the rest", "", "", mega(rest), "kept tensors, tables, other files"))
        rows.append(("all", "", "", mega(total_bytes), ""))
    return table_of(title, ["", ">weights, M", ">bits", ">MB", "tiles by width in bits"], rows)


def mega(size_bytes: int) -> str:
    """Return megabytes with two digits; three where there are few."""
    return f"{size_bytes / 1e6:.2f}" if size_bytes >= 10**6 else f"{size_bytes / 1e6:.3f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
