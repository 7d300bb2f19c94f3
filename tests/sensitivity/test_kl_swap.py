"""Curves of swaps sum to the KL that a swap has."""

import numpy as np
import pytest
import torch
from torch import nn

from laq.core.formats import formats_of
from laq.core.scheme import ScaleFormat
from laq.evaluation.divergence import compare
from laq.networks import describe
from laq.networks.swapped import Swapped
from laq.sensitivity import Subject
from laq.sensitivity.common.swaps import quantized_alone, shortened
from laq.sensitivity.kl_swap import KlSwap, choices_of
from laq.steps import calibrate


@pytest.fixture(scope="module")
def subject():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32))
    batches = list(torch.randn(320, 64, generator=torch.Generator().manual_seed(0)).split(32))
    network = describe(module)
    return Subject(network, calibrate(network, batches), "gptq", 32, ScaleFormat.LOG8, tuple(batches[-1:]))


def test_sums_at_swapped_formats_are_the_kl_of_the_swap(subject):
    measured = KlSwap().measure(subject)
    module = subject.network.module
    for choice, values in zip(
        choices_of(formats_of("all")),
        quantized_alone(subject, measured, choices_of(formats_of("all"))),
        strict=True,
    ):
        for weight in measured.weights:
            (found,) = compare(
                module, [Swapped(module, {weight.name: values[weight.name]})], subject.batches, label=""
            )
            assert weight.loss_nats[choice].sum() == pytest.approx(found.kl_nats, rel=1e-3)


def test_a_swap_runs_other_values_and_leaves_the_module_alone(subject):
    module, inputs = subject.network.module, subject.batches[0]
    before = module(inputs)
    zero = Swapped(module, {"4.weight": torch.zeros(32, 64)})
    assert torch.equal(zero(inputs), module[4].bias.expand(len(inputs), -1))
    assert torch.equal(module(inputs), before)


def test_text_is_cut_to_a_number_of_tokens_and_other_batches_to_one():
    batch = {"input_ids": torch.arange(20)[None], "use_cache": False}
    found = shortened([batch, batch], 30)
    assert [each["input_ids"].shape[1] for each in found] == [20, 10]
    assert found[0]["use_cache"] is False
    assert len(shortened([torch.ones(3, 4)] * 2, 30)) == 1


def test_many_sequences_are_cut_to_some_that_still_predict_something():
    (found,) = shortened([{"input_ids": torch.zeros(200, 16, dtype=torch.long)}], 128)
    n_rows, n_columns = found["input_ids"].shape
    assert n_columns >= 2
    assert 64 <= n_rows * n_columns <= 128


def test_networks_of_sixteen_bits_are_measured_in_their_own_type():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32)).bfloat16()
    inputs = torch.randn(320, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    batches = list(inputs.split(32))
    network = describe(module)
    stats = calibrate(network, batches[:9])
    one = Subject(network, stats, "rtn", 32, ScaleFormat.LOG4, tuple(batches[9:]))
    for weight in KlSwap().measure(one).weights:
        assert (weight.loss_nats[choices_of(one.allowed)[0]] > 0).all()


def test_values_quantized_alone_are_near_the_weight_and_nearer_with_more_bits(subject):
    measured = KlSwap().measure(subject)
    two, four = quantized_alone(subject, measured, choices_of(formats_of("all")))
    for weight in subject.network.weights:
        original = subject.network.weight(weight.name)
        errors = [float((values[weight.name] - original).norm() / original.norm()) for values in (two, four)]
        assert errors[1] < 0.5 * errors[0] < 0.5
    assert np.isfinite(errors).all()
