"""Permutations of rows and columns, and the bytes they cost."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

IndexArray = npt.NDArray[np.unsignedinteger[Any]]


def index_dtype(n: int) -> np.dtype[Any]:
    """Return the smallest unsigned type that can index `n` elements: uint16 or uint32.

    Examples
    --------
    >>> index_dtype(49152).itemsize, index_dtype(151936).itemsize
    (2, 4)
    """
    return np.dtype(np.uint16) if n <= 1 << 16 else np.dtype(np.uint32)


def permutation_bytes(n: int) -> int:
    """Return the stored size of a permutation of `n` elements."""
    return n * index_dtype(n).itemsize


def descending(importance: npt.NDArray[np.floating[Any]]) -> IndexArray:
    """Return the permutation that sorts by falling importance; equal elements keep their order.

    Examples
    --------
    >>> descending(np.array([1.0, 3.0, 2.0])).tolist()
    [1, 2, 0]
    """
    order = np.argsort(-importance, kind="stable")
    return order.astype(index_dtype(len(order)))


def inverse(permutation: IndexArray) -> IndexArray:
    """Return the permutation that undoes `permutation`.

    Examples
    --------
    >>> inverse(np.array([2, 0, 1], np.uint16)).tolist()
    [1, 2, 0]
    """
    result = np.empty_like(permutation)
    result[permutation] = np.arange(len(permutation), dtype=permutation.dtype)
    return result


def is_permutation(candidate: npt.NDArray[Any]) -> bool:
    """Say whether `candidate` holds every index once."""
    n = len(candidate)
    if n == 0 or int(candidate.max()) >= n:
        return False
    return bool(np.bincount(candidate.astype(np.int64), minlength=n).max() == 1)


def checked_permutation(candidate: npt.NDArray[Any], n: int) -> IndexArray:
    """Return `candidate`, read from a file, if it holds each of `n` indices once.

    Raises
    ------
    ValueError
        If it does not.
    """
    if candidate.dtype != index_dtype(n) or candidate.shape != (n,) or not is_permutation(candidate):
        raise ValueError(f"a permutation does not hold each of {n} indices once")
    return candidate
