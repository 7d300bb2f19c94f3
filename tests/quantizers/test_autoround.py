"""Offsets before rounding: never worse than descent, and able to leave its optimum."""

import pytest
import torch

from laq.core.scheme import ScaleFormat
from laq.quantizers.autoround import AutoRound, follow_signs
from laq.quantizers.common.dequantize import dequantize_columns
from laq.quantizers.common.rounding_problem import RoundingProblem
from laq.quantizers.descent import Descent

INT2, INT3, TRELLIS2 = 3, 4, 10


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


def problem_of(target, hessian, n_levels, start=0.0):
    """One group of spacing one, whose weights are `target` on the scale of codes; codes start at `start`."""
    codes = torch.full_like(target, start)
    rows = target.shape[1]
    return RoundingProblem(
        codes, codes - target, torch.ones(1, rows), torch.full((1, rows), n_levels - 1.0), hessian
    )


@pytest.mark.parametrize("scale_format", ScaleFormat, ids=lambda scale_format: scale_format.value)
@pytest.mark.parametrize("choice", [1, 2, INT2, INT3, 8])
def test_no_row_loses_more_than_under_descent(choice, scale_format):
    weight = torch.randn(128, 32, generator=torch.Generator().manual_seed(0))
    hessian, choices = hessian_of(128), torch.full((2, 2), choice, dtype=torch.uint8)
    before = losses_of(Descent(), weight, hessian, choices, scale_format)
    after = losses_of(AutoRound(), weight, hessian, choices, scale_format)
    assert (after <= before * (1 + 1e-5)).all()


def test_some_rows_leave_the_optimum_of_single_codes():
    weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
    hessian, choices = hessian_of(64), torch.full((1, 8), INT2, dtype=torch.uint8)
    before = losses_of(Descent(), weight, hessian, choices)
    after = losses_of(AutoRound(), weight, hessian, choices)
    assert (after < 0.999 * before).float().mean() > 0.05


def test_two_codes_move_together_where_neither_can_move_alone():
    """Sums matter: (0, 1) and (1, 0) lose alike and (1, 1) or (0, 0) lose more, so no single step leaves."""
    hessian = torch.tensor([[1.0, 0.9], [0.9, 1.0]])
    target = torch.tensor([[0.6], [0.45]])
    start = problem_of(target, hessian, 2).moved_to(torch.tensor([[0.0], [1.0]]))
    found = start.moved_to(follow_signs(start, 40))
    assert found.codes.flatten().tolist() == [1.0, 0.0]
    assert float(found.losses()) < float(start.losses())


def test_independent_inputs_are_rounded_to_the_nearest_code():
    target = torch.rand(32, 16, generator=torch.Generator().manual_seed(0)) * 7
    problem = problem_of(target, torch.eye(32), 8)
    assert torch.equal(problem.lowest_points(), target)
    near = problem.moved_to(target.round())
    assert torch.equal(follow_signs(near, 10), target.round())


def test_codes_that_stay_are_not_touched():
    target = torch.rand(32, 16, generator=torch.Generator().manual_seed(0)) * 3
    problem = problem_of(target, hessian_of(32), 4, start=2.0)
    still = RoundingProblem(
        problem.codes, problem.error, torch.zeros_like(problem.spacing), problem.tops, problem.hessian
    )
    assert torch.equal(follow_signs(still, 5), problem.codes)
