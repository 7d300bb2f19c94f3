"""A correction of low rank: what is added to a packed matrix, in bytes of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from laq.core.errors import RequestError

AUTO_RANKS = (0, 1, 2, 4)
"""Ranks that a plan chooses from by itself."""

MAX_RANK = 256
LARGEST = 127
"""Largest factor that is written; symmetric, so that a sign costs nothing."""

MIN_SCALE, MAX_SCALE = 2.0**-24, 65504.0
"""What float16 holds."""


@dataclass(frozen=True, slots=True)
class LowRank:
    """The matrix sum over k of (t_k a_k) (t_k b_k)', with whole numbers a_k and b_k of 8 bits.

    Parameters
    ----------
    factors : int8 [rank, n_rows + n_columns]
        a_k, a number for each row, then b_k, a number for each column; both in the source's order.
    scales : float16 [rank]
        t_k: one for both, as they are balanced before they are rounded.
    """

    factors: npt.NDArray[np.int8]
    scales: npt.NDArray[np.float16]

    @staticmethod
    def of(rows: npt.NDArray[np.float32], columns: npt.NDArray[np.float32]) -> LowRank:
        """Round rows @ columns to 8 bits.

        rows : float32 [n_rows, rank]        columns : float32 [rank, n_columns]

        Examples
        --------
        >>> half = LowRank.of(np.float32([[1], [-2]]), np.float32([[3, 1.5]]))
        >>> half.dequantize(2, 2).round(1).tolist()
        [[3.0, 1.5], [-6.0, -3.0]]
        """
        sizes = [np.maximum(np.abs(part).max(1), np.float32(1e-30)) for part in (rows.T, columns)]
        root = np.sqrt(sizes[0] * sizes[1])  # the largest factor of both, once they are balanced
        scales = np.clip(root / LARGEST, MIN_SCALE, MAX_SCALE).astype(np.float16)
        steps = root / scales.astype(np.float32)
        parts = [part * (steps / size)[:, None] for part, size in zip((rows.T, columns), sizes, strict=True)]
        whole = np.clip(np.rint(np.concatenate(parts, 1)), -LARGEST, LARGEST)
        return LowRank(whole.astype(np.int8), scales)

    @property
    def rank(self) -> int:
        """Number of products."""
        return len(self.scales)

    def truncated(self, rank: int) -> LowRank:
        """Return the first products alone."""
        return LowRank(self.factors[:rank], self.scales[:rank])

    def dequantize(self, n_rows: int, n_columns: int) -> npt.NDArray[np.float32]:
        """Return the correction; float32 [n_rows, n_columns]."""
        assert self.factors.shape[1] == n_rows + n_columns
        values = self.factors * self.scales.astype(np.float32)[:, None]
        return np.asarray(values[:, :n_rows].T @ values[:, n_rows:], np.float32)

    def sections(self) -> dict[str, npt.NDArray[Any]]:
        """Return the stored arrays by section name, in the order of the checksum."""
        return {"low_rank": self.factors, "low_rank_scales": self.scales}

    def problems(self, n_rows: int, n_columns: int) -> list[str]:
        """Say what is wrong with a correction as read from a file."""
        expected = (self.rank, n_rows + n_columns)
        if self.factors.shape != expected:
            return [f"low-rank factors have shape {self.factors.shape}, expected {expected}"]
        if not 0 < self.rank <= min(n_rows, n_columns):
            return [f"rank {self.rank} of a matrix of {n_rows} x {n_columns}"]
        if not (np.isfinite(self.scales) & (self.scales >= 0)).all():
            return ["low-rank scales are not finite and positive"]
        return []


def ranks_of(low_rank: int | str) -> tuple[int, ...]:
    """Return the ranks to measure: one, or those that "auto" chooses from.

    Raises
    ------
    RequestError
        If it is neither.

    Examples
    --------
    >>> ranks_of(0), ranks_of("8"), ranks_of("auto")
    ((0,), (8,), (0, 1, 2, 4))
    """
    if low_rank == "auto":
        return AUTO_RANKS
    text = str(low_rank)
    if isinstance(low_rank, bool) or not text.isascii() or not text.isdigit() or int(text) > MAX_RANK:
        raise RequestError(
            f"a correction of rank {low_rank!r}", hint=f"choose a number from 0 to {MAX_RANK}, or auto"
        )
    return (int(text),)


def low_rank_sections(
    n_rows: int, n_columns: int, rank: int
) -> list[tuple[str, np.dtype[Any], tuple[int, ...]]]:
    """Return name, type and shape of what a correction stores."""
    return [
        ("low_rank", np.dtype(np.int8), (rank, n_rows + n_columns)),
        ("low_rank_scales", np.dtype(np.float16), (rank,)),
    ]
