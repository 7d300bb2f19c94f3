"""Without data and without gradients: what the two plain metrics say by number."""

import numpy as np
import pytest
import torch
from torch import nn

from laq.core.formats import CANDIDATES, TRELLISES
from laq.core.scheme import ScaleFormat
from laq.networks import describe
from laq.sensitivity import SENSITIVITIES, Subject
from laq.steps import calibrate

INT4, INT8 = 5, 8


def measured(name, module, inputs):
    network = describe(module)
    stats = calibrate(network, list(inputs.split(64)))
    weights = SENSITIVITIES.get(name)().measure(Subject(network, stats, "rtn", 32, ScaleFormat.LOG8)).weights
    return {weight.name: weight.loss_nats.sum((1, 2)) for weight in weights}


def layers(scale=1.0):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False))
    with torch.no_grad():
        module[1].weight.normal_(0, 0.1, generator=torch.Generator().manual_seed(1)).mul_(scale)
    return module


@pytest.fixture(scope="module")
def inputs():
    return torch.randn(256, 64, generator=torch.Generator().manual_seed(0))


def test_weight_error_is_half_the_squared_error_whatever_the_inputs(inputs):
    one, other = (measured("weight_error", layers(), each) for each in (inputs, 100 * inputs))
    for name, losses in one.items():
        np.testing.assert_allclose(losses, other[name], rtol=1e-5)
    # a trellis of 3 bits leaves 0.0218 of a Gaussian's variance (docs/METHODS.md), 64 x 64 weights of 0.1
    assert one["1.weight"][CANDIDATES.index(TRELLISES[3])] == pytest.approx(
        0.5 * 64 * 64 * 0.01 * 0.0218, rel=0.25
    )


def test_weight_error_grows_with_the_square_of_the_weights(inputs):
    one, other = (measured("weight_error", layers(scale), inputs)["1.weight"] for scale in (1, 4))
    np.testing.assert_allclose(other[INT4], 16 * one[INT4], rtol=1e-3)


def test_output_error_grows_with_the_square_of_the_inputs_and_not_with_what_follows(inputs):
    plain, louder, followed = (
        measured("hessian", module, each)["0.weight"]
        for module, each in ((layers(), inputs), (layers(), 2 * inputs), (layers(4), inputs))
    )
    np.testing.assert_allclose(louder[[INT4, INT8]], 4 * plain[[INT4, INT8]], rtol=1e-2)
    np.testing.assert_allclose(followed[[INT4, INT8]], plain[[INT4, INT8]], rtol=1e-2)
