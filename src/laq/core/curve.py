"""Predicted loss of every tile at every candidate format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from laq.core.formats import CANDIDATES
from laq.core.groups import TileGrid
from laq.core.permutation import IndexArray, checked_permutation
from laq.core.product import ProductCode, product_code
from laq.core.scheme import ScaleFormat
from laq.core.storage import open_value, refusing, save_value

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
        Predicted rise of the loss per token; infinite where a format is not allowed or was not measured.
    row_permutation : uint16 or uint32 [n_rows], or None
        Source row of each sorted row; None if rows keep their order.
    column_order : str
        Key of the shared column permutation, empty if columns keep their order.
    rank : int
        Of the correction that is taken from the weight before its tiles are rounded; 0 if there is none.
    product : ProductCode or None
        In which the whole weight is stored; all tiles are then absent, and share its loss.
    """

    name: str
    grid: TileGrid
    loss_nats: npt.NDArray[np.float32]
    row_permutation: IndexArray | None
    column_order: str
    rank: int = 0
    product: ProductCode | None = None


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
    fixed_bytes : int
        Everything in the archive except what weights store: float tensors, column permutations, header,
        laq.json, the source's config and tokenizer files.
    original_bytes : int
        Bytes of the source's tensors.
    n_params : int
        Weights of the whole network, tied ones once; the denominator of bits per weight.
    source_hash, data_hash : str
        sha256 of the network and of the calibration tokens.
    alternatives : tuple of WeightCurves
        The same weights with corrections of other ranks, for a plan to choose among.
    low_rank : str
        What was asked for: a rank, or "auto"; see `laq.core.low_rank.ranks_of`.
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
    alternatives: tuple[WeightCurves, ...] = ()
    low_rank: str = "0"

    def save(self, path: Path | str) -> None:
        """Write a folder; see `open`."""
        arrays: dict[str, npt.NDArray[Any]] = {}
        for weight in (*self.weights, *self.alternatives):
            arrays[f"loss:{_key(weight.name, weight.rank, weight.product)}"] = weight.loss_nats
            if weight.row_permutation is not None:
                arrays[f"rows:{_key(weight.name, weight.rank)}"] = weight.row_permutation
        arrays |= {f"columns:{key}": order for key, order in self.column_permutations.items()}
        header = {
            "weights": [_entry(weight) for weight in self.weights],
            "alternatives": [_entry(weight) for weight in self.alternatives],
            "column_permutations": list(self.column_permutations),
            "scale_format": self.scale_format.value,
            "quantizer": self.quantizer,
            "fixed_bytes": self.fixed_bytes,
            "original_bytes": self.original_bytes,
            "n_params": self.n_params,
            "source_hash": self.source_hash,
            "data_hash": self.data_hash,
            "low_rank": self.low_rank,
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
            names = ("quantizer", "fixed_bytes", "original_bytes", "n_params", "source_hash", "data_hash")
            return Curves(
                weights=tuple(_weight_curves(entry, arrays, columns) for entry in header["weights"]),
                alternatives=tuple(
                    _weight_curves(entry, arrays, columns) for entry in header.get("alternatives", [])
                ),
                column_permutations=columns,
                scale_format=ScaleFormat(header["scale_format"]),
                low_rank=str(header.get("low_rank", "0")),
                **{name: header[name] for name in names},
            )


def _key(name: str, rank: int, product: ProductCode | None = None) -> str:
    """Name of a curve's arrays."""
    if product is not None:
        return f"{name}, {product.name}"
    return f"{name}, rank {rank}" if rank else name


def _entry(weight: WeightCurves) -> list[Any]:
    grid = weight.grid
    how = weight.rank if weight.product is None else weight.product.name
    return [weight.name, grid.n_rows, grid.n_columns, grid.group_size, weight.column_order, how]


def _weight_curves(
    entry: list[Any], arrays: Mapping[str, npt.NDArray[Any]], columns: Mapping[str, npt.NDArray[Any]]
) -> WeightCurves:
    name, n_rows, n_columns, group_size, order, *rest = entry
    (how,) = rest or [0]  # measured before corrections were there
    product = product_code(how) if isinstance(how, str) else None
    rank = how if product is None else 0
    grid, losses, rows = (
        TileGrid(n_rows, n_columns, group_size),
        arrays[f"loss:{_key(name, rank, product)}"],
        arrays.get(f"rows:{_key(name, rank)}") if product is None else None,
    )
    expected = (len(CANDIDATES), grid.n_row_blocks, grid.n_groups)
    if losses.shape in [(n, *expected[1:]) for n in FORMER_CANDIDATES]:
        missing = np.full((len(CANDIDATES) - len(losses), *losses.shape[1:]), np.inf, np.float32)
        losses = np.concatenate([losses, missing])
    if losses.shape != expected:
        raise ValueError(f"{name}: losses have shape {losses.shape}, expected {expected}")
    if order:
        checked_permutation(columns[order], n_columns)
    if type(rank) is not int or not 0 <= rank <= min(n_rows, n_columns):
        raise ValueError(f"{name}: rank {rank!r}")
    return WeightCurves(
        name, grid, losses, None if rows is None else checked_permutation(rows, n_rows), order, rank, product
    )
