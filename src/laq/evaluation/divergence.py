"""KL divergence, perplexity and top-1 agreement in one pass over held-out data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from laq.core.errors import DataError, RunError
from laq.core.progress import track
from laq.networks.module import Batch, evaluation_mode, run_logits

SLICE_TOKENS = 128
"""Tokens whose distributions are compared at a time: bounds the temporaries for large vocabularies."""


@dataclass(frozen=True, slots=True)
class Divergence:
    """Sums over one evaluation; see `laq.core.record.Record` for the fields."""

    kl_nats: float
    kl_stderr_nats: float | None
    perplexity_original: float | None
    perplexity: float | None
    top1_agreement: float
    n_tokens: int


@dataclass(slots=True)
class _Sums:
    kl: float = 0.0
    nll_original: float = 0.0
    nll: float = 0.0
    n_agree: int = 0
    n_tokens: int = 0
    n_labels: int = 0


def compare(
    original: nn.Module, quantized: Sequence[nn.Module], batches: Sequence[Batch], *, label: str
) -> list[Divergence]:
    """Compare networks with their original on the same data; the original runs once.

    Parameters
    ----------
    original : nn.Module
        Returns logits [..., n_classes]; for language models the labels are the next tokens.
    quantized : sequence of nn.Module
        The same for each of them.
    batches : sequence of Batch
        Held-out data.
    label : str
        What to call it in the progress display.

    Raises
    ------
    DataError
        If there are no batches.
    RunError
        If the quantized network's output is not finite.
    """
    if not batches:
        raise DataError("no evaluation data", hint="pass a text file with --data")
    sums: list[list[_Sums]] = [[] for _ in quantized]
    with torch.inference_mode(), evaluation_mode(original, *quantized):
        for batch in track(batches, label=label, total=len(batches)):
            expected, labels = run_logits(original, batch), _token_ids(batch)
            for module, total in zip(quantized, sums, strict=True):
                total.append(_compare_batch(expected, run_logits(module, batch), labels))
    return [_divergence(total) for total in sums]


def _token_ids(batch: Batch) -> torch.Tensor | None:
    """Ids [n_sequences, n_tokens] of a language-model batch, else None."""
    ids: Any = batch.get("input_ids") if isinstance(batch, Mapping) else None
    return ids if isinstance(ids, torch.Tensor) and ids.ndim == 2 and ids.shape[1] > 1 else None


def _compare_batch(original: torch.Tensor, quantized: torch.Tensor, ids: torch.Tensor | None) -> _Sums:
    if not bool(torch.isfinite(quantized).all()):
        raise RunError(
            "the quantized network's output is not finite", hint="raise the budget or use --quantizer rtn"
        )
    labels: torch.Tensor | None = None
    if ids is not None and original.shape[:-1] == ids.shape:
        labels = ids[:, 1:].flatten()
        original, quantized = original[:, :-1], quantized[:, :-1]
    sums = _Sums()
    rows = zip(
        original.flatten(0, -2).split(SLICE_TOKENS), quantized.flatten(0, -2).split(SLICE_TOKENS), strict=True
    )
    for index, (before, after) in enumerate(rows):
        p, q = functional.log_softmax(before.float(), -1), functional.log_softmax(after.float(), -1)
        sums.kl += float((p.exp() * (p - q)).sum(dtype=torch.float64))
        sums.n_agree += int((p.argmax(-1) == q.argmax(-1)).sum())
        sums.n_tokens += len(p)
        if labels is not None:
            chosen = labels[index * SLICE_TOKENS : index * SLICE_TOKENS + len(p), None]
            sums.nll_original -= float(p.gather(1, chosen).sum(dtype=torch.float64))
            sums.nll -= float(q.gather(1, chosen).sum(dtype=torch.float64))
            sums.n_labels += len(p)
    return sums


def _divergence(sums: list[_Sums]) -> Divergence:
    n = sum(s.n_tokens for s in sums)
    n_labels = sum(s.n_labels for s in sums)
    means = np.array([s.kl / s.n_tokens for s in sums])
    stderr = float(means.std(ddof=1) / math.sqrt(len(means))) if len(means) > 1 else None
    return Divergence(
        kl_nats=sum(s.kl for s in sums) / n,
        kl_stderr_nats=stderr,
        perplexity_original=_perplexity(sum(s.nll_original for s in sums), n_labels),
        perplexity=_perplexity(sum(s.nll for s in sums), n_labels),
        top1_agreement=sum(s.n_agree for s in sums) / n,
        n_tokens=n,
    )


def _perplexity(nll: float, n: int) -> float | None:
    return math.exp(min(nll / n, 700.0)) if n else None
