"""A soft choice between two codes: hard at the end, never worse than gptq, facts of the paper by number."""

import itertools

import pytest
import torch

from laq.core.scheme import ScaleFormat
from laq.quantizers.adaround import AdaRound, choose_neighbours
from laq.quantizers.common.dequantize import dequantize_columns
from laq.quantizers.common.rounding_problem import RoundingProblem
from laq.quantizers.gptq import Gptq

INT2, INT3 = 3, 4
STEPS = 60


def hessian_of(columns, *, correlation=0.7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(4 * columns, 4, generator=generator) @ torch.randn(4, columns, generator=generator)
    noise = torch.randn(4 * columns, columns, generator=generator)
    inputs = correlation * shared + (1 - correlation) * noise
    return inputs.T @ inputs / len(inputs)


def losses_of(method, weight, hessian, choices, scale_format=ScaleFormat.LOG8):
    codes = method.quantize(weight, method.prepare(hessian), choices, scale_format=scale_format)
    error = (dequantize_columns(codes, choices, scale_format) - weight).double()
    return ((hessian.double() @ error) * error).sum(0)


def nearest(target, hessian, n_levels):
    """Codes nearest to `target`, which is the weights on the scale of codes; one group of spacing one."""
    codes = target.round().clamp(0, n_levels - 1)
    rows = target.shape[1]
    return RoundingProblem(
        codes, codes - target, torch.ones(1, rows), torch.full((1, rows), n_levels - 1.0), hessian
    )


@pytest.mark.parametrize("scale_format", ScaleFormat, ids=lambda scale_format: scale_format.value)
@pytest.mark.parametrize("choice", [1, 2, INT2, INT3, 8])
def test_no_row_loses_more_than_under_gptq_and_all_together_less(choice, scale_format):
    weight = torch.randn(128, 32, generator=torch.Generator().manual_seed(0))
    hessian, choices = hessian_of(128), torch.full((2, 2), choice, dtype=torch.uint8)
    before = losses_of(Gptq(), weight, hessian, choices, scale_format)
    after = losses_of(AdaRound(), weight, hessian, choices, scale_format)
    assert (after <= before * (1 + 1e-5)).all()
    assert after.sum() < before.sum()


def test_choices_are_hard_and_are_the_code_or_its_neighbour_towards_the_lowest_point():
    target = torch.rand(32, 64, generator=torch.Generator().manual_seed(0)) * 7
    problem = nearest(target, hessian_of(32), 8)
    moved, side = choose_neighbours(problem, STEPS) - problem.codes, problem.lowest_points() - problem.codes
    assert set(moved.unique().tolist()) == {-1.0, 0.0, 1.0}
    inside = (problem.codes > 0) & (problem.codes < 7)
    assert (moved * side >= 0)[inside].all()


@pytest.mark.parametrize("seed", range(4))
def test_choices_lose_far_less_than_the_nearest_codes_where_inputs_are_correlated(seed):
    """Of the paper: the nearest codes are far from the best ones."""
    target = torch.rand(6, 256, generator=torch.Generator().manual_seed(seed)) * 7
    problem = nearest(target, hessian_of(6, seed=seed), 8)
    found = problem.moved_to(choose_neighbours(problem, STEPS))
    assert found.losses().sum() < 0.75 * problem.losses().sum()


def test_tiny_problems_often_reach_the_best_of_all_choices():
    """Six codes between two neighbours each: 64 choices, all tried."""
    target = torch.rand(6, 256, generator=torch.Generator().manual_seed(0)) * 7
    problem = nearest(target, hessian_of(6), 8)
    found = problem.moved_to(choose_neighbours(problem, STEPS)).losses()
    point = problem.lowest_points().maximum(problem.codes - 0.99).minimum(problem.codes + 0.99)
    lower, least = point.floor().clamp(0, 6), torch.full_like(found, torch.inf)
    for up in itertools.product((0.0, 1.0), repeat=6):
        tried = problem.moved_to(lower + torch.tensor(up)[:, None])
        least = torch.minimum(least, tried.losses())
    assert (found >= least * (1 - 1e-4)).all()
    assert (found <= least * (1 + 1e-4)).float().mean() > 0.5
    assert found.sum() < 1.6 * least.sum()
