"""What every sensitivity promises, checked the day its file appears."""

import numpy as np
import pytest
import torch
from torch import nn

from laq.core.errors import DataError
from laq.core.formats import CANDIDATES, TRELLISES, formats_of
from laq.core.scheme import ScaleFormat
from laq.networks import describe
from laq.sensitivity import SENSITIVITIES, Sensitivity, Subject
from laq.steps import allocate, calibrate, measure

NAMES = SENSITIVITIES.names()
INT2, INT4, INT8 = 3, 5, 8
WIDTHS = [CANDIDATES.index(TRELLISES[bits]) for bits in (2, 3, 4, 5)]


@pytest.fixture(scope="module")
def subject():
    """Three layers of 64, the second of which hardly reaches the output."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(96, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32))
    data = torch.randn(320, 96, generator=generator)
    network = describe(module)
    batches = list(data.split(32))
    stats = calibrate(network, batches)
    return Subject(network, stats, "gptq", 32, ScaleFormat.LOG8, tuple(batches[-2:]))


@pytest.fixture(scope="module")
def measured(subject):
    """Curves by name."""
    return {name: SENSITIVITIES.get(name)().measure(subject) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_every_tile_has_a_loss_that_is_never_negative(measured, subject, name):
    found = measured[name].weights
    assert [weight.name for weight in found] == [weight.name for weight in subject.network.weights]
    for weight in found:
        assert weight.loss_nats.shape == (len(CANDIDATES), weight.grid.n_row_blocks, weight.grid.n_groups)
        assert weight.loss_nats.dtype == np.float32
        assert (weight.loss_nats >= 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_only_formats_below_two_bits_are_ever_forbidden(measured, name):
    wide = np.array([candidate.n_levels >= 4 for candidate in CANDIDATES]) & np.array(formats_of("all"))
    for weight in measured[name].weights:
        assert np.isfinite(weight.loss_nats[wide]).all()
        assert np.isinf(weight.loss_nats[~np.array(formats_of("all"))]).all()
        assert not np.isnan(weight.loss_nats).any()


@pytest.mark.parametrize("name", NAMES)
def test_losses_of_a_weight_fall_with_the_width(measured, name):
    for weight in measured[name].weights:
        for family in ([INT2, INT4, INT8], WIDTHS):
            sums = weight.loss_nats[family].sum((1, 2))
            assert (np.diff(sums) < 0).all()
            # squares fall with the square of the step, linear terms with the step
            assert sums[-1] < (0.3 if name == "first_order" else 0.1) * sums[0]


@pytest.mark.parametrize("name", NAMES)
def test_same_subject_same_curves_and_the_network_is_left_alone(measured, subject, name):
    before = subject.network.content_hash()
    again = SENSITIVITIES.get(name)().measure(subject)
    assert subject.network.content_hash() == before
    for one, other in zip(measured[name].weights, again.weights, strict=True):
        assert np.array_equal(one.loss_nats, other.loss_nats)


@pytest.mark.parametrize("name", NAMES)
def test_curves_say_what_they_are_and_can_be_spent(subject, name, tmp_path):
    curves = measure(subject.network, subject.stats, group_size=32, sensitivity=name, batches=subject.batches)
    curves.save(tmp_path / "curves")
    opened = type(curves).open(tmp_path / "curves")
    assert opened.sensitivity == curves.sensitivity == name
    budget = int(0.6 * curves.original_bytes)
    assert allocate(opened, size=budget, unit="tensor").size_bytes <= budget


@pytest.mark.parametrize("name", NAMES)
def test_every_sensitivity_says_what_it_is(name):
    method = SENSITIVITIES.get(name)
    assert issubclass(method, Sensitivity)
    assert method.status in ("stable", "experimental")
    assert method.summary
    assert isinstance(method.runs_network, bool)


@pytest.mark.parametrize("name", [name for name in NAMES if SENSITIVITIES.get(name).runs_network])
def test_one_that_runs_the_network_asks_for_data(subject, name):
    with pytest.raises(DataError, match="did not see"):
        measure(subject.network, subject.stats, group_size=32, sensitivity=name)
