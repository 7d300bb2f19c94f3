"""Outliers: single weights that are stored by themselves, in bytes of their own."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from laq.core.errors import RequestError

AUTO_SHARES = (0.0, 0.001, 0.003, 0.01)
"""Shares that a plan chooses from by itself."""

MAX_SHARE = 0.05
"""From there on more bits for all are cheaper."""

RUN = 256
"""Positions that share what lies above their low byte."""

EXPONENT_BIAS = 128
"""Stored exponent = that of the largest size + this bias, one byte."""

MIDDLE = 0.75
"""Between one half and one: which power of two is nearer."""

SMALLEST, LARGEST = -120, 127
"""Exponents of a largest size: those below the least are still normal numbers of bfloat16."""

NOTHING = 7
"""How far below the largest size an element is that counts for nothing."""


@dataclass(frozen=True, slots=True)
class Outliers:
    """A matrix of few elements, each a power of two with a sign.

    Tiles hold what they leave of a weight, so that four bits are enough.

    Parameters
    ----------
    n : int
        Number of elements.
    data : uint8 [1 + n + ceil(n / 2) + ceil((n + n_runs) / 8)]
        The exponent of the largest element, plus 128; the low byte of each position, row by row in the
        source's order; two elements a byte, the first one lower: three bits of how far the exponent is below,
        7 for an element of zero, one of sign; for each run of 256 positions as many ones as it has elements,
        then a zero, lowest bit first.
    """

    n: int
    data: npt.NDArray[np.uint8]

    @staticmethod
    def of(positions: npt.NDArray[np.int64], values: npt.NDArray[np.float32], n_elements: int) -> Outliers:
        """Round values of single elements.

        Parameters
        ----------
        positions : int64 [n]
            Row times number of columns plus column, rising.
        values : float32 [n]
            What the elements are near to.
        n_elements : int
            Rows times columns of the matrix.

        Examples
        --------
        >>> few = Outliers.of(np.array([1, 700]), np.float32([-3, 0.5]), 1000)
        >>> [part.tolist() for part in few.elements()]
        [[1, 700], [-4.0, 0.5]]
        """
        n = len(positions)
        mantissa, exponent = np.frexp(np.abs(values))
        nearest = np.where(mantissa > 0, exponent - (mantissa < MIDDLE), SMALLEST - NOTHING)
        first = min(int(nearest.max(initial=SMALLEST)), LARGEST)
        codes = np.clip(first - nearest, 0, NOTHING) | (values < 0) << 3
        codes = np.append(codes, np.zeros(n % 2, np.int64)).astype(np.uint8)
        bits = np.zeros(n + _n_runs(n_elements), np.uint8)
        bits[positions // RUN + np.arange(n)] = 1
        parts = (
            np.array([first + EXPONENT_BIAS], np.uint8),
            (positions % RUN).astype(np.uint8),
            codes[::2] | codes[1::2] << 4,
            np.packbits(bits, bitorder="little"),
        )
        return Outliers(n, np.concatenate(parts))

    def elements(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Return positions, int64 [n], and values, float32 [n]; the latter are bfloat16 numbers."""
        n, data = self.n, self.data
        ends = np.cumsum([1, n, -(-n // 2)])
        ones = np.flatnonzero(np.unpackbits(data[ends[2] :], bitorder="little"))
        positions = (ones - np.arange(len(ones))) * RUN + data[1 : ends[1]]
        pairs = data[ends[1] : ends[2]]
        codes = np.stack([pairs & 15, pairs >> 4], 1).ravel()[:n].astype(np.int64)
        below, is_negative = codes & 7, codes > 7
        exponents = (int(data[0]) - EXPONENT_BIAS - below).astype(np.int32)
        values = np.ldexp(np.where(below < NOTHING, np.float32(1), np.float32(0)), exponents)
        return positions, np.where(is_negative, -values, values)

    def dequantize(self, n_rows: int, n_columns: int) -> npt.NDArray[np.float32]:
        """Return the elements in a matrix of zeros; float32 [n_rows, n_columns]."""
        matrix = np.zeros(n_rows * n_columns, np.float32)
        positions, values = self.elements()
        matrix[positions] = values
        return matrix.reshape(n_rows, n_columns)

    def sections(self) -> dict[str, npt.NDArray[Any]]:
        """Return the stored array by section name."""
        return {"outliers": self.data}

    def problems(self, n_rows: int, n_columns: int) -> list[str]:
        """Say what is wrong with outliers as read from a file."""
        ((_, _, expected),) = outlier_sections(n_rows, n_columns, self.n)
        if self.data.shape != expected:
            return [f"outliers have shape {self.data.shape}, expected {expected}"]
        if self.data[0] < SMALLEST + EXPONENT_BIAS:
            return [f"outliers of a size below {SMALLEST}"]
        n_bits = self.n + _n_runs(n_rows * n_columns)
        bits = np.unpackbits(self.data[len(self.data) - -(-n_bits // 8) :], bitorder="little")
        if int(bits[:n_bits].sum()) != self.n or bits[n_bits - 1 :].any():
            return [f"runs do not hold {self.n} outliers"]
        positions, _ = self.elements()
        if (np.diff(positions) <= 0).any() or positions[-1] >= n_rows * n_columns:
            return [f"positions of outliers do not rise, or leave the matrix of {n_rows} x {n_columns}"]
        return []


def _n_runs(n_elements: int) -> int:
    return -(-n_elements // RUN)


def outlier_sections(n_rows: int, n_columns: int, n: int) -> list[tuple[str, np.dtype[Any], tuple[int, ...]]]:
    """Return name, type and shape of what `n` outliers store."""
    n_bits = n + _n_runs(n_rows * n_columns)
    return [("outliers", np.dtype(np.uint8), (1 + n + -(-n // 2) + -(-n_bits // 8),))]


def share_text(outliers: float | str) -> str:
    """Return a share, or "auto", as curves say it.

    Examples
    --------
    >>> share_text(0.0), share_text("0.0020"), share_text("auto")
    ('0', '0.002', 'auto')
    """
    return "auto" if outliers == "auto" else f"{float(outliers):g}"


def shares_of(outliers: float | str) -> tuple[float, ...]:
    """Return the shares to measure: one, or those that "auto" chooses from.

    Raises
    ------
    RequestError
        If it is neither.

    Examples
    --------
    >>> shares_of(0), shares_of("0.002"), shares_of("auto")
    ((0.0,), (0.002,), (0.0, 0.001, 0.003, 0.01))
    """
    if outliers == "auto":
        return AUTO_SHARES
    try:
        share = math.nan if isinstance(outliers, bool) else float(outliers)
    except (TypeError, ValueError):
        share = math.nan
    if not 0 <= share <= MAX_SHARE:
        raise RequestError(
            f"outliers {outliers!r} are no share of a weight",
            hint=f"choose a number up to {MAX_SHARE}, or auto",
        )
    return (share,)
