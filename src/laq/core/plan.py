"""What was decided: one candidate format for every tile of every weight."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from laq.core.correction import Amount, Kind, amount_from_json
from laq.core.errors import FormatError
from laq.core.formats import CANDIDATES, FIRST_RANGE
from laq.core.groups import DEFAULT_GROUP_SIZE, GROUP_SIZES, TileGrid
from laq.core.packing import SectionSpec, section_specs
from laq.core.permutation import IndexArray, checked_permutation
from laq.core.product import ProductCode, product_code, product_sections
from laq.core.scale_units import ScalePer
from laq.core.scheme import ScaleFormat
from laq.core.storage import MALFORMED, checked_names, write_text_atomic
from laq.core.target import Unit

PLAN_VERSIONS = (1, 2, 3)
"""The second has corrections of low rank, the third outliers, group sizes that differ, and shared scales."""


@dataclass(frozen=True, slots=True)
class WeightPlan:
    """The decision for one weight.

    Parameters
    ----------
    name : str
        The weight.
    grid : TileGrid
        Shape and group size.
    choices : uint8 [n_row_blocks, n_groups]
        Candidate format of every tile of the sorted matrix.
    row_permutation : uint16 or uint32 [n_rows], or None
        Source row of each stored row; None if rows keep their order.
    column_order : str
        Key of the shared column permutation, empty if columns keep their order.
    amount : Amount or None
        Of the correction that is added to the tiles.
    product : ProductCode or None
        In which the whole weight is stored in place of tiles.
    """

    name: str
    grid: TileGrid
    choices: npt.NDArray[np.uint8]
    row_permutation: IndexArray | None
    column_order: str
    amount: Amount | None = None
    product: ProductCode | None = None

    def histogram(self) -> dict[str, int]:
        """Return the number of tiles of each format, empty ones left out."""
        if self.product is not None:
            return {}
        counts = np.bincount(self.choices.ravel(), minlength=len(CANDIDATES))
        return {c.name: int(n) for c, n in zip(CANDIDATES, counts, strict=True) if n}

    def size_bytes(self, scale_format: ScaleFormat, scale_per: ScalePer = ScalePer.GROUP) -> int:
        """Return the bytes this weight will take, the shared column permutation left out."""
        if self.product is not None:
            sections = product_sections(self.grid.n_rows, self.grid.n_columns, self.product)
            return sum(SectionSpec(*section).size_bytes for section in sections)
        has_rows = self.row_permutation is not None
        specs = section_specs(
            self.grid,
            scale_format,
            self.choices,
            has_row_permutation=has_rows,
            amount=self.amount,
            scale_per=scale_per,
        )
        return sum(spec.size_bytes for spec in specs)


@dataclass(frozen=True, slots=True)
class Plan:
    """The decision for a whole network.

    Parameters
    ----------
    weights : tuple of WeightPlan
        In the network's order.
    column_permutations : mapping
        Column permutations by key.
    unit : Unit
        What shared one decision.
    scale_format : ScaleFormat
        How scales are stored.
    quantizer : str
        Method that will choose codes and scales.
    transforms : tuple of str
        What the network goes through before.
    budget_bytes : int
        What was allowed.
    size_bytes : int
        What the archive will take, everything counted.
    n_params : int
        Denominator of bits per weight.
    predicted_loss_nats : float
        Sum of the tiles' predicted losses; with gains, the predicted KL of the whole network.
    source_hash : str
        The network that this plan was made for.
    range : str
        Method that will choose scales and zero points of integers.
    group_size : int
        Columns that share a scale where transforms search; weights have their own.
    scale_per : ScalePer
        What scales serve.
    """

    weights: tuple[WeightPlan, ...]
    column_permutations: Mapping[str, IndexArray]
    unit: Unit
    scale_format: ScaleFormat
    quantizer: str
    budget_bytes: int
    size_bytes: int
    n_params: int
    predicted_loss_nats: float
    source_hash: str
    range: str = FIRST_RANGE
    transforms: tuple[str, ...] = ()
    group_size: int = DEFAULT_GROUP_SIZE
    scale_per: ScalePer = ScalePer.GROUP

    @property
    def bpw(self) -> float:
        """Average bits per weight, everything counted."""
        return 8 * self.size_bytes / self.n_params

    @property
    def _version(self) -> int:
        """The first version that knows all of it."""
        kinds = {weight.amount.kind for weight in self.weights if weight.amount}
        sizes = {weight.grid.group_size for weight in self.weights}
        if Kind.OUTLIERS in kinds or len(sizes) > 1 or self.scale_per is not ScalePer.GROUP:
            return 3
        return 2 if kinds or any(weight.product for weight in self.weights) else 1

    def save(self, path: Path | str) -> None:
        """Write one JSON file, one line a weight."""
        lines = [json.dumps(_weight_json(weight), sort_keys=True) for weight in self.weights]
        head = {
            "kind": "plan",
            "version": self._version,
            **self.summary(),
            "column_permutations": {key: _encode(order) for key, order in self.column_permutations.items()},
        }
        text = json.dumps(head)[:-1] + ', "weights": [\n' + ",\n".join(lines) + "\n]}\n"
        write_text_atomic(Path(path), text)

    def summary(self) -> dict[str, Any]:
        """Return everything but the arrays, ready for JSON."""
        return {
            "unit": self.unit.value,
            "scale_format": self.scale_format.value,
            "quantizer": self.quantizer,
            "range": self.range,
            "budget_bytes": self.budget_bytes,
            "size_bytes": self.size_bytes,
            "n_params": self.n_params,
            "predicted_loss_nats": float(f"{self.predicted_loss_nats:.6g}"),
            "source_hash": self.source_hash,
            "transforms": list(self.transforms),
            "group_size": self.group_size,
            **({} if self.scale_per is ScalePer.GROUP else {"scale_per": self.scale_per.value}),
        }

    @staticmethod
    def open(path: Path | str) -> Plan:
        """Read a JSON file that `save` wrote.

        Raises
        ------
        FormatError
            If the file is missing, damaged or not a plan.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            if content["kind"] != "plan" or content["version"] not in PLAN_VERSIONS:
                raise ValueError(f"kind {content['kind']!r}, version {content['version']!r}")
            return _plan_from_json(content)
        except (*MALFORMED, zlib.error) as error:
            raise FormatError(f"{path}: not a plan ({error})", hint="write one with `laq plan`") from error


def _plan_from_json(content: dict[str, Any]) -> Plan:
    names = ("quantizer", "budget_bytes", "size_bytes", "n_params", "predicted_loss_nats", "source_hash")
    columns = {key: _decode(text) for key, text in content["column_permutations"].items()}
    weights = tuple(_weight_from_json(weight, columns) for weight in content["weights"])
    group_size = content["group_size"] if "group_size" in content else weights[0].grid.group_size
    if group_size not in GROUP_SIZES:
        raise ValueError(f"group size {group_size!r}")
    return Plan(
        weights=weights,
        column_permutations={key: checked_permutation(order, len(order)) for key, order in columns.items()},
        unit=Unit(content["unit"]),
        scale_format=ScaleFormat(content["scale_format"]),
        range=content.get("range", FIRST_RANGE),
        transforms=checked_names(content.get("transforms", [])),
        group_size=group_size,
        scale_per=ScalePer(content.get("scale_per", ScalePer.GROUP.value)),
        **{name: content[name] for name in names},
    )


def _weight_json(weight: WeightPlan) -> dict[str, Any]:
    grid = weight.grid
    return {
        "name": weight.name,
        "shape": [grid.n_rows, grid.n_columns],
        "group_size": grid.group_size,
        "tiles": weight.histogram(),
        "choices": _encode(weight.choices.ravel()),
        "row_permutation": None if weight.row_permutation is None else _encode(weight.row_permutation),
        "column_order": weight.column_order,
        **(weight.amount.to_json() if weight.amount else {}),
        **({"product": weight.product.name} if weight.product else {}),
    }


def _weight_from_json(content: dict[str, Any], columns: Mapping[str, npt.NDArray[Any]]) -> WeightPlan:
    n_rows, n_columns = content["shape"]
    grid = TileGrid(n_rows, n_columns, content["group_size"])
    choices = _decode(content["choices"]).reshape(grid.n_row_blocks, grid.n_groups)
    if choices.dtype != np.uint8 or int(choices.max(initial=0)) >= len(CANDIDATES):
        raise ValueError(f"{content['name']}: unknown format {int(choices.max())}")
    rows, order = content["row_permutation"], content["column_order"]
    row_permutation = None if rows is None else checked_permutation(_decode(rows), n_rows)
    if order:
        checked_permutation(columns[order], n_columns)
    amount = amount_from_json(content, (n_rows, n_columns))
    product = product_code(content["product"]) if "product" in content else None
    return WeightPlan(content["name"], grid, choices, row_permutation, order, amount, product)


def _encode(array: npt.NDArray[Any]) -> str:
    packed = base64.b64encode(zlib.compress(np.ascontiguousarray(array).tobytes(), 6)).decode("ascii")
    return f"{array.dtype.str}:{packed}"


def _decode(text: str) -> npt.NDArray[Any]:
    dtype, _, packed = text.partition(":")
    if dtype not in ("|u1", "<u2", "<u4"):
        raise ValueError(f"unexpected array type {dtype!r}")
    return np.frombuffer(zlib.decompress(base64.b64decode(packed)), np.dtype(dtype))
