"""From statistics to the weight of each element's squared error; estimates are shrunk before use."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from laq.core.errors import CalibrationError
from laq.core.stats import FloatArray, Moments, Stats

PRIOR_SAMPLES = 1.0
"""Samples that the layer's mean counts for against an element's own; chosen by bench/shrinkage.py."""

FLOOR_SUPPORT = 64.0
"""Below this effective sample size a row or column may not send its tiles under two bits."""


@dataclass(frozen=True, slots=True)
class Importance:
    """The loss of a change dW of one weight: 1/2 sum_i rows_i dW_i hessian dW_i', in nats per token.

    Parameters
    ----------
    hessian : float32 [n_columns, n_columns]
        Second moment of what multiplies the weight.
    rows : float32 [n_rows]
        Squared gradient at each output.
    row_support, column_support : float64 [n_rows], [n_columns]
        Effective sample sizes behind them.
    """

    hessian: FloatArray
    rows: FloatArray
    row_support: npt.NDArray[np.float64]
    column_support: npt.NDArray[np.float64]


def importance_of(stats: Stats, name: str, *, prior_samples: float | None = None) -> Importance:
    """Return the importance of weight `name`, its uses added up.

    With several uses (a tied embedding) the sum of the products is approximated by one product: columns
    are the uses' moments weighted by their total row importance, rows keep each use's share of the trace.

    Raises
    ------
    CalibrationError
        If statistics are missing or not finite.
    """
    prior = PRIOR_SAMPLES if prior_samples is None else prior_samples
    rows, hessians, row_support, column_support = [], [], [], []
    for use in stats.uses_of(name):
        columns_moments, rows_moments = stats.moments[use.columns], stats.moments[use.rows]
        hessians.append(shrink_matrix(columns_moments, prior).astype(np.float64))
        rows.append(shrink(rows_moments, prior))
        row_support.append(rows_moments.support)
        column_support.append(columns_moments.support)
    totals = [float(row.sum()) for row in rows]
    hessian = sum(total * matrix for total, matrix in zip(totals, hessians, strict=True)) / max(
        sum(totals), 1e-300
    )
    trace = max(float(np.trace(hessian)), 1e-300)
    combined = sum(row * (np.trace(matrix) / trace) for row, matrix in zip(rows, hessians, strict=True))
    result = Importance(
        hessian=np.asarray(hessian, np.float32),
        rows=np.asarray(combined, np.float32),
        row_support=np.max(row_support, axis=0),
        column_support=np.max(column_support, axis=0),
    )
    if not (np.isfinite(result.hessian).all() and np.isfinite(result.rows).all()):
        raise CalibrationError(
            f"{name}: calibration statistics are not finite", hint="check the network in float32"
        )
    return result


def shrink(moments: Moments, prior_samples: float) -> npt.NDArray[np.float64]:
    """Move E[v^2] of each element towards the mean, by its effective sample size; [n].

    An element that calibration never saw has the mean, not zero.

    Examples
    --------
    >>> seen = Moments(np.float32([4, 0]), np.float32([16, 0]), 100)
    >>> shrink(seen, 10.0).round(2).tolist()
    [3.82, 2.0]
    """
    weight = prior_samples / (prior_samples + moments.support)
    second = moments.diagonal.astype(np.float64)
    return np.asarray((1 - weight) * second + weight * second.mean())


def shrink_matrix(moments: Moments, prior_samples: float) -> npt.NDArray[np.float64]:
    """Shrink the diagonal of E[v v'] like `shrink`, correlations in proportion; stays positive; [n, n]."""
    weight = prior_samples / (prior_samples + moments.support)
    keep = np.sqrt(1 - weight)
    matrix = moments.second.astype(np.float64) * keep[:, None] * keep[None, :]
    matrix[np.diag_indices_from(matrix)] += weight * moments.diagonal.astype(np.float64).mean()
    return np.asarray(matrix)
