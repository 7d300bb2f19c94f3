"""laq.json: what an archive holds, how it was made and what it costs."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from laq.core.correction import Amount, Kind, amount_from_json
from laq.core.errors import FormatError
from laq.core.formats import FAMILIES
from laq.core.groups import GROUP_SIZES, TileGrid
from laq.core.product import product_code
from laq.core.scale_units import ScalePer
from laq.core.scheme import ScaleFormat
from laq.core.storage import MALFORMED

MANIFEST = "laq.json"
ARCHIVE_VERSIONS = (1, 2, 3, 4)
"""Those that are read; docs/FORMAT.md says what each adds."""

OPTIONAL = {"rank": 3, "product": 3, "outliers": 4}
"""Keys of a weight that are left away where they say nothing, and the version since which they are known."""

SHARD_NAME = re.compile(r"[\w-][\w.-]*")
COUNT_RESERVE = 11
"""Bytes of the number of a weight's tiles of one format beside its name: up to seven digits."""

ALWAYS_COUNTED = frozenset(candidate.name for candidate in FAMILIES["all"])
WEIGHT_RESERVE = 220 + sum(len(name) + COUNT_RESERVE for name in ALWAYS_COUNTED)
"""Bytes of a weight's line but for names, with the formats that plans use by default."""

PRODUCT_RESERVE = 32
"""Bytes of a product code's name in a weight's line."""

AMOUNT_RESERVE = 24
"""Bytes of how much of a correction there is in a weight's line."""

SUMMARY_RESERVE = 6144
"""Bytes kept in laq.json for the plan's summary, provenance and record, whose length is not known before."""


@dataclass(frozen=True, slots=True)
class WeightEntry:
    """What laq.json says of a packed weight.

    Parameters
    ----------
    name, kind, modules, dtype
        As in `laq.networks.WeightRef`.
    shape : [n_rows, n_columns]
        Before padding.
    group_size : int
        Columns that share a scale.
    column_order : str
        Tensor that holds the shared column permutation, empty if there is none.
    tiles : mapping
        Number of tiles of each format.
    sha256 : str
        Over the bytes of all its sections, in file order.
    rank : int
        Of its correction; 0, and not written, if there is none of low rank.
    outliers : int
        Their number; 0, and not written, if there are none.
    product : str
        Name of the product code of the whole weight; empty, and not written, if it has tiles.
    """

    name: str
    kind: str
    modules: tuple[str, ...]
    dtype: str
    shape: tuple[int, int]
    group_size: int
    column_order: str
    tiles: Mapping[str, int]
    sha256: str = ""
    rank: int = 0
    product: str = ""
    outliers: int = 0

    @property
    def grid(self) -> TileGrid:
        """Shape and group size."""
        return TileGrid(*self.shape, self.group_size)

    @property
    def amount(self) -> Amount | None:
        """Of its correction; raises ValueError if there can be no such."""
        said = {kind.value: getattr(self, kind.value) for kind in Kind}
        return amount_from_json({key: n for key, n in said.items() if n != 0}, self.shape)

    def to_json(self) -> dict[str, Any]:
        """Return what is written; nothing is said of a correction or product code that is not there."""
        return {key: value for key, value in asdict(self).items() if value or key not in OPTIONAL}


@dataclass(frozen=True, slots=True)
class Manifest:
    """Content of laq.json.

    Parameters
    ----------
    architecture : str
        "transformers", or "module" for a network given in memory.
    weights : tuple of WeightEntry
        Packed weights.
    kept : mapping of name to sha256
        Tensors stored as they were.
    column_permutations : mapping of name to sha256
        Shared orders of columns.
    scale_format : ScaleFormat
        How scales are stored.
    plan, provenance, record : mapping
        Summary of the plan; source hash, data hash, seed and versions; what evaluation measured.
    shards : tuple of str
        Files that hold the tensors.
    sidecars : tuple of str
        The source's config and tokenizer files beside them.
    scale_per : ScalePer
        What scales serve; not written where it is the group.
    """

    architecture: str
    weights: tuple[WeightEntry, ...]
    kept: Mapping[str, str]
    column_permutations: Mapping[str, str]
    scale_format: ScaleFormat
    plan: Mapping[str, Any]
    provenance: Mapping[str, Any]
    record: Mapping[str, Any]
    shards: tuple[str, ...] = ()
    sidecars: tuple[str, ...] = ()
    scale_per: ScalePer = ScalePer.GROUP

    @property
    def n_params(self) -> int:
        """Weights of the network, the denominator of bits per weight."""
        return int(self.plan["n_params"])


def manifest_reserve_bytes(manifest: Manifest) -> int:
    """Return the size to which laq.json is padded, so that an archive's size is known before its content."""
    weights = sum(
        weight_reserve_bytes(e) + len(e.name) + len(e.column_order) + sum(len(path) + 3 for path in e.modules)
        for e in manifest.weights
    )
    hashed = sum(len(name) + 72 for name in (*manifest.kept, *manifest.column_permutations))
    return SUMMARY_RESERVE + weights + hashed


def weight_reserve_bytes(entry: WeightEntry) -> int:
    """Return the most bytes of a weight's line but for names; further formats count where they are named."""
    others = sum(len(name) + COUNT_RESERVE for name in entry.tiles if name not in ALWAYS_COUNTED)
    return (
        WEIGHT_RESERVE
        + others
        + AMOUNT_RESERVE * (entry.amount is not None)
        + PRODUCT_RESERVE * bool(entry.product)
    )


def padded(text: str, manifest: Manifest) -> str:
    """Return laq.json's text at the size that was reserved for it."""
    return text.ljust(manifest_reserve_bytes(manifest) - 1) + "\n"


def read_manifest(folder: Path) -> Manifest:
    """Read laq.json.

    Raises
    ------
    FormatError
        If it is missing, of a later version, or damaged.
    """
    path = folder / MANIFEST
    if not folder.exists():
        raise FormatError(f"{folder}: no such folder", hint="make an archive with `laq quantize`")
    if not path.is_file():
        raise FormatError(
            f"{folder}: not a laq archive, {MANIFEST} is missing", hint="make one with `laq quantize`"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != "laq-archive":
            raise ValueError(f"format is {content['format']!r}")
        if content["version"] not in ARCHIVE_VERSIONS:
            raise FormatError(
                f"{path}: archive version {content['version']!r}, "
                f"this laq reads up to {ARCHIVE_VERSIONS[-1]}",
                hint="install a newer laq",
            )
        return _manifest_from_json(content)
    except MALFORMED as error:
        raise FormatError(f"{path}: damaged ({error})", hint="copy or quantize it again") from error


def _manifest_from_json(content: dict[str, Any]) -> Manifest:
    weights = tuple(_weight_entry(fields) for fields in content["weights"])
    if not weights:
        raise ValueError("no weights")
    said = {key for fields in content["weights"] for key in fields}
    for key, version in OPTIONAL.items():
        if key in said and content["version"] < version:
            raise ValueError(f"{key} in version {content['version']}")
    for what, names in (
        ("weight", [entry.name for entry in weights]),
        ("module", [path for entry in weights for path in entry.modules]),
    ):
        if len(set(names)) < len(names):
            raise ValueError(f"a {what} is named twice")
    if not all(SHARD_NAME.fullmatch(shard) for shard in content["shards"]):
        raise ValueError("shard outside of the folder")
    files: object = content.get("sidecars", [])
    if not isinstance(files, list) or not all(isinstance(name, str) and name for name in files):
        raise ValueError("sidecars are no list of names")
    sidecars = tuple(map(PurePosixPath, files))
    if any(name.is_absolute() or ".." in name.parts for name in sidecars):
        raise ValueError("file outside of the folder")
    return Manifest(
        architecture=str(content["architecture"]),
        weights=weights,
        kept=dict(content["kept"]),
        column_permutations=dict(content["column_permutations"]),
        scale_format=ScaleFormat(content["scale_format"]),
        plan={**content["plan"], "n_params": int(content["plan"]["n_params"])},
        provenance=dict(content["provenance"]),
        record=dict(content["record"]),
        shards=tuple(content["shards"]),
        sidecars=tuple(map(str, sidecars)),
        scale_per=ScalePer(content.get("scale_per", ScalePer.GROUP.value)),
    )


def _weight_entry(fields: dict[str, Any]) -> WeightEntry:
    entry = WeightEntry(**{**fields, "shape": _pair(fields["shape"]), "modules": tuple(fields["modules"])})
    texts = (entry.name, entry.kind, entry.dtype, entry.column_order, entry.sha256, *entry.modules)
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{entry.name}: holds something else where text is expected")
    counts: list[object] = list(entry.tiles.values())
    if not all(type(count) is int for count in counts):
        raise ValueError(f"{entry.name}: numbers of tiles are not whole")
    sizes = (*entry.shape, entry.group_size)
    if entry.group_size not in GROUP_SIZES or not all(_is_size(n) for n in sizes):
        raise ValueError(f"{entry.name}: shape {entry.shape}, group size {entry.group_size}")
    try:
        amount = entry.amount
    except ValueError as error:
        raise ValueError(f"{entry.name}: {error}") from error
    if entry.product:
        product_code(entry.product)
        if amount:
            raise ValueError(f"{entry.name}: a correction of a product code")
    if amount and entry.kind != "linear":
        raise ValueError(f"{entry.name}: a correction of a weight that is {entry.kind!r}")
    return entry


def _pair(values: list[int]) -> tuple[int, int]:
    first, second = values
    return first, second


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 32
