"""Half-quadratic: the grid of a sparse error, without data."""

from __future__ import annotations

from functools import reduce
from typing import ClassVar, Literal, final

import torch

from laq.core.scheme import ScaleFormat
from laq.ranges import Grid, Range
from laq.ranges.common.affine import affine_grid
from laq.ranges.common.grid import (
    extremes,
    grid_of,
    in_parts,
    merged,
    nearest_zero_points,
    rounding_error,
    stored_scales,
)

P = 0.75
"""Exponent of the norm: two square roots. The source takes 0.7."""

BETA, KAPPA = 1.0, 1.3
"""Weight of the quadratic term in the first round, where errors above a step are outliers, and its growth."""

N_ROUNDS = 8
SHRUNK = 1.0, 0.75, 0.5
"""Shares of the full range to start from: the one of least norm."""

SMALLEST_ERROR = 1e-8
RATIO_LIMITS = 0.5, 2.0
"""By how much one round may change a scale."""


@final
class HalfQuadratic(Range):
    """The grid of least |w - s (q - z)|_p with p < 1: outliers count little and do not widen the range.

    With e for the part of the error that is taken as given and beta rising, both in steps of the scale,

        e = sign(x) relu(|x| - |x|^(p-1) / beta),  x = w / s - (q - z)

    and then (s, z) by least squares of w - s e on q. The source keeps s and solves for z alone. Every round's
    grid is rounded to one that can be stored; of those the least norm wins, the full range among them.
    Importance is not looked at.

    References
    ----------
    Badri and Shaji, Half-Quadratic Quantization of Large Machine Learning Models, 2023,
    https://mobiusml.github.io/hqq_blog/
    """

    status: ClassVar[Literal["stable", "experimental"]] = "experimental"
    summary: ClassVar[str] = "half-quadratic: the grid of least error in a norm below one, no data"

    def search(
        self,
        block: torch.Tensor,
        n_levels: int,
        column_weights: torch.Tensor,
        *,
        floor: torch.Tensor,
        scale_format: ScaleFormat,
    ) -> Grid:
        """Choose scales and zero points; see `Range.search`."""
        return in_parts(
            block,
            floor,
            lambda part, its: _search_rows(part, n_levels, column_weights, its, scale_format),
        )


def norm(block: torch.Tensor, scales: torch.Tensor, zero_points: torch.Tensor, n_levels: int) -> torch.Tensor:
    """Return sum |w - s (q - z)|^p over the columns; [rows]."""
    steps = rounding_error(block, scales, zero_points, n_levels)
    root = steps.abs_().sqrt_()
    return root.mul_(root.sqrt()).sum(0).mul_(scales**P)


def _search_rows(
    block: torch.Tensor,
    n_levels: int,
    column_weights: torch.Tensor,
    floor: torch.Tensor,
    scale_format: ScaleFormat,
) -> Grid:
    low, high = extremes(block)
    tried = (affine_grid(low * shrunk, high * shrunk, n_levels, floor, scale_format) for shrunk in SHRUNK)
    starts = (Grid(*scales, zeros, norm(block, scales[0], zeros, n_levels)) for scales, zeros in tried)
    best = reduce(_better, starts)
    scales, zeros, beta = best.scales, best.zero_points, BETA
    for _ in range(N_ROUNDS):
        scales, zeros = _refit(block, scales, zeros, n_levels, beta)
        decoded, stored = stored_scales(scales, floor, scale_format, covering=False)
        legal = nearest_zero_points(zeros, high > low, n_levels)
        best = _better(best, Grid(decoded, stored, legal, norm(block, decoded, legal, n_levels)))
        beta *= KAPPA
    return grid_of(
        block, n_levels, column_weights, scales=(best.scales, best.stored), zero_points=best.zero_points
    )


def _better(best: Grid, other: Grid) -> Grid:
    return merged(other.error < best.error, other, best)


def _refit(
    block: torch.Tensor, scales: torch.Tensor, zero_points: torch.Tensor, n_levels: int, beta: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """One round: shrink the error, then scale and zero point by least squares on the codes; both [rows]."""
    exact = (block * scales.reciprocal()).add_(zero_points)
    codes = exact.round().clamp_(min=0, max=n_levels - 1)
    error = exact.sub_(codes)
    size = error.abs()
    limit = size.clamp(min=SMALLEST_ERROR).rsqrt_().sqrt_().div_(beta)
    kept = torch.minimum(size, limit).copysign_(error)  # x - e
    mean_code, mean_kept = codes.mean(0), kept.mean(0)
    centred = codes.sub_(mean_code)
    spread = centred.square().sum(0)
    slope = centred.mul_(kept).sum(0) / spread
    ratio = torch.where(spread > 0, 1 + slope, 1.0).clamp_(*RATIO_LIMITS)
    return scales * ratio, mean_code - (mean_code + mean_kept - zero_points) / ratio
