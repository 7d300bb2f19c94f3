"""Where the bits went: sizes and tile widths by role, depth and format."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from laq.core.formats import CANDIDATES
from laq.core.formats.integer import TERNARY

if TYPE_CHECKING:
    from laq.core.plan import Plan
    from laq.io.archive import Archive

OUTSIDE = "outside blocks"
THIRDS = ("first third", "middle third", "last third")
NARROW_FIRST = sorted(CANDIDATES, key=lambda candidate: candidate.n_levels)
SYMBOLS = {one.name: "t" if one.n_levels == TERNARY.n_levels else str(one.code_bits) for one in CANDIDATES}
"""One character a format in bars."""


@dataclass(frozen=True, slots=True)
class Bits:
    """What one weight, or several, take.

    Parameters
    ----------
    name : str
        The weight, or what several have in common.
    shape : tuple of int
        [n_rows, n_columns]; of no meaning for several.
    n_params : int
        Elements.
    size_bytes : int
        Codes, scales, zero points and tables; shared column permutations left out.
    tiles : mapping
        Number of tiles of each format.
    """

    name: str
    shape: tuple[int, ...]
    n_params: int
    size_bytes: int
    tiles: Mapping[str, int]

    @property
    def bpw(self) -> float:
        """Average bits per weight."""
        return 8 * self.size_bytes / self.n_params

    def to_json(self) -> dict[str, Any]:
        """Return the fields that hold for one weight and for several."""
        fields = {"n_params": self.n_params, "size_bytes": self.size_bytes, "bpw": self.bpw}
        return {**fields, "tiles": dict(self.tiles)}


def bits_of_plan(plan: Plan) -> list[Bits]:
    """Return what each weight of a plan will take."""
    return [
        Bits(
            name=weight.name,
            shape=(weight.grid.n_rows, weight.grid.n_columns),
            n_params=weight.grid.n_rows * weight.grid.n_columns,
            size_bytes=weight.size_bytes(plan.scale_format, plan.scale_per),
            tiles=weight.histogram(),
        )
        for weight in plan.weights
    ]


def bits_of_archive(archive: Archive) -> list[Bits]:
    """Return what each weight of an archive takes, from its headers."""
    sizes: Counter[str] = Counter()
    for key, tensor in archive.tensors.items():
        sizes[key.rpartition(".")[0]] += tensor.data.nbytes
    return [
        Bits(
            name=entry.name,
            shape=entry.shape,
            n_params=entry.shape[0] * entry.shape[1],
            size_bytes=sizes[entry.name],
            tiles=entry.tiles,
        )
        for entry in archive.manifest.weights
    ]


def by_role(weights: Iterable[Bits]) -> list[Bits]:
    """Add up weights of one role: the last component of the name, such as q_proj."""
    return _grouped(weights, role_of)


def by_depth(weights: Sequence[Bits]) -> list[Bits]:
    """Add up weights by thirds of the depth."""
    depths = [depth for depth in (_block_of(weight.name) for weight in weights) if depth is not None]
    n_blocks = max(depths, default=0) + 1

    def third(name: str) -> str:
        block = _block_of(name)
        return OUTSIDE if block is None else THIRDS[3 * block // n_blocks]

    found = _grouped(weights, third)
    return sorted(found, key=lambda bits: [*THIRDS, OUTSIDE].index(bits.name))


def by_format(weights: Iterable[Bits]) -> dict[str, int]:
    """Return the number of tiles of each format, narrow ones first."""
    tiles = _sum_tiles(weights)
    return {candidate.name: tiles[candidate.name] for candidate in NARROW_FIRST if tiles[candidate.name]}


def histograms(weights: Sequence[Bits]) -> dict[str, Any]:
    """Return tiles by format, and sizes by role and depth, ready for JSON."""
    return {
        "tiles": by_format(weights),
        "roles": {bits.name: bits.to_json() for bits in by_role(weights)},
        "depth": {bits.name: bits.to_json() for bits in by_depth(weights)},
    }


def role_of(name: str) -> str:
    """Return the last component of a weight's name.

    Examples
    --------
    >>> role_of("model.layers.3.self_attn.q_proj.weight")
    'q_proj'
    """
    parts = name.removesuffix(".weight").split(".")
    named = [part for part in parts if not part.isdigit()]
    return (named or parts)[-1]


def bar_of(tiles: Mapping[str, int], *, width: int) -> str:
    """Return the shares of formats as a run of `width` characters, one symbol a format.

    Examples
    --------
    >>> bar_of({"int3": 1, "int4": 2, "ternary": 1}, width=8)
    'tt334444'
    """
    total = sum(tiles.values())
    if not total:
        return ""
    names = [candidate.name for candidate in NARROW_FIRST if tiles.get(candidate.name)]
    # rounding the running sum keeps the width exact
    ends = [round(width * sum(tiles[other] for other in names[: i + 1]) / total) for i in range(len(names))]
    starts = [0, *ends[:-1]]
    return "".join(
        symbol_of(name) * (end - start) for name, start, end in zip(names, starts, ends, strict=True)
    )


def symbol_of(name: str) -> str:
    """Return the character that stands for a format in bars: the width, or `t` for three values.

    Examples
    --------
    >>> [symbol_of(name) for name in ("absent", "trits", "nf4", "residual45")]
    ['0', 't', '4', '2']
    """
    return SYMBOLS[name]


def _block_of(name: str) -> int | None:
    match = re.search(r"(?:^|\.)(\d+)(?:\.|$)", name)
    return None if match is None else int(match[1])


def _grouped(weights: Iterable[Bits], key: Callable[[str], str]) -> list[Bits]:
    groups: dict[str, list[Bits]] = {}
    for weight in weights:
        groups.setdefault(key(weight.name), []).append(weight)
    return [
        Bits(
            name=name,
            shape=(),
            n_params=sum(one.n_params for one in group),
            size_bytes=sum(one.size_bytes for one in group),
            tiles=_sum_tiles(group),
        )
        for name, group in groups.items()
    ]


def _sum_tiles(weights: Iterable[Bits]) -> Counter[str]:
    tiles: Counter[str] = Counter()
    for weight in weights:
        tiles.update(weight.tiles)
    return tiles
