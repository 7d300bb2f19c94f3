"""The factor of the inverse hessian: what it is, and what happens to matrices that have none."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from laq.core.errors import CalibrationError
from laq.quantizers.common.error_feedback import DAMPING, inverse_factor


def hessian_of(columns, *, correlation=0.8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(4 * columns, 4, generator=generator) @ torch.randn(4, columns, generator=generator)
    noise = torch.randn(4 * columns, columns, generator=generator)
    inputs = correlation * shared + (1 - correlation) * noise
    return inputs.T @ inputs / len(inputs)


def damped(hessian, damping=DAMPING):
    exact = hessian.double()
    return exact + torch.eye(len(exact), dtype=torch.float64) * exact.diagonal().mean() * damping


@given(columns=st.integers(1, 40), correlation=st.floats(0, 0.95), seed=st.integers(0, 999))
def test_factor_is_the_upper_cholesky_factor_of_the_damped_inverse(columns, correlation, seed):
    hessian = hessian_of(columns, correlation=correlation, seed=seed)
    factor = inverse_factor(hessian).double()
    assert torch.equal(factor, factor.triu())
    assert (factor.diagonal() > 0).all()
    identity = factor.T @ factor @ damped(hessian)
    torch.testing.assert_close(identity, torch.eye(columns, dtype=torch.float64), rtol=0, atol=1e-3)


def test_squared_diagonal_is_one_over_the_variance_given_all_later_columns():
    hessian = hessian_of(12)
    weights = inverse_factor(hessian).double().diagonal() ** -2
    exact = damped(hessian)
    for j in range(12):
        later = exact[j + 1 :, j + 1 :]
        cross = exact[j, j + 1 :]
        conditional = exact[j, j] - (cross @ torch.linalg.solve(later, cross) if j < 11 else 0)
        assert float(weights[j]) == pytest.approx(float(conditional), rel=1e-3)


def test_matrix_that_is_not_positive_definite_raises_the_damping():
    hessian = torch.eye(8)
    hessian[0, 0] = -0.05
    factor = inverse_factor(hessian).double()
    product = factor.T @ factor @ damped(hessian, 0.1)
    torch.testing.assert_close(product, torch.eye(8, dtype=torch.float64), rtol=0, atol=1e-4)


def test_singular_matrix_needs_no_more_than_the_usual_damping():
    hessian = torch.ones(8, 8)
    product = inverse_factor(hessian).double().square().sum()
    assert torch.isfinite(product)
    torch.testing.assert_close(
        inverse_factor(hessian).double().T @ inverse_factor(hessian).double() @ damped(hessian),
        torch.eye(8, dtype=torch.float64),
        rtol=0,
        atol=1e-3,
    )


def test_matrix_beyond_repair_is_refused_with_the_way_out():
    hessian = torch.eye(8)
    hessian[0, 0] = -50
    with pytest.raises(CalibrationError, match=r"not positive definite.*\nhint: "):
        inverse_factor(hessian)


def test_zero_matrix_does_not_fail():
    assert torch.isfinite(inverse_factor(torch.zeros(8, 8))).all()
