"""Predicted loss of every tile at every candidate format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from laq.core.correction import Amount, Kind, amount_from_json
from laq.core.formats import CANDIDATES, FIRST_RANGE
from laq.core.gains import Gains, weight_classes
from laq.core.groups import TileGrid
from laq.core.permutation import IndexArray, checked_permutation
from laq.core.product import ProductCode, product_code
from laq.core.scale_units import ScalePer
from laq.core.scheme import ScaleFormat, StoredAs
from laq.core.storage import checked_names, open_value, refusing, save_value
from laq.core.target import Unit

FORMER_CANDIDATES = (9, 15)
"""How many formats there were before trellises, and before tables: curves of then are read."""


@dataclass(frozen=True, slots=True)
class WeightCurves:
    """Curves of one weight.

    Parameters
    ----------
    name : str
        The weight.
    grid : TileGrid
        Shape and group size.
    loss_nats : float32 [n_candidates, n_row_blocks, n_groups]
        Predicted rise of the loss per token, or what stands for it under metrics without that unit; infinite
        where a format is not allowed or was not measured.
    row_permutation : uint16 or uint32 [n_rows], or None
        Source row of each sorted row; None if rows keep their order.
    column_order : str
        Key of the shared column permutation, empty if columns keep their order.
    amount : Amount or None
        Of the correction that is taken from the weight before its tiles are rounded.
    product : ProductCode or None
        In which the whole weight is stored; all tiles are then absent, and share its loss.
    """

    name: str
    grid: TileGrid
    loss_nats: npt.NDArray[np.float32]
    row_permutation: IndexArray | None
    column_order: str
    amount: Amount | None = None
    product: ProductCode | None = None

    @property
    def way(self) -> str:
        """How the weight is stored besides the formats of its tiles, in words; empty for tiles alone."""
        chosen = self.amount or self.product
        return "" if chosen is None else chosen.name


@dataclass(frozen=True, slots=True)
class Curves:
    """Curves of all weights of a network, and what the archive costs besides its tiles.

    Parameters
    ----------
    weights : tuple of WeightCurves
        In the network's order.
    column_permutations : mapping
        Column permutations by key; siblings share one.
    scale_format : ScaleFormat
        How scales are stored.
    quantizer : str
        Method whose error was measured.
    transforms : tuple of str
        What the network went through before; the curves are those of what came out.
    fixed_bytes : int
        Everything in the archive except what weights store: float tensors, column permutations, header,
        laq.json, the source's config and tokenizer files.
    original_bytes : int
        Bytes of the source's tensors.
    n_params : int
        Weights of the whole network, tied ones once; the denominator of bits per weight.
    source_hash, data_hash : str
        sha256 of the network and of the calibration tokens.
    range : str
        Method that chooses scales and zero points of integers.
    sensitivity : str
        Metric that the losses are, see `laq methods`.
    gains : Gains or None
        What brought the losses to the KL of the whole network; multiplied in already.
    alternatives : tuple of WeightCurves
        The same weights with other corrections or group sizes, for a plan to choose among.
    low_rank : str
        What was asked for: a rank, or "auto"; see `laq.core.low_rank.ranks_of`.
    outliers : str
        The same of their share, see `laq.core.outliers.shares_of`.
    scale_per : ScalePer
        What scales serve.
    """

    weights: tuple[WeightCurves, ...]
    column_permutations: Mapping[str, IndexArray]
    scale_format: ScaleFormat
    quantizer: str
    fixed_bytes: int
    original_bytes: int
    n_params: int
    source_hash: str
    data_hash: str
    range: str = FIRST_RANGE
    transforms: tuple[str, ...] = ()
    sensitivity: str = "fisher"
    gains: Gains | None = None
    alternatives: tuple[WeightCurves, ...] = ()
    low_rank: str = "0"
    outliers: str = "0"
    scale_per: ScalePer = ScalePer.GROUP

    @property
    def stored(self) -> StoredAs:
        """How tiles are stored."""
        sizes = dict.fromkeys(one.grid.group_size for one in (*self.weights, *self.alternatives))
        return StoredAs(tuple(sizes), self.scale_format, self.scale_per)

    def predict(self, sum_nats: float, unit: Unit) -> float:
        """Return the predicted KL of a network whose losses, chosen for each unit, add up to `sum_nats`."""
        return sum_nats if self.gains is None else self.gains.predict(sum_nats, unit)

    def with_gains(self, gains: Gains) -> Curves:
        """Return the same curves with the gains of their classes multiplied in."""
        classes = weight_classes(weight.name for weight in self.weights)

        def scaled(curves: tuple[WeightCurves, ...]) -> tuple[WeightCurves, ...]:
            factors = [np.float32(gains.classes[classes[one.name]]) for one in curves]
            return tuple(
                replace(one, loss_nats=one.loss_nats * factor)
                for one, factor in zip(curves, factors, strict=True)
            )

        return replace(
            self, weights=scaled(self.weights), alternatives=scaled(self.alternatives), gains=gains
        )

    def save(self, path: Path | str) -> None:
        """Write a folder; see `open`."""
        arrays: dict[str, npt.NDArray[Any]] = {}
        for weight in (*self.weights, *self.alternatives):
            key = _key(weight, self.weights[0].grid.group_size)
            arrays[f"loss:{key}"] = weight.loss_nats
            if weight.row_permutation is not None:
                arrays[f"rows:{key}"] = weight.row_permutation
        arrays |= {f"columns:{key}": order for key, order in self.column_permutations.items()}
        header = {
            "weights": [_entry(weight) for weight in self.weights],
            "alternatives": [_entry(weight) for weight in self.alternatives],
            "column_permutations": list(self.column_permutations),
            "scale_format": self.scale_format.value,
            "quantizer": self.quantizer,
            "range": self.range,
            "fixed_bytes": self.fixed_bytes,
            "original_bytes": self.original_bytes,
            "n_params": self.n_params,
            "source_hash": self.source_hash,
            "data_hash": self.data_hash,
            "transforms": list(self.transforms),
            "sensitivity": self.sensitivity,
            "gains": None if self.gains is None else self.gains.to_json(),
            "low_rank": self.low_rank,
            "outliers": self.outliers,
            "scale_per": self.scale_per.value,
        }
        save_value(Path(path), "curves", header, arrays)

    @staticmethod
    def open(path: Path | str) -> Curves:
        """Read a folder that `save` wrote.

        Raises
        ------
        FormatError
            If the folder is missing, damaged or not curves.
        """
        header, arrays = open_value(Path(path), "curves")
        with refusing(Path(path), "curves"):
            columns = {key: arrays[f"columns:{key}"] for key in header["column_permutations"]}
            gains = header.get("gains")
            names = ("quantizer", "fixed_bytes", "original_bytes", "n_params", "source_hash", "data_hash")
            group_size = header["weights"][0][GROUP_SIZE]

            def read(entries: list[list[Any]]) -> tuple[WeightCurves, ...]:
                return tuple(_weight_curves(entry, arrays, columns, group_size) for entry in entries)

            return Curves(
                weights=read(header["weights"]),
                alternatives=read(header.get("alternatives", [])),
                column_permutations=columns,
                scale_format=ScaleFormat(header["scale_format"]),
                range=header.get("range", FIRST_RANGE),
                transforms=checked_names(header.get("transforms", [])),
                low_rank=str(header.get("low_rank", "0")),
                outliers=str(header.get("outliers", "0")),
                scale_per=ScalePer(header.get("scale_per", ScalePer.GROUP.value)),
                **{name: header[name] for name in names},
                sensitivity=str(header.get("sensitivity", "fisher")),  # the only one there was once
                gains=None if gains is None else Gains.from_json(gains),
            )


GROUP_SIZE = 3
"""Place in a weight's entry."""


def _key(weight: WeightCurves, group_size: int) -> str:
    """Name of a curve's arrays, where most have this group size."""
    of = weight.grid.group_size
    parts = (weight.name, weight.way, "" if of == group_size else f"groups of {of}")
    return ", ".join(filter(None, parts))


def _entry(weight: WeightCurves) -> list[Any]:
    grid = weight.grid
    how = weight.product.name if weight.product else weight.amount.to_json() if weight.amount else 0
    return [weight.name, grid.n_rows, grid.n_columns, grid.group_size, weight.column_order, how]


def _weight_curves(
    entry: list[Any],
    arrays: Mapping[str, npt.NDArray[Any]],
    columns: Mapping[str, npt.NDArray[Any]],
    group_size: int,
) -> WeightCurves:
    name, n_rows, n_columns, own_size, order, *rest = entry
    (how,) = rest or [0]  # measured before corrections were there
    product = product_code(how) if isinstance(how, str) else None
    if product or how == 0:
        how = {}
    elif not isinstance(how, dict):
        how = {Kind.RANK.value: how}  # measured before there were others
    weight = WeightCurves(
        name,
        TileGrid(n_rows, n_columns, own_size),
        np.empty((0, 0, 0), np.float32),
        None,
        order,
        amount_from_json(how, (n_rows, n_columns)),
        product,
    )
    key = _key(weight, group_size)
    rows = arrays.get(f"rows:{key}")
    if order:
        checked_permutation(columns[order], n_columns)
    return replace(
        weight,
        loss_nats=_checked_losses(weight, arrays[f"loss:{key}"]),
        row_permutation=None if rows is None else checked_permutation(rows, n_rows),
    )


def _checked_losses(weight: WeightCurves, losses: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Return losses of all formats that there are now; others than those measured then are not known."""
    expected = (len(CANDIDATES), weight.grid.n_row_blocks, weight.grid.n_groups)
    if losses.shape in [(n, *expected[1:]) for n in FORMER_CANDIDATES]:
        missing = np.full((len(CANDIDATES) - len(losses), *losses.shape[1:]), np.inf, np.float32)
        losses = np.concatenate([losses, missing])
    if losses.shape != expected:
        raise ValueError(f"{weight.name}: losses have shape {losses.shape}, expected {expected}")
    return losses
