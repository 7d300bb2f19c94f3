"""Product codes are near the weight, nearer with more levels, and feedback lowers the loss."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from laq.core.groups import TileGrid
from laq.core.importance import Importance
from laq.core.product import PRODUCT_CODES, ProductCode
from laq.quantizers import QUANTIZERS
from laq.quantizers.common.product import product_losses, product_tensor
from laq.quantizers.common.sorting import column_order, sort_weight, sorted_hessian

SHAPE = (96, 160)


def sorted_weight(seed=0):
    generator = np.random.default_rng(seed)
    inputs = generator.standard_normal((600, 20)) @ generator.standard_normal((20, SHAPE[1]))
    inputs = inputs + generator.standard_normal(inputs.shape)
    ones = np.full(SHAPE[0], 1e6), np.full(SHAPE[1], 1e6)
    importance = Importance(
        (inputs.T @ inputs / 600).astype(np.float32),
        generator.uniform(0.1, 5, SHAPE[0]).astype(np.float32),
        *ones,
    )
    grid, columns = TileGrid(*SHAPE, 32), column_order(importance)
    values = torch.randn(*SHAPE, generator=torch.Generator().manual_seed(seed))
    hessian = sorted_hessian(importance, grid, columns)
    return values, sort_weight(values, importance, grid, hessian=hessian, rows=None, columns=columns), columns


def loss_of(values, weight, stored):
    error = torch.from_numpy(stored.dequantize()) - values
    index = torch.from_numpy(stored.column_permutation.astype(np.int64))
    sorted_error = error[:, index]
    by_row = ((sorted_error @ weight.hessian[: SHAPE[1], : SHAPE[1]]) * sorted_error).sum(1)
    return 0.5 * float(weight.rows[: SHAPE[0]] @ by_row)


@pytest.mark.parametrize("name", ["rtn", "gptq"])
def test_losses_are_measured_as_they_come_out_and_fall_with_bits(name):
    values, weight, columns = sorted_weight()
    feedback = QUANTIZERS.get(name)().prepare(weight.hessian)
    predicted = product_losses(weight, feedback, PRODUCT_CODES)
    found = [
        loss_of(values, weight, product_tensor(weight, feedback, code, columns=columns))
        for code in PRODUCT_CODES
    ]
    assert predicted == pytest.approx(found, rel=0.25)
    assert (np.diff(found) < 0).all()


def test_feedback_lowers_the_loss():
    values, weight, columns = sorted_weight()
    feedback = QUANTIZERS.get("gptq")().prepare(weight.hessian)
    code = ProductCode(4, 2)
    losses = [
        loss_of(values, weight, product_tensor(weight, each, code, columns=columns))
        for each in (feedback, replace(feedback, factor=None))
    ]
    assert losses[0] < 0.8 * losses[1]


def test_the_same_weight_has_the_same_bytes():
    _, weight, columns = sorted_weight()
    feedback = QUANTIZERS.get("gptq")().prepare(weight.hessian)
    first, second = (
        product_tensor(weight, feedback, ProductCode(8, 3), columns=columns).sections() for _ in range(2)
    )
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_rows_of_zeros_stay_near_zero():
    _, weight, columns = sorted_weight()
    weight.matrix[:, :16] = 0
    feedback = QUANTIZERS.get("gptq")().prepare(weight.hessian)
    stored = product_tensor(weight, feedback, ProductCode(4, 2), columns=columns)
    assert np.abs(stored.dequantize()[:16]).max() < 1e-3
