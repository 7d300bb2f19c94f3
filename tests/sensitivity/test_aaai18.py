"""The closed rule of the paper, and what its two measurements say of a layer."""

import numpy as np
import pytest
import torch
from torch import nn

from laq.allocation.common.multiplier import spend
from laq.core.formats import CANDIDATES, TRELLISES
from laq.core.scheme import ScaleFormat
from laq.networks import describe
from laq.sensitivity import Subject
from laq.sensitivity.aaai18 import Aaai18
from laq.steps import calibrate

STEPS_A_BIT = 100


def test_lagrange_on_its_curves_is_the_closed_rule_before_rounding():
    """b_i = b_1 + log4(p_i t_1 s_1 / (p_1 t_i s_i)); widths in steps of a hundredth of a bit."""
    generator = np.random.default_rng(0)
    p, t = 10.0 ** generator.uniform(-1, 1, 12), 10.0 ** generator.uniform(-1, 1, 12)
    s = generator.integers(100, 1000, 12)
    rule = np.log(p * t[0] * s[0] / (p[0] * t * s)) / np.log(4)
    b = rule - rule.min() + 2.0
    steps = np.arange(0, 16 * STEPS_A_BIT)
    losses = p / t * 4.0 ** (-steps[:, None] / STEPS_A_BIT)
    costs = steps[:, None] * s
    found = spend(losses, costs, int(np.round(b * STEPS_A_BIT) @ s)) / STEPS_A_BIT
    np.testing.assert_allclose(found, b, atol=0.03)


@pytest.fixture(scope="module")
def curves():
    """Three layers in a row."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 16))
    batches = list(torch.randn(320, 64, generator=torch.Generator().manual_seed(0)).split(32))
    network = describe(module)
    stats = calibrate(network, batches)
    return Aaai18().measure(Subject(network, stats, "rtn", 32, ScaleFormat.LOG8, tuple(batches[-4:]))).weights


@pytest.mark.parametrize("bits", [2, 3, 4, 5])
def test_each_bit_takes_three_quarters_of_the_loss(curves, bits):
    here, after = CANDIDATES.index(TRELLISES[bits]), CANDIDATES.index(TRELLISES[bits + 1])
    for weight in curves:
        np.testing.assert_allclose(weight.loss_nats[here], 4 * weight.loss_nats[after], rtol=1e-5)


def test_tiles_of_a_weight_are_equal_and_formats_of_a_width_too(curves):
    for weight in curves:
        assert len(np.unique(weight.loss_nats[5])) == 1
        assert np.array_equal(weight.loss_nats[5], weight.loss_nats[CANDIDATES.index(TRELLISES[4])])
