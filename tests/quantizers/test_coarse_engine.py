"""Scales of a tile, a channel or a whole weight: shared, of least error, and measured as they are used."""

import numpy as np
import pytest
import torch

from laq.core.formats import CANDIDATES
from laq.core.formats.integer import INT2, INT4
from laq.core.groups import TileGrid
from laq.core.packing import check_packed, section_specs
from laq.core.qtensor import QTensor
from laq.core.scale_units import ScalePer
from laq.core.scheme import ScaleFormat
from laq.kernels.reference import dequantize, pack
from laq.kernels.scales import expanded
from laq.quantizers import QUANTIZERS, quantizer_of
from laq.quantizers.common.dequantize import dequantize_columns
from laq.quantizers.common.engine import Columns
from laq.quantizers.common.engines import engine_of
from laq.ranges import RANGES
from laq.ranges.common.grid import scale_floor, zero_point_bounds
from laq.ranges.mse import Mse

COARSE = [per for per in ScalePer if per is not ScalePer.GROUP]
RANGE_NAMES = [name for name in RANGES.names() if RANGES.get(name).serves_units]
SCALES = [one for one in ScaleFormat if one is not ScaleFormat.LOG4]
every_unit = pytest.mark.parametrize("per", COARSE, ids=lambda per: per.value)
COLUMNS, ROWS, GROUP_SIZE = 192, 48, 64


def weight_of(seed=0):
    """Rows of very different size, a row of zeros."""
    weight = torch.randn(COLUMNS, ROWS, generator=torch.Generator().manual_seed(seed))
    weight *= torch.exp2(torch.linspace(-1, 1, ROWS))
    weight[:, 5] = 0
    return weight


def everywhere(*formats):
    """One format a row block."""
    choices = torch.tensor([CANDIDATES.index(form) for form in formats], dtype=torch.uint8)
    return choices.expand(COLUMNS // GROUP_SIZE, -1).contiguous()


def units_of(per, values):
    """[columns, rows] by unit: [n_units, elements of each]."""
    tiles = values.view(COLUMNS // GROUP_SIZE, GROUP_SIZE, ROWS // 16, 16)
    return {
        ScalePer.TILE: tiles.permute(0, 2, 1, 3).reshape(-1, GROUP_SIZE * 16),
        ScalePer.CHANNEL: values.T,
        ScalePer.TENSOR: values.reshape(1, -1),
    }[per]


def quantized(name, per, choices, *, range_name="mse", scale_format=ScaleFormat.LOG8):
    method = quantizer_of(name, range_name, per)
    weight, inputs = weight_of(), torch.randn(400, COLUMNS, generator=torch.Generator().manual_seed(1))
    feedback = method.prepare(inputs.T @ inputs / 400)
    return weight, method.quantize(weight, feedback, choices, scale_format=scale_format)


@every_unit
@pytest.mark.parametrize("form", [INT2, INT4], ids=lambda form: form.name)
def test_no_scale_and_zero_point_of_a_unit_leave_less(per, form):
    """Over all eighths of an octave up to what covers it, and the legal zero points next to the exact one."""
    weight, costs = weight_of(), torch.rand(COLUMNS, generator=torch.Generator().manual_seed(2)) + 0.1
    columns = Columns(weight, costs, scale_floor(weight), ScaleFormat.LOG8)
    errors = engine_of(Mse(), per).errors(columns, group_size=GROUP_SIZE)
    by_row = errors[CANDIDATES.index(form)]  # [groups, rows]
    found = {
        ScalePer.TILE: by_row.view(-1, ROWS // 16, 16).sum(2).flatten(),
        ScalePer.CHANNEL: by_row.sum(0),
        ScalePer.TENSOR: by_row.sum()[None],
    }[per]
    units, of_costs = units_of(per, weight), units_of(per, costs[:, None].expand(-1, ROWS))
    low, high = units.amin(1).clamp(max=0), units.amax(1).clamp(min=0)
    step, lowest, highest = zero_point_bounds(form.n_levels)
    exact = torch.where(high > low, -low / (high - low) * (form.n_levels - 1), 1.0) / step
    around = [exact] if form.n_levels > 8 else [exact.floor(), exact.floor() + 1]
    least = torch.full_like(found, torch.inf)
    for zero in around:
        zeros = (zero.round() * step).clamp(lowest, highest)[:, None]
        for eighth in range(-8 * 6, 8 * 6):
            scale = 2.0 ** (eighth / 8)
            codes = (units / scale + zeros).round().clamp(0, form.n_levels - 1)
            left = (((codes - zeros) * scale - units).square() * of_costs).sum(1)
            covers = scale * (form.n_levels - 1) > 2 ** (1 / 8) * (high - low)
            least = torch.where(covers & (high > low), least, torch.minimum(least, left))
    assert (found <= 1.001 * least + 1e-9).all()


@every_unit
@pytest.mark.parametrize("range_name", RANGE_NAMES)
@pytest.mark.parametrize("scale_format", SCALES, ids=lambda one: one.value)
def test_what_is_measured_is_what_rounding_leaves(per, range_name, scale_format):
    weight = weight_of()
    method = quantizer_of("rtn", range_name, per)
    feedback = method.prepare(torch.eye(COLUMNS))
    choices = everywhere(INT4, INT4, INT4)
    codes = method.quantize(weight, feedback, choices, scale_format=scale_format)
    left = (dequantize_columns(codes, choices, scale_format) - weight).square()
    columns = Columns(weight, torch.ones(COLUMNS), scale_floor(weight), scale_format)
    errors = method.engine.errors(columns, group_size=GROUP_SIZE)
    expected = left.view(-1, GROUP_SIZE, ROWS).sum(1)
    torch.testing.assert_close(errors[CANDIDATES.index(INT4)], expected, rtol=1e-3, atol=1e-6)


@every_unit
@pytest.mark.parametrize("name", QUANTIZERS.names())
def test_every_quantizer_shares_scales_and_packs(per, name):
    forms = (INT4, INT4, INT4) if per is ScalePer.TENSOR else (INT4, INT2, INT4)
    choices = everywhere(*forms)
    _, codes = quantized(name, per, choices)
    tensor = qtensor_of(codes, choices, per, ScaleFormat.LOG8)
    packed = pack(tensor)  # asserts that what is shared agrees
    check_packed(packed, name="w")
    restored = dequantize_columns(codes, choices, ScaleFormat.LOG8)
    assert np.array_equal(dequantize(packed), restored.T.numpy())


def qtensor_of(codes, choices, per, scale_format):
    return QTensor(
        TileGrid(ROWS, COLUMNS, GROUP_SIZE),
        scale_format,
        choices.T.contiguous().numpy(),
        codes.codes.T.contiguous().numpy(),
        codes.scales.T.contiguous().numpy(),
        codes.zero_points.T.contiguous().numpy(),
        None,
        None,
        scale_per=per,
    )


@every_unit
@pytest.mark.parametrize("scale_format", SCALES, ids=lambda one: one.value)
def test_stored_bytes_are_the_predicted_ones_and_expand_to_the_same_values(per, scale_format):
    choices = everywhere(INT4, CANDIDATES[0], INT4)
    _, codes = quantized("gptq", per, choices, scale_format=scale_format)
    packed = pack(qtensor_of(codes, choices, per, scale_format))
    specs = section_specs(
        packed.grid, scale_format, choices.T.contiguous().numpy(), has_row_permutation=False, scale_per=per
    )
    assert {spec.name: spec.shape for spec in specs} == {n: a.shape for n, a in packed.sections().items()}
    n_entries = {ScalePer.TILE: 6, ScalePer.CHANNEL: 32, ScalePer.TENSOR: 1}[per]
    assert packed.scales.size == packed.zero_points.size == n_entries
    wide = expanded(packed)
    assert wide.scale_per is ScalePer.GROUP
    check_packed(wide, name="w")
    assert np.array_equal(dequantize(wide), dequantize(packed))
    if scale_format is not ScaleFormat.FLOAT16 and per is not ScalePer.CHANNEL:
        assert wide.scale_format is ScaleFormat.LOG4, "the smallest form"
