"""Gains of classes and units, fitted to the logarithm of measured KL: relative error is what counts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IndexArray = npt.NDArray[np.int64]

SHRINKAGES = (0.1, 0.5, 5.0, 50.0)
"""Weights of a class's distance to the common gain, of which cross-validation takes one."""

UNIT_SHRINKAGE = 0.1
"""Weight of the distance of a unit's gain to the common one."""

N_FOLDS = 4
ITERATIONS = 40
HUBER = 0.2
"""Relative error from which a mix counts linearly instead of squared."""


@dataclass(frozen=True, slots=True)
class GainFit:
    """KL = exp(log_units_u) sum_c exp(log_gains_c) losses_c.

    Parameters
    ----------
    log_gains : float64 [n_classes]
        Logarithms of the gains of classes.
    log_units : float64 [n_units]
        Logarithms of the gains of units; the first one is 0.
    """

    log_gains: FloatArray
    log_units: FloatArray

    def predict(self, losses: FloatArray, units: IndexArray) -> FloatArray:
        """Return the KL of mixes; [n_mixes].

        losses : float64 [n_mixes, n_classes]        units : int64 [n_mixes]
        """
        return np.asarray(losses @ np.exp(self.log_gains) * np.exp(self.log_units[units]))


def fit_gains(losses: FloatArray, kl_nats: FloatArray, units: IndexArray, *, n_units: int) -> GainFit:
    """Fit gains that are pulled to one common gain as strongly as cross-validation asks.

    Parameters
    ----------
    losses : float64 [n_mixes, n_classes]
        Sum of curves of each class in each mix; no row is all zero.
    kl_nats : float64 [n_mixes]
        Measured, positive.
    units : int64 [n_mixes]
        Unit of each mix, from 0 to n_units - 1.
    n_units : int
        Number of units; those of no mix take the common gain.
    """
    folds = np.arange(len(kl_nats)) % N_FOLDS

    def error(shrinkage: float) -> float:
        found = []
        for fold in range(min(N_FOLDS, len(kl_nats))):
            kept, left = folds != fold, folds == fold
            fit = _fit(losses[kept], kl_nats[kept], units[kept], n_units, shrinkage)
            found.append(np.abs(np.log(fit.predict(losses[left], units[left]) / kl_nats[left])))
        return float(np.concatenate(found).mean())

    few = len(kl_nats) < 2 * N_FOLDS
    shrinkage = SHRINKAGES[-1] if few else min(SHRINKAGES, key=error)
    return _fit(losses, kl_nats, units, n_units, shrinkage)


def _fit(
    losses: FloatArray, kl_nats: FloatArray, units: IndexArray, n_units: int, shrinkage: float
) -> GainFit:
    """Gauss-Newton on the logarithms of gains (common, of units, of classes), weighted by Huber's rule."""
    n_classes = losses.shape[1]
    is_unit = (units[:, None] == np.arange(n_units)).astype(float)
    parameters = np.zeros(1 + n_units + n_classes)
    parameters[0] = float(np.median(np.log(kl_nats / losses.sum(1))))
    pull = np.array([0.0, *[UNIT_SHRINKAGE] * n_units, *[shrinkage] * n_classes])
    for _ in range(ITERATIONS):
        common, of_units, of_classes = np.split(parameters, (1, 1 + n_units))
        parts = losses * np.exp(common + of_classes + of_units[units][:, None])
        total = parts.sum(1)
        residual = np.log(kl_nats / total)
        jacobian = np.column_stack([np.ones(len(total)), is_unit, parts / total[:, None]])
        weight = np.minimum(1.0, HUBER / np.maximum(np.abs(residual), 1e-12))
        left = (jacobian * weight[:, None]).T @ jacobian + np.diag(pull + 1e-9)
        right = jacobian.T @ (weight * residual) - pull * parameters
        parameters = parameters + np.clip(np.linalg.solve(left, right), -1.0, 1.0)
    common, of_units, of_classes = np.split(parameters, (1, 1 + n_units))
    return GainFit(common + of_units[0] + of_classes, of_units - of_units[0])


def rank_correlation(one: FloatArray, other: FloatArray) -> float:
    """Return Spearman's rank correlation of two lists without ties; 1 for fewer than two values.

    Examples
    --------
    >>> rank_correlation(np.array([1.0, 2.0, 3.0]), np.array([1.0, 4.0, 9.0]))
    1.0
    """
    n = len(one)
    if n < 2:
        return 1.0
    ranks = [np.argsort(np.argsort(values, kind="stable"), kind="stable") for values in (one, other)]
    squared = float(((ranks[0] - ranks[1]) ** 2).sum())
    return 1 - 6 * squared / (n * (n * n - 1))
