"""What every range promises, checked the day its file appears: with every integer format and scale format."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from laq.core.formats import CANDIDATES, Integer
from laq.core.formats.integer import INT4
from laq.core.qtensor import decode_scales, zero_point_code, zero_point_value
from laq.core.scheme import ScaleFormat
from laq.quantizers import QUANTIZERS
from laq.quantizers.common.engine import Columns
from laq.ranges import RANGES, Grid, Range
from laq.ranges.common.grid import MAX_SPAN, scale_floor

NAMES = RANGES.names()
FORMATS = [each for each in CANDIDATES if isinstance(each, Integer) and each.n_levels > 1]
SCALES = pytest.mark.parametrize("scale_format", ScaleFormat, ids=lambda each: each.value)
FIELDS = ("scales", "stored", "zero_points", "error")


def every_method(test):
    test = pytest.mark.parametrize("name", NAMES)(test)
    return SCALES(pytest.mark.parametrize("form", FORMATS, ids=lambda each: each.name)(test))


def block_of(seed=0, group_size=64, exponent=0):
    """Rows of many kinds: normal, of one sign, constant, with an outlier, mostly zero, zero, tiny."""
    block = torch.randn(group_size, 48, generator=torch.Generator().manual_seed(seed))
    block[:, 1] = block[:, 1].abs()
    block[:, 2] = -block[:, 2].abs() - 1
    block[:, 3] = 0.7
    block[:, 4] = -0.7
    block[5, 5] = 30
    block[1:, 6] = 0
    block[:, 7] = 0
    block[:, 8] *= 1e-9
    block[5, 9] = -30
    return torch.ldexp(block, torch.tensor(exponent))


def searched(name, block, n_levels, scale_format, weights=None):
    weights = torch.ones(len(block)) if weights is None else weights
    return RANGES.get(name)().search(
        block, n_levels, weights, floor=scale_floor(block), scale_format=scale_format
    )


def rounded(block, grid, n_levels):
    codes = (block / grid.scales + grid.zero_points).round().clamp(0, n_levels - 1)
    return (codes - grid.zero_points) * grid.scales


@every_method
@pytest.mark.parametrize("exponent", [-30, 9])
def test_grid_can_be_stored(name, form, scale_format, exponent):
    block = block_of(exponent=exponent)
    grid = searched(name, block, form.n_levels, scale_format)
    assert isinstance(grid, Grid)
    assert grid.stored.dtype == (torch.int16 if scale_format.is_log else torch.float16)
    assert torch.equal(torch.from_numpy(decode_scales(grid.stored.numpy(), scale_format)), grid.scales)
    assert torch.isfinite(grid.scales).all()
    assert (grid.scales > 0).all()
    if scale_format.is_log:
        floor = scale_floor(block)
        assert ((grid.stored >= floor) & (grid.stored <= floor + MAX_SPAN)).all()
    bits, zeros = np.full(48, form.code_bits, np.uint8), grid.zero_points.numpy()
    stored = zero_point_code(zeros, bits)
    assert (stored < 1 << form.code_bits).all()
    assert np.array_equal(zero_point_value(stored, bits), zeros)


@every_method
def test_zeros_stay_exactly_zero(name, form, scale_format):
    block = block_of()
    grid = searched(name, block, form.n_levels, scale_format)
    assert not rounded(block, grid, form.n_levels)[:, 7].any()
    assert float(grid.error[7]) == 0


@every_method
def test_error_is_that_of_rounding_on_the_grid(name, form, scale_format):
    block = block_of()
    weights = torch.rand(64, generator=torch.Generator().manual_seed(1))
    grid = searched(name, block, form.n_levels, scale_format, weights)
    expected = weights @ (rounded(block, grid, form.n_levels) - block).square()
    torch.testing.assert_close(grid.error, expected, rtol=1e-3, atol=1e-9)


BOUNDS = {2: 60, 3: 8, 4: 8, 8: 4, 16: 4, 32: 5, 64: 5, 256: 20}
"""Times the error of `mse` on normal rows, by number of levels: one bit from end to end loses most."""


@every_method
def test_error_on_normal_rows_stays_within_a_bound(name, form, scale_format):
    block = torch.randn(128, 256, generator=torch.Generator().manual_seed(0))
    grid, best = (searched(one, block, form.n_levels, scale_format) for one in (name, "mse"))
    assert grid.error.sum() <= BOUNDS[form.n_levels] * best.error.sum()


@every_method
def test_no_error_is_larger_than_the_row_reaches(name, form, scale_format):
    block = block_of()
    error = (rounded(block, searched(name, block, form.n_levels, scale_format), form.n_levels) - block).abs()
    span = block.amax(0).clamp(min=0) - block.amin(0).clamp(max=0)
    from_one_scale_to_the_next = 2 ** (scale_format.pitch / 8)
    assert (error <= 1.01 * from_one_scale_to_the_next * span + 1e-6 * float(block.abs().amax())).all()


@every_method
def test_same_input_gives_the_same_grid_and_is_left_alone(name, form, scale_format):
    block, weights = block_of(), torch.rand(64, generator=torch.Generator().manual_seed(1))
    before = block.clone(), weights.clone()
    first, second = (searched(name, block, form.n_levels, scale_format, weights) for _ in range(2))
    assert all(torch.equal(getattr(first, field), getattr(second, field)) for field in FIELDS)
    assert torch.equal(block, before[0])
    assert torch.equal(weights, before[1])


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_searched_as_if_they_were_alone(name):
    block = torch.randn(64, 1200, generator=torch.Generator().manual_seed(0))
    whole = searched(name, block, 16, ScaleFormat.LOG8)
    for start in (0, 496, 1184):
        rows = slice(start, start + 16)
        part = searched(name, block[:, rows].contiguous(), 16, ScaleFormat.LOG8)
        assert torch.equal(whole.stored[rows], part.stored)
        assert torch.equal(whole.zero_points[rows], part.zero_points)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), form=st.sampled_from(FORMATS), exponent=st.integers(-25, 25))
def test_a_power_of_two_moves_scales_and_nothing_else(name, seed, form, exponent):
    block = torch.randn(32, 16, generator=torch.Generator().manual_seed(seed))
    grid = searched(name, block, form.n_levels, ScaleFormat.LOG8)
    moved = searched(name, torch.ldexp(block, torch.tensor(exponent)), form.n_levels, ScaleFormat.LOG8)
    assert torch.equal(moved.stored, grid.stored + 8 * exponent)
    assert torch.equal(moved.zero_points, grid.zero_points)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("quantizer", QUANTIZERS.names())
def test_every_quantizer_takes_its_scales_from_the_range(quantizer, name):
    """Of the first group, which no feedback has reached yet."""
    block = torch.randn(32, 48, generator=torch.Generator().manual_seed(0))
    method = QUANTIZERS.get(quantizer)(RANGES.get(name)())
    feedback = method.prepare(torch.eye(32))
    choices = torch.full((1, 3), CANDIDATES.index(INT4), dtype=torch.uint8)
    codes = method.quantize(block, feedback, choices, scale_format=ScaleFormat.LOG8)
    expected = searched(name, block, 16, ScaleFormat.LOG8, feedback.column_weights)
    assert torch.equal(codes.scales[0], expected.stored)
    assert torch.equal(codes.zero_points[0], expected.zero_points)


@pytest.mark.parametrize("name", NAMES)
def test_measurement_uses_the_range_of_the_quantizer(name):
    block = torch.randn(64, 48, generator=torch.Generator().manual_seed(0))
    columns = Columns(block, torch.ones(64), scale_floor(block), ScaleFormat.LOG8)
    errors = QUANTIZERS.get("rtn")(RANGES.get(name)()).engine.errors(columns, group_size=64)
    expected = searched(name, block, 16, ScaleFormat.LOG8).error
    assert torch.equal(errors[CANDIDATES.index(INT4), 0], expected)


@pytest.mark.parametrize("name", NAMES)
def test_every_range_says_what_it_is(name):
    method = RANGES.get(name)
    assert issubclass(method, Range)
    assert method.status in ("stable", "experimental")
    assert method.summary
