"""Facts of the paper: what error feedback gains, and what its factor says about the loss."""

import pytest
import torch

from laq.core.formats import CANDIDATES
from laq.core.scheme import ScaleFormat
from laq.quantizers.common import error_feedback
from laq.quantizers.common.dequantize import dequantize_columns
from laq.quantizers.common.error_feedback import DAMPING
from laq.quantizers.gptq import Gptq
from laq.quantizers.rtn import RoundToNearest


def hessian_of(columns, *, correlation=0.8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(4 * columns, 4, generator=generator) @ torch.randn(4, columns, generator=generator)
    noise = torch.randn(4 * columns, columns, generator=generator)
    inputs = correlation * shared + (1 - correlation) * noise
    return inputs.T @ inputs / len(inputs)


def damped(hessian, damping=DAMPING):
    exact = hessian.double()
    return exact + torch.eye(len(exact), dtype=torch.float64) * exact.diagonal().mean() * damping


def quantized(method, weight, hessian, n_levels, group_size=32):
    choice = next(i for i, candidate in enumerate(CANDIDATES) if candidate.n_levels == n_levels)
    choices = torch.full((len(weight) // group_size, weight.shape[1] // 16), choice, dtype=torch.uint8)
    codes = method.quantize(weight, method.prepare(hessian), choices, scale_format=ScaleFormat.LOG8)
    return dequantize_columns(codes, choices, ScaleFormat.LOG8)


def loss_of(weight, restored, hessian):
    error = (restored - weight).double()
    return float(((hessian.double() @ error) * error).sum())


@pytest.mark.parametrize("n_levels", [4, 16])
@pytest.mark.parametrize("seed", range(3))
def test_sum_of_weighted_rounding_errors_is_the_true_loss(n_levels, seed):
    """sum_j e_j^2 / U_jj^2 = dW' H dW, e_j the rounding error of column j after feedback."""
    columns = 64
    hessian, weight = (
        hessian_of(columns, seed=seed),
        torch.randn(columns, 16, generator=torch.Generator().manual_seed(seed)),
    )
    method = Gptq()
    feedback = method.prepare(hessian)
    restored = quantized(method, weight, hessian, n_levels).double()
    factor, remaining = feedback.factor.double(), weight.double().clone()
    predicted = torch.zeros(16, dtype=torch.float64)
    for j in range(columns):
        error = remaining[j] - restored[j]
        predicted += error**2 / factor[j, j] ** 2
        remaining[j + 1 :] -= factor[j, j + 1 :, None] * (error / factor[j, j])[None]
    change = restored - weight.double()
    true = ((damped(hessian) @ change) * change).sum(0)
    torch.testing.assert_close(predicted, true, rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("n_levels", [2, 4, 8, 16, 256])
@pytest.mark.parametrize("seed", range(3))
def test_feedback_loses_less_than_rounding_on_correlated_inputs(n_levels, seed):
    hessian = hessian_of(128, correlation=0.7, seed=seed)
    weight = torch.randn(128, 64, generator=torch.Generator().manual_seed(seed))
    losses = [
        loss_of(weight, quantized(method(), weight, hessian, n_levels), hessian)
        for method in (Gptq, RoundToNearest)
    ]
    assert losses[0] <= losses[1]
    assert n_levels == 2 or losses[0] <= 0.8 * losses[1]


def test_independent_inputs_leave_nothing_to_feed_back():
    hessian = torch.diag(torch.linspace(1, 3, 64))
    weight = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))
    losses = [
        loss_of(weight, quantized(method(), weight, hessian, 16), hessian)
        for method in (Gptq, RoundToNearest)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


def test_rows_in_chunks_give_the_same_codes(monkeypatch):
    hessian, weight = hessian_of(64), torch.randn(64, 48, generator=torch.Generator().manual_seed(0))
    whole = quantized(Gptq(), weight, hessian, 16)
    monkeypatch.setattr(error_feedback, "CHUNK_ROWS", 16)
    torch.testing.assert_close(
        torch.tensor(loss_of(weight, quantized(Gptq(), weight, hessian, 16), hessian)),
        torch.tensor(loss_of(weight, whole, hessian)),
        rtol=0.02,
        atol=0,
    )
