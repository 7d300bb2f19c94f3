"""No single code can be improved, and every step on the way lowers the loss."""

import itertools

import pytest
import torch

from laq.core.formats import CANDIDATES
from laq.core.scheme import ScaleFormat
from laq.quantizers import descent
from laq.quantizers.common.dequantize import dequantize_columns
from laq.quantizers.descent import Descent
from laq.quantizers.gptq import Gptq

INT2, INT3, INT4, TRELLIS2 = 3, 4, 5, 10


def hessian_of(columns, *, correlation=0.7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(4 * columns, 4, generator=generator) @ torch.randn(4, columns, generator=generator)
    noise = torch.randn(4 * columns, columns, generator=generator)
    inputs = correlation * shared + (1 - correlation) * noise
    return inputs.T @ inputs / len(inputs)


def weight_of(columns, rows=32, seed=0):
    return torch.randn(columns, rows, generator=torch.Generator().manual_seed(seed))


def losses_of(method, weight, hessian, choices, scale_format=ScaleFormat.LOG8):
    """Losses by row, codes, and their values."""
    codes = method.quantize(weight, method.prepare(hessian), choices, scale_format=scale_format)
    error = (dequantize_columns(codes, choices, scale_format) - weight).double()
    return ((hessian.double() @ error) * error).sum(0), codes, error


@pytest.mark.parametrize("scale_format", ScaleFormat, ids=lambda scale_format: scale_format.value)
@pytest.mark.parametrize("choice", [1, 2, INT2, INT3, INT4, 8])
def test_no_row_loses_more_than_under_gptq_and_all_together_less(choice, scale_format):
    weight, hessian = weight_of(128), hessian_of(128)
    choices = torch.full((2, 2), choice, dtype=torch.uint8)
    before, _, _ = losses_of(Gptq(), weight, hessian, choices, scale_format)
    after, _, _ = losses_of(Descent(), weight, hessian, choices, scale_format)
    assert (after <= before * (1 + 1e-5)).all()
    assert after.sum() < 0.99 * before.sum()


@pytest.mark.parametrize("choice", [INT2, INT4])
def test_after_enough_sweeps_no_single_code_can_be_improved(choice, monkeypatch):
    monkeypatch.setattr(descent, "N_SWEEPS", 50)
    weight, hessian = weight_of(64), hessian_of(64)
    choices = torch.full((1, 2), choice, dtype=torch.uint8)
    _, codes, error = losses_of(Descent(), weight, hessian, choices)
    spacing = torch.exp2(codes.scales.double() / 8)
    gradient, curvature = hessian.double() @ error, hessian.double().diagonal()[:, None]
    for step in (-1, 1):
        moved = codes.codes.int() + step
        legal = (moved >= 0) & (moved < CANDIDATES[choice].n_levels)
        gain = 2 * step * spacing * gradient + spacing**2 * curvature
        assert (gain >= -1e-6 * curvature)[legal].all()


@pytest.mark.parametrize("seed", range(4))
def test_three_columns_that_depend_on_each_other_reach_their_optimum(seed):
    """All others are independent, so that the optimum is found by trying all codes of the three."""
    hessian = torch.eye(32)
    hessian[:3, :3] = torch.tensor([[1.0, 0.5, 0.3], [0.5, 1.0, 0.4], [0.3, 0.4, 1.0]])
    weight, choices = weight_of(32, 16, seed), torch.full((1, 1), INT2, dtype=torch.uint8)
    found, codes, error = losses_of(Descent(), weight, hessian, choices)
    scales, zeros = torch.exp2(codes.scales.double() / 8), codes.zero_points.double()
    least = torch.full_like(found, torch.inf)
    for tried in itertools.product(range(4), repeat=3):
        other = error.clone()
        other[:3] = (torch.tensor(tried).double()[:, None] - zeros) * scales - weight[:3].double()
        least = torch.minimum(least, ((hessian.double() @ other) * other).sum(0))
    assert (found <= least * (1 + 1e-5)).float().mean() > 0.8
    assert found.sum() <= 1.01 * least.sum()


def test_trellises_stay_while_integers_move_around_them():
    weight, hessian = weight_of(128, 16), hessian_of(128)
    choices = torch.tensor([[TRELLIS2], [INT3]], dtype=torch.uint8)
    before, start, _ = losses_of(Gptq(), weight, hessian, choices)
    after, codes, _ = losses_of(Descent(), weight, hessian, choices)
    assert torch.equal(codes.codes[:64], start.codes[:64])
    assert not torch.equal(codes.codes[64:], start.codes[64:])
    assert after.sum() < before.sum()


def test_scales_and_zero_points_are_those_of_gptq():
    weight, hessian = weight_of(64), hessian_of(64)
    choices = torch.full((1, 2), INT3, dtype=torch.uint8)
    _, start, _ = losses_of(Gptq(), weight, hessian, choices)
    _, codes, _ = losses_of(Descent(), weight, hessian, choices)
    assert torch.equal(codes.scales, start.scales)
    assert torch.equal(codes.zero_points, start.zero_points)
