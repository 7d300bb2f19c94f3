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
    """

    name: str
    grid: TileGrid
    loss_nats: npt.NDArray[np.float32]
    row_permutation: IndexArray | None
    column_order: str


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

    def save(self, path: Path | str) -> None:
        """Write a folder; see `open`."""
        arrays: dict[str, npt.NDArray[Any]] = {}
        for weight in self.weights:
            arrays[f"loss:{weight.name}"] = weight.loss_nats
            if weight.row_permutation is not None:
                arrays[f"rows:{weight.name}"] = weight.row_permutation
        arrays |= {f"columns:{key}": order for key, order in self.column_permutations.items()}
        header = {
            "weights": [
                [w.name, w.grid.n_rows, w.grid.n_columns, w.grid.group_size, w.column_order]
                for w in self.weights
            ],
            "column_permutations": list(self.column_permutations),
            "scale_format": self.scale_format.value,
            "quantizer": self.quantizer,
            "fixed_bytes": self.fixed_bytes,
            "original_bytes": self.original_bytes,
            "n_params": self.n_params,
            "source_hash": self.source_hash,
            "data_hash": self.data_hash,
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
                column_permutations=columns,
                scale_format=ScaleFormat(header["scale_format"]),
                **{name: header[name] for name in names},
            )


def _weight_curves(
    entry: list[Any], arrays: Mapping[str, npt.NDArray[Any]], columns: Mapping[str, npt.NDArray[Any]]
) -> WeightCurves:
    name, n_rows, n_columns, group_size, order = entry
    grid, losses, rows = (
        TileGrid(n_rows, n_columns, group_size),
        arrays[f"loss:{name}"],
        arrays.get(f"rows:{name}"),
    )
    expected = (len(CANDIDATES), grid.n_row_blocks, grid.n_groups)
    if losses.shape in [(n, *expected[1:]) for n in FORMER_CANDIDATES]:
        missing = np.full((len(CANDIDATES) - len(losses), *losses.shape[1:]), np.inf, np.float32)
        losses = np.concatenate([losses, missing])
    if losses.shape != expected:
        raise ValueError(f"{name}: losses have shape {losses.shape}, expected {expected}")
    if order:
        checked_permutation(columns[order], n_columns)
    return WeightCurves(
        name, grid, losses, None if rows is None else checked_permutation(rows, n_rows), order
    )
