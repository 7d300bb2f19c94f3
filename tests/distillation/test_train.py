"""Distillation on a small network: it lowers the loss, and goes on where it stopped."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import laq
from laq.core.errors import FormatError, NetworkError, RequestError, RunError
from laq.core.progress import shown_by
from laq.distillation import Distillation, State, distill, train, tunable
from laq.evaluation.divergence import compare
from laq.networks import describe
from laq.networks.module import stored_tensor
from laq.networks.swapped import with_parameters
from laq.runtime.replace import packed_copy


class InterruptedRunError(Exception):
    """What stops a run in these tests."""


class StopsAfter:
    """A display that ends the loop that it shows."""

    def __init__(self, n):
        self.n = n

    def track(self, items, *, label, total):
        for index, item in enumerate(items):
            if label == "distilling" and index == self.n:
                raise InterruptedRunError
            yield item


@pytest.fixture(scope="module")
def case():
    """A network with norms and biases at about two bits, and data: to learn from, and others."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Linear(64, 128), nn.LayerNorm(128), nn.ReLU(), nn.Linear(128, 128), nn.LayerNorm(128)]
        module = nn.Sequential(*layers, nn.ReLU(), nn.Linear(128, 64)).eval()
    data = torch.randn(640, 64, generator=torch.Generator().manual_seed(1)).split(32)
    network = describe(module)
    stats = laq.calibrate(network, list(data))
    curves = laq.measure(network, stats)
    packed = laq.apply(network, laq.allocate(curves, bpw=6.0, unit="network"), stats).packed
    return network, packed, list(data[:12]), list(data[12:])


def kl_of(network, made, packed, batches):
    return compare(network.module, [packed_copy(made, packed)], batches, label="")[0].kl_nats


def test_gains_that_are_off_are_mended_on_data_that_it_did_not_learn_from(case):
    network, packed, batches, others = case
    noise = torch.Generator().manual_seed(2)
    off = {name: torch.exp(0.3 * torch.randn(128, generator=noise)) for name in ("1.weight", "4.weight")}
    spoiled = with_parameters(network, off)
    made = distill(network, spoiled, packed, batches, Distillation(150, 3e-2))
    before, after, best = (kl_of(network, one, packed, others) for one in (spoiled, made, network))
    assert after < 1.1 * best < 0.5 * before


def test_the_original_stays_and_other_parameters_are_shared(case):
    network, packed, batches, _ = case
    before = {name: stored_tensor(network.module, name).clone() for name in network.module.state_dict()}
    made = distill(network, network, packed, batches, Distillation(3))
    moved = set()
    for name, value in network.module.named_parameters():
        assert torch.equal(value, before[name])
        if value is not made.module.get_parameter(name):
            moved.add(name)
    tuned = {f"{i}.{part}" for i in (1, 4) for part in ("bias", "weight")} | {"0.bias", "3.bias", "6.bias"}
    assert moved == set(tunable(network)) == tuned


@pytest.mark.parametrize("stop", [5, 16, 39])
def test_an_interrupted_run_ends_like_one_that_was_not(case, tmp_path, stop):
    network, packed, batches, _ = case
    settings = Distillation(40)
    whole = distill(network, network, packed, batches, settings)
    with pytest.raises(InterruptedRunError), shown_by(StopsAfter(stop)):
        distill(network, network, packed, batches, settings, checkpoint=tmp_path / "state")
    if stop >= train.SAVE_EVERY:
        assert State.open(tmp_path / "state").step == stop // train.SAVE_EVERY * train.SAVE_EVERY
    again = distill(network, network, packed, batches, settings, checkpoint=tmp_path / "state")
    for name in tunable(network):
        assert torch.equal(again.module.get_parameter(name), whole.module.get_parameter(name)), name
    assert State.open(tmp_path / "state").step == 40


def test_a_finished_run_is_not_repeated_and_one_of_something_else_begins_anew(case, tmp_path):
    network, packed, batches, _ = case
    first = distill(network, network, packed, batches, Distillation(4), checkpoint=tmp_path / "state")
    other = distill(network, network, packed, batches[1:], Distillation(4), checkpoint=tmp_path / "state")
    names = tunable(network)
    assert any(not torch.equal(first.module.get_parameter(n), other.module.get_parameter(n)) for n in names)
    with shown_by(StopsAfter(0)):
        again = distill(network, network, packed, batches[1:], Distillation(4), checkpoint=tmp_path / "state")
    assert all(torch.equal(again.module.get_parameter(n), other.module.get_parameter(n)) for n in names)


def test_a_folder_of_something_else_is_refused(case, tmp_path):
    network, packed, batches, _ = case
    laq.calibrate(network, batches).save(tmp_path / "state")
    with pytest.raises(FormatError, match="distillation"):
        distill(network, network, packed, batches, Distillation(2), checkpoint=tmp_path / "state")


def test_damaged_states_are_refused(case, tmp_path):
    network, packed, batches, _ = case
    distill(network, network, packed, batches, Distillation(2), checkpoint=tmp_path / "state")
    array = np.full_like(np.load(tmp_path / "state" / "00000.npy"), np.nan)
    np.save(tmp_path / "state" / "00000.npy", array)
    with pytest.raises(FormatError, match="not finite"):
        State.open(tmp_path / "state")


def test_the_original_gets_no_gradients(case):
    network, packed, batches, _ = case
    kept = network.keeping("^3")
    made = distill(network, kept, {n: packed[n] for n in ("0.weight", "6.weight")}, batches, Distillation(2))
    assert all(value.grad is None for value in network.module.parameters())
    assert made.module.get_parameter("3.weight") is network.module.get_parameter("3.weight")


def test_biases_that_begin_at_zero_are_tuned(case):
    network, packed, batches, _ = case
    zeros = with_parameters(network, {"0.bias": torch.zeros(128)})
    made = distill(network, zeros, packed, batches, Distillation(5))
    assert made.module.get_parameter("0.bias").abs().min() > 0


def test_gains_that_two_modules_share_stay_shared():
    norm = nn.LayerNorm(64)
    module = nn.Sequential(nn.Linear(64, 64), norm, nn.Linear(64, 64), norm)
    other = nn.LayerNorm(64)
    other.weight = norm.weight
    module.append(other)
    changed = with_parameters(describe(module), {"1.weight": torch.full((64,), 2.0)}).module
    assert changed[1].weight is changed[4].weight
    assert float(changed[4].weight.detach()[0]) == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_processors_without_products_of_16_bits_do_as_well(case, monkeypatch, dtype):
    monkeypatch.setattr(train, "_has_bfloat16", lambda: False)
    network, packed, batches, others = case
    typed = network
    if dtype is torch.bfloat16:
        typed = describe(copy.deepcopy(network.module).to(dtype))
        batches, others = ([batch.to(dtype) for batch in each] for each in (batches, others))
    off = with_parameters(typed, {"4.weight": torch.linspace(0.5, 1.5, 128).to(dtype)})
    made = distill(typed, off, packed, batches, Distillation(60, 3e-2))
    before, after = (kl_of(typed, one, packed, others) for one in (off, made))
    assert after < 0.9 * before


def test_a_loss_that_is_not_finite_ends_the_run(case):
    network, packed, batches, _ = case
    broken = with_parameters(network, {"1.weight": torch.full((128,), float("nan"))})
    with pytest.raises(RunError, match="step 0"):
        distill(network, broken, packed, batches, Distillation(2))


def test_networks_with_nothing_to_tune_are_named():
    network = describe(nn.Sequential(nn.Linear(64, 64, bias=False), nn.ReLU()))
    with pytest.raises(NetworkError, match="norm gains or biases"):
        tunable(network)


@pytest.mark.parametrize("n_steps", [0, -1, train.MAX_STEPS + 1])
def test_numbers_of_steps_out_of_range_are_refused(n_steps):
    with pytest.raises(RequestError, match="steps"):
        Distillation(n_steps)
