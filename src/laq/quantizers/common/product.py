"""Product codes of a matrix: weighted k-means, then runs of columns in order, errors fed to the next."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from laq.core.permutation import IndexArray
from laq.core.product import N_ENTRIES, ProductCode, ProductTensor
from laq.quantizers import Feedback
from laq.quantizers.common.sorting import SortedWeight

TRAINED_RUNS = 8192
ROUNDS = 8
COMPARED_RUNS = 8192
"""Runs that are held against a codebook at a time: 8 MB of distances."""

MEASURED_ROWS = 64
LARGEST = 65504.0


def product_tensor(
    weight: SortedWeight, feedback: Feedback, code: ProductCode, *, columns: IndexArray | None
) -> ProductTensor:
    """Encode a weight whose rows keep their order.

    Parameters
    ----------
    weight : SortedWeight
        Columns in the order of processing.
    feedback : Feedback
        What the quantizer prepared from their hessian; errors spread if it has a factor.
    code : ProductCode
        Width and levels.
    columns : uint16 or uint32 [n_columns], or None
        That order.
    """
    grid = weight.grid
    matrix, scales = _scaled(weight, feedback)
    books = _codebooks(matrix, weight.rows * scales.square(), feedback, code)
    codes, _ = _encode(matrix, books, feedback, code.width)
    n_runs = -(-grid.n_columns // code.width)
    return ProductTensor(
        n_rows=grid.n_rows,
        n_columns=grid.n_columns,
        codes=np.ascontiguousarray(codes[:, : grid.n_rows, :n_runs].numpy()),
        codebooks=torch.stack(books).half().numpy(),
        row_scales=scales[: grid.n_rows].half().numpy(),
        column_permutation=columns,
    )


def product_losses(weight: SortedWeight, feedback: Feedback, codes: Sequence[ProductCode]) -> list[float]:
    """Return the loss of a weight in each code, in nats per token: that of every n-th row, times n."""
    matrix, scales = _scaled(weight, feedback)
    row_costs = weight.rows * scales.square()
    picked = torch.arange(0, weight.grid.n_rows, max(1, weight.grid.n_rows // MEASURED_ROWS))
    of_all, of_picked = float(row_costs.sum()), float(row_costs[picked].sum())
    deepest = {code.width: code for code in sorted(codes, key=lambda code: code.n_levels)}
    books = {width: _codebooks(matrix, row_costs, feedback, code) for width, code in deepest.items()}
    losses = []
    for code in codes:
        _, rounded = _encode(matrix[picked], books[code.width][: code.n_levels], feedback, code.width)
        error = rounded - matrix[picked]
        by_row = ((error @ weight.hessian) * error).sum(1)
        losses.append(0.5 * float(row_costs[picked] @ by_row) * of_all / max(of_picked, 1e-30))
    return losses


def _scaled(weight: SortedWeight, feedback: Feedback) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows divided by their weighted root mean square, [padded_rows, padded_columns], and those as stored."""
    costs = feedback.column_weights
    mean = (weight.matrix.square() * costs[:, None]).sum(0) / costs.sum()
    scales = mean.sqrt().clamp(min=2.0**-14, max=LARGEST).half().float()
    return (weight.matrix / scales).T.contiguous(), scales


def _codebooks(
    matrix: torch.Tensor, row_costs: torch.Tensor, feedback: Feedback, code: ProductCode
) -> list[torch.Tensor]:
    """Train each level on what those before it leave of runs spread over the matrix."""
    runs = matrix.view(-1, code.width)
    picked = torch.arange(0, len(runs), max(1, len(runs) // TRAINED_RUNS))
    n_runs = matrix.shape[1] // code.width
    by_column = feedback.column_weights.view(n_runs, code.width)[picked % n_runs]
    costs = by_column * row_costs[picked // n_runs][:, None]
    costs = costs / costs.mean().clamp(min=1e-30)
    left, books = runs[picked], []
    for _ in range(code.n_levels):
        books.append(_k_means(left, costs))
        left = left - books[-1][_nearest(left, costs, books[-1])]
    return books


def _k_means(runs: torch.Tensor, costs: torch.Tensor) -> torch.Tensor:
    """Return weighted means of the runs that are nearest to each; [256, width], as float16 holds them."""
    start = torch.argsort((runs.square() * costs).sum(1), stable=True)
    book = runs[start[torch.linspace(0, len(runs) - 1, N_ENTRIES).long()]].clone()
    for _ in range(ROUNDS):
        index = _nearest(runs, costs, book)
        sums = torch.zeros_like(book).index_add_(0, index, runs * costs)
        weights = torch.zeros_like(book).index_add_(0, index, costs)
        book = torch.where(weights > 0, sums / weights.clamp(min=1e-30), book)
    return book.clamp(-LARGEST, LARGEST).half().float()


def _nearest(runs: torch.Tensor, costs: torch.Tensor, book: torch.Tensor) -> torch.Tensor:
    """Return the entry of least weighted squared distance to each run; int64 [n]."""
    return torch.cat(
        [
            (its @ book.square().T - 2 * (some * its) @ book.T).argmin(1)
            for some, its in zip(runs.split(COMPARED_RUNS), costs.split(COMPARED_RUNS), strict=True)
        ]
    )


def _encode(
    matrix: torch.Tensor, books: Sequence[torch.Tensor], feedback: Feedback, width: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes uint8 [n_levels, rows, runs], and the values that they stand for."""
    left, factor = matrix.clone(), feedback.factor
    codes = torch.empty((len(books), len(matrix), matrix.shape[1] // width), dtype=torch.uint8)
    rounded = torch.zeros_like(matrix)
    for run in range(codes.shape[2]):
        here = slice(run * width, (run + 1) * width)
        costs = feedback.column_weights[here].expand(len(matrix), width)
        for level, book in enumerate(books):
            index = _nearest(left[:, here] - rounded[:, here], costs, book)
            rounded[:, here] += book[index]
            codes[level, :, run] = index.to(torch.uint8)
        if factor is not None and here.stop < matrix.shape[1]:
            errors = torch.linalg.solve_triangular(
                factor[here, here], left[:, here] - rounded[:, here], upper=True, left=False
            )
            left[:, here.stop :].addmm_(errors, factor[here, here.stop :], alpha=-1)
    return codes, rounded
