"""Weights quantized alone, and a little data to run the network with one of them swapped in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from laq.core.curve import WeightCurves
from laq.core.errors import DataError
from laq.core.plan import Plan, WeightPlan
from laq.core.target import Unit
from laq.networks.module import Batch
from laq.quantizers.common.apply import apply_plans
from laq.runtime.replace import dense_values
from laq.sensitivity import Measured, Subject

LEAST_COLUMNS = 2
"""Tokens of a sequence: the last one predicts nothing that is compared."""


def check_batches(batches: Sequence[Batch], name: str) -> None:
    """Raise DataError if there is nothing to run a network on."""
    if not batches:
        raise DataError(
            f"sensitivity {name} runs the network: it needs data that the statistics did not see",
            hint="pass them: batches=splits.held_out",
        )


def shortened(batches: Sequence[Batch], n_tokens: int) -> list[Batch]:
    """Return batches of text of `n_tokens` or less in all, sequences cut; the first one of anything else."""
    result: list[Batch] = []
    for batch in batches:
        ids: Any = batch.get("input_ids") if isinstance(batch, Mapping) else None
        if not isinstance(batch, Mapping) or not isinstance(ids, torch.Tensor) or ids.ndim != 2:
            return [batches[0]]
        n_rows = min(len(ids), max(1, n_tokens // LEAST_COLUMNS))
        n_columns = min(ids.shape[1], max(LEAST_COLUMNS, n_tokens // n_rows))
        result.append({key: _cut(value, ids.shape, n_rows, n_columns) for key, value in batch.items()})
        n_tokens -= n_rows * n_columns
        if n_tokens < LEAST_COLUMNS:
            break
    return result


def _cut(value: Any, shape: torch.Size, n_rows: int, n_columns: int) -> Any:
    is_text = isinstance(value, torch.Tensor) and value.shape == shape
    return value[:n_rows, :n_columns] if is_text else value


def quantized_alone(
    subject: Subject, measured: Measured, choices: Sequence[int]
) -> list[dict[str, torch.Tensor]]:
    """Return every weight quantized at a few formats, the same for all of its tiles; values by name.

    Parameters
    ----------
    subject : Subject
        What is measured.
    measured : Measured
        Orders of rows and columns, which are those of plans.
    choices : sequence of int
        Candidate formats.
    """
    plans = [_plan(subject, measured, choice) for choice in choices]
    return [
        {
            name: dense_values(stored).to(subject.network.weight(name).dtype)
            for name, stored in tensors.items()
        }
        for tensors in apply_plans(subject.network, plans, subject.stats)
    ]


def _plan(subject: Subject, measured: Measured, choice: int) -> Plan:
    """One format everywhere, at whatever size."""
    return Plan(
        weights=tuple(_weight_plan(weight, choice) for weight in measured.weights),
        column_permutations=measured.column_permutations,
        unit=Unit.NETWORK,
        scale_format=subject.scale_format,
        quantizer=subject.quantizer,
        range=subject.range,
        scale_per=subject.scale_per,
        budget_bytes=0,
        size_bytes=0,
        n_params=subject.network.n_params,
        predicted_loss_nats=0.0,
        source_hash="",
    )


def _weight_plan(weight: WeightCurves, choice: int) -> WeightPlan:
    shape = (weight.grid.n_row_blocks, weight.grid.n_groups)
    return WeightPlan(
        weight.name,
        weight.grid,
        np.full(shape, choice, np.uint8),
        weight.row_permutation,
        weight.column_order,
    )
