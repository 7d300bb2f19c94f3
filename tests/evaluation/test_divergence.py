"""KL, perplexity and agreement against their definitions."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from laq.core.errors import DataError, RunError
from laq.evaluation.divergence import compare


class Table(nn.Module):
    """Logits by token id, as a language model returns them."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, input_ids):
        return self.logits[input_ids]


def tables():
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(7, 7, generator=generator) * 2
    return Table(first), Table(first + torch.randn(7, 7, generator=generator))


def batches(n):
    ids = torch.randint(7, (n, 1, 300), generator=torch.Generator().manual_seed(1))
    return [{"input_ids": one} for one in ids]


def test_numbers_follow_their_definitions():
    original, other = tables()
    (found,) = compare(original, [other], batches(3), label="")
    kl, nll, agree, n = 0.0, 0.0, 0, 0
    for batch in batches(3):
        ids = batch["input_ids"][0].tolist()
        for now, following in pairwise(ids):
            p = original.logits.detach()[now].double().softmax(0)
            q = other.logits.detach()[now].double().softmax(0)
            kl += float((p * (p / q).log()).sum())
            nll -= math.log(q[following])
            agree += int(p.argmax() == q.argmax())
            n += 1
    assert found.n_tokens == n == 3 * 299
    assert found.kl_nats == pytest.approx(kl / n, rel=1e-5)
    assert found.perplexity == pytest.approx(math.exp(nll / n), rel=1e-5)
    assert found.top1_agreement == agree / n


def test_standard_error_is_over_batches():
    original, other = tables()
    singles = [compare(original, [other], [batch], label="")[0].kl_nats for batch in batches(4)]
    (found,) = compare(original, [other], batches(4), label="")
    mean = sum(singles) / 4
    variance = sum((one - mean) ** 2 for one in singles) / 3
    assert found.kl_stderr_nats == pytest.approx(math.sqrt(variance / 4), rel=1e-6)
    assert compare(original, [other], batches(1), label="")[0].kl_stderr_nats is None


def test_several_networks_give_what_each_gives_alone():
    original, other = tables()
    both = compare(original, [original, other], batches(2), label="")
    assert both[0].kl_nats == 0
    assert both[0].top1_agreement == 1
    assert both[1] == compare(original, [other], batches(2), label="")[0]


def test_classifiers_have_no_perplexity():
    module = nn.Linear(4, 3)
    (found,) = compare(module, [module], [(torch.randn(5, 4),)], label="")
    assert (found.perplexity, found.n_tokens) == (None, 5)


def test_nothing_to_compare_and_broken_outputs_are_refused():
    original, other = tables()
    with pytest.raises(DataError):
        compare(original, [other], [], label="")
    with torch.no_grad():
        other.logits[0, 0] = float("nan")
    with pytest.raises(RunError, match="not finite"):
        compare(original, [other], batches(1), label="")
