"""Mean gradients of the loss at every weight, on disk; one weight's and one block's activations are held."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from laq.calibration.blocks import recomputing
from laq.calibration.moments import hooks
from laq.calibration.spool import Spool
from laq.core.progress import track
from laq.networks.module import Batch, Network, evaluation_mode, run_logits


class MeanGradients:
    """dl/dw of every quantizable weight, mean over tokens, in nats per token.

    l is the cross entropy of the next token of a text; of the output's own most likely class where batches
    hold no text.

    Parameters
    ----------
    network : Network
        Run in evaluation mode; left as it was.
    batches : sequence of Batch
        What the mean is taken over.
    """

    def __init__(self, network: Network, batches: Sequence[Batch]) -> None:
        self._spool = Spool()
        self._keys = {weight.name: f"gradient-{i}" for i, weight in enumerate(network.weights)}
        for name, key in self._keys.items():
            self._spool.put(key, torch.zeros(network.weight(name).shape))
        names = list(self._keys)
        with evaluation_mode(network.module), torch.enable_grad(), _graded(network.module, names, self._add):
            n_tokens = 0
            for batch in track(batches, label="gradients", total=len(batches)):
                with recomputing(network):
                    loss, n = _loss_sum(run_logits(network.module, batch), batch)
                    loss.backward()
                n_tokens += n
        self._n_tokens = max(n_tokens, 1)

    def of(self, name: str) -> torch.Tensor:
        """Return the gradient at weight `name`; float32 [n_rows, n_columns]."""
        return self._spool.get(self._keys[name]).div_(self._n_tokens)

    def _add(self, name: str, gradient: torch.Tensor) -> None:
        key = self._keys[name]
        self._spool.put(key, self._spool.get(key).add_(gradient.float().cpu()))


def _loss_sum(logits: torch.Tensor, batch: Batch) -> tuple[torch.Tensor, int]:
    """Sum of cross entropies, and how many there are."""
    ids: Any = batch.get("input_ids") if isinstance(batch, Mapping) else None
    if isinstance(ids, torch.Tensor) and ids.shape == logits.shape[:-1]:
        logits, labels = logits[..., :-1, :], ids[..., 1:].flatten()
    else:
        labels = logits.detach().argmax(-1).flatten()
    return nn.functional.cross_entropy(
        logits.float().flatten(0, -2), labels.long(), reduction="sum"
    ), labels.numel()


@contextmanager
def _graded(
    module: nn.Module, names: Sequence[str], add: Callable[[str, torch.Tensor], None]
) -> Iterator[None]:
    """Hand the gradients of named parameters to `add`, one by one, none kept; of others there are none."""
    before = [(parameter, parameter.requires_grad, parameter.grad) for parameter in module.parameters()]

    def taking(name: str) -> Callable[[torch.Tensor], None]:
        def take(parameter: torch.Tensor) -> None:
            assert parameter.grad is not None
            add(name, parameter.grad)
            parameter.grad = None

        return take

    try:
        for parameter, _, _ in before:
            parameter.requires_grad, parameter.grad = False, None
        parameters = {name: module.get_parameter(name).requires_grad_() for name in names}
        with hooks(*(p.register_post_accumulate_grad_hook(taking(name)) for name, p in parameters.items())):
            yield
    finally:
        for parameter, wanted, gradient in before:
            parameter.requires_grad, parameter.grad = wanted, gradient
