"""A matrix stored as a product code: runs of columns name entries of codebooks that all of it shares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from laq.core.permutation import IndexArray, inverse, is_permutation

N_ENTRIES = 256
"""Entries of a codebook: what one byte can name."""

MAX_LEVELS = 8


@dataclass(frozen=True, slots=True)
class ProductCode:
    """How a matrix is stored: each run of columns as the sum of one entry of every codebook.

    Parameters
    ----------
    width : int
        Columns of a run, 4 or 8.
    n_levels : int
        Codebooks; each is made for what those before it leave.

    Examples
    --------
    >>> ProductCode(8, 3).name, ProductCode(8, 3).code_bits
    ('product8x3', 3.0)
    """

    width: int
    n_levels: int

    @property
    def name(self) -> str:
        """How plans and reports call it."""
        return f"product{self.width}x{self.n_levels}"

    @property
    def code_bits(self) -> float:
        """Bits of the codes of a weight."""
        return 8 * self.n_levels / self.width


PRODUCT_CODES = (ProductCode(4, 1), ProductCode(8, 3), ProductCode(4, 2), ProductCode(4, 3))
"""What a plan chooses from: about 2, 3, 4 and 6 bits a weight."""


def product_code(name: str) -> ProductCode:
    """Return the code called `name`; raises ValueError if there can be none.

    Examples
    --------
    >>> product_code("product4x2")
    ProductCode(width=4, n_levels=2)
    """
    for width in (4, 8):
        for n_levels in range(1, MAX_LEVELS + 1):
            code = ProductCode(width, n_levels)
            if code.name == name:
                return code
    raise ValueError(f"no product code is called {name!r}")


@dataclass(frozen=True, slots=True)
class ProductTensor:
    """The stored sections of one matrix in a product code.

    Parameters
    ----------
    n_rows, n_columns : int
        Shape of the matrix.
    codes : uint8 [n_levels, n_rows, n_runs]
        Entry of each codebook for every run of columns; the last run may be padded.
    codebooks : float16 [n_levels, 256, width]
        Their entries.
    row_scales : float16 [n_rows]
        What the entries of a row are multiplied by.
    column_permutation : uint16 or uint32 [n_columns], or None
        Source column of each stored column; None if columns keep their order.
    """

    n_rows: int
    n_columns: int
    codes: npt.NDArray[np.uint8]
    codebooks: npt.NDArray[np.float16]
    row_scales: npt.NDArray[np.float16]
    column_permutation: IndexArray | None

    def sections(self) -> dict[str, npt.NDArray[Any]]:
        """Return the stored arrays by section name, in the order of the checksum."""
        own: dict[str, npt.NDArray[Any]] = {
            "product_codes": self.codes,
            "product_codebooks": self.codebooks,
            "product_scales": self.row_scales,
        }
        order = self.column_permutation
        return own if order is None else own | {"column_permutation": order}

    @property
    def size_bytes(self) -> int:
        """Bytes of all sections."""
        return sum(int(array.nbytes) for array in self.sections().values())

    def dequantize(self) -> npt.NDArray[np.float32]:
        """Return the matrix in the source's order of columns; float32 [n_rows, n_columns]."""
        books = self.codebooks.astype(np.float32)
        runs = books[0][self.codes[0]]
        for book, codes in zip(books[1:], self.codes[1:], strict=True):
            runs = runs + book[codes]  # in this order, so that every reader gets the same bits
        matrix = runs.reshape(self.n_rows, -1)[:, : self.n_columns]
        matrix = matrix * self.row_scales.astype(np.float32)[:, None]
        order = self.column_permutation
        return np.ascontiguousarray(matrix if order is None else matrix[:, inverse(order)])


def product_sections(
    n_rows: int, n_columns: int, code: ProductCode
) -> list[tuple[str, np.dtype[Any], tuple[int, ...]]]:
    """Return name, type and shape of what is stored, the shared column permutation left out."""
    n_runs = -(-n_columns // code.width)
    return [
        ("product_codes", np.dtype(np.uint8), (code.n_levels, n_rows, n_runs)),
        ("product_codebooks", np.dtype(np.float16), (code.n_levels, N_ENTRIES, code.width)),
        ("product_scales", np.dtype(np.float16), (n_rows,)),
    ]


def product_problems(tensor: ProductTensor, code: ProductCode) -> list[str]:
    """Say what is wrong with a matrix as read from a file."""
    found = tensor.sections()
    for name, _, shape in product_sections(tensor.n_rows, tensor.n_columns, code):
        if found[name].shape != shape:
            return [f"{name} has shape {found[name].shape}, expected {shape}"]
    if not (np.isfinite(tensor.codebooks).all() and np.isfinite(tensor.row_scales).all()):
        return ["codebooks or scales are not finite"]
    order = tensor.column_permutation
    if order is not None and (len(order) != tensor.n_columns or not is_permutation(order)):
        return [f"column permutation does not hold each of {tensor.n_columns} indices once"]
    return []
