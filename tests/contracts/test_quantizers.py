"""What every quantizer promises, checked the day its file appears."""

import numpy as np
import pytest
import torch

from laq.core.formats import CANDIDATES
from laq.core.groups import GROUP_SIZES, TILE_ROWS, TileGrid
from laq.core.importance import Importance
from laq.core.packing import CODE_BITS, check_packed
from laq.core.qtensor import zero_point_code, zero_point_value
from laq.core.scheme import ScaleFormat
from laq.kernels.reference import dequantize, pack
from laq.quantizers import QUANTIZERS, Codes, Feedback, Quantizer
from laq.quantizers.common.clip_search import dequantize_columns
from laq.quantizers.common.encode import encode
from laq.quantizers.common.sorting import sort_weight, sorted_hessian

NAMES = QUANTIZERS.names()
ROWS = 48
N_GROUPS = 3
ALL_LEVELS = [float(candidate.n_levels) for candidate in CANDIDATES]


def every_method(test):
    test = pytest.mark.parametrize("name", NAMES)(test)
    test = pytest.mark.parametrize("group_size", GROUP_SIZES)(test)
    return pytest.mark.parametrize("scale_format", ScaleFormat, ids=lambda scale_format: scale_format.value)(
        test
    )


def inputs_of(columns, seed=0):
    """Correlated inputs with a few strong columns; [n, columns]."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(4 * columns, 8, generator=generator) @ torch.randn(8, columns, generator=generator)
    noise = torch.randn(4 * columns, columns, generator=generator)
    return (shared + noise) * torch.linspace(2, 0.2, columns)


def hessian_of(columns, seed=0):
    inputs = inputs_of(columns, seed)
    return inputs.T @ inputs / len(inputs)


def weight_of(columns, rows=ROWS, seed=0):
    weight = torch.randn(columns, rows, generator=torch.Generator().manual_seed(seed))
    weight[0] *= 5
    weight[:, 1] = weight[:, 1].abs()
    weight[:, 2] *= 1e-3
    return weight


def mixed_levels(rows=ROWS, n_groups=N_GROUPS):
    """Every candidate in turn, constant over the 16 rows of a tile."""
    tiles = torch.tensor(ALL_LEVELS)[
        (torch.arange(n_groups)[:, None] * 4 + torch.arange(rows // TILE_ROWS)) % 9
    ]
    return tiles.repeat_interleave(TILE_ROWS, 1)


def run(name, weight, n_levels, hessian, scale_format):
    method = QUANTIZERS.get(name)()
    feedback = method.prepare(hessian)
    codes = method.quantize(weight, feedback, n_levels, scale_format=scale_format)
    return codes, dequantize_columns(codes.codes, codes.scales, codes.zero_points, scale_format)


def loss_of(weight, restored, hessian):
    error = (restored - weight).double()
    return float(((hessian.double() @ error) * error).sum())


@every_method
def test_codes_fit_their_levels_and_zero_points_can_be_stored(name, group_size, scale_format):
    columns, n_levels = N_GROUPS * group_size, mixed_levels()
    codes, _ = run(name, weight_of(columns), n_levels, hessian_of(columns), scale_format)
    assert isinstance(codes, Codes)
    assert (codes.codes.dtype, codes.zero_points.dtype) == (torch.uint8, torch.float32)
    assert codes.scales.dtype == (torch.int16 if scale_format is ScaleFormat.LOG8 else torch.float16)
    assert (codes.codes.view(N_GROUPS, group_size, ROWS) < n_levels[:, None]).all()
    bits = np.array([CODE_BITS[ALL_LEVELS.index(n)] for n in n_levels.flatten().tolist()], np.uint8)
    zeros = codes.zero_points.flatten().numpy()
    present = bits > 0
    stored = zero_point_code(zeros[present], bits[present])
    assert (stored < (1 << bits[present].astype(int))).all()
    assert np.array_equal(zero_point_value(stored, bits[present]), zeros[present])


@every_method
def test_absent_tiles_are_zero(name, group_size, scale_format):
    columns = N_GROUPS * group_size
    n_levels = torch.full((N_GROUPS, ROWS), 16.0)
    n_levels[1, :16] = 1
    codes, restored = run(name, weight_of(columns), n_levels, hessian_of(columns), scale_format)
    here = slice(group_size, 2 * group_size)
    assert not codes.codes[here, :16].any()
    assert not restored[here, :16].any()
    assert restored[here, 16:].any()


@every_method
def test_nothing_but_absent_tiles_is_zero_throughout(name, group_size, scale_format):
    columns = N_GROUPS * group_size
    codes, restored = run(
        name, weight_of(columns), torch.ones(N_GROUPS, ROWS), hessian_of(columns), scale_format
    )
    assert not codes.codes.any()
    assert not restored.any()


@every_method
@pytest.mark.parametrize("n_levels", [4.0, 16.0, 256.0])
def test_error_stays_within_the_spacing_of_each_group(name, group_size, scale_format, n_levels):
    """With independent inputs nothing is fed back: an error is half a step, or what clipping cuts off."""
    weight, columns = weight_of(group_size), group_size
    levels = torch.full((1, ROWS), n_levels)
    _, restored = run(name, weight, levels, torch.eye(columns), scale_format)
    span = weight.amax(0).clamp(min=0) - weight.amin(0).clamp(max=0)
    share = {4.0: 0.8, 16.0: 0.5, 256.0: 0.2}[n_levels]
    assert ((restored - weight).abs() <= share * span).all()
    assert ((restored - weight).square().sum(0) <= weight.square().sum(0)).all()


@every_method
def test_same_input_gives_the_same_codes_and_is_left_alone(name, group_size, scale_format):
    columns = N_GROUPS * group_size
    weight, hessian, n_levels = weight_of(columns), hessian_of(columns), mixed_levels()
    before = [tensor.clone() for tensor in (weight, hessian, n_levels)]
    method = QUANTIZERS.get(name)()
    feedback = method.prepare(hessian)
    kept = feedback.column_weights.clone(), None if feedback.factor is None else feedback.factor.clone()
    first = method.quantize(weight, feedback, n_levels, scale_format=scale_format)
    second = QUANTIZERS.get(name)().quantize(weight, feedback, n_levels, scale_format=scale_format)
    for field in ("codes", "scales", "zero_points"):
        assert torch.equal(getattr(first, field), getattr(second, field))
    assert all(torch.equal(a, b) for a, b in zip(before, (weight, hessian, n_levels), strict=True))
    assert torch.equal(kept[0], feedback.column_weights)
    assert kept[1] is None or torch.equal(kept[1], feedback.factor)


@every_method
def test_more_levels_are_never_much_worse(name, group_size, scale_format):
    columns = N_GROUPS * group_size
    weight, hessian = weight_of(columns), hessian_of(columns)
    losses = []
    for candidate in CANDIDATES:
        n_levels = torch.full((N_GROUPS, ROWS), float(candidate.n_levels))
        losses.append(loss_of(weight, run(name, weight, n_levels, hessian, scale_format)[1], hessian))
    # one bit holds no zero beside the others, so that it may lose more than an absent tile
    rising = [
        c.name
        for c, before, after in zip(CANDIDATES[2:], losses[1:-1], losses[2:], strict=True)
        if after > 1.1 * before
    ]
    assert rising == []
    assert losses[2] < losses[0]
    assert losses[-1] < 1e-2 * losses[3]


@every_method
def test_rows_are_quantized_independently_of_each_other(name, group_size, scale_format):
    columns = N_GROUPS * group_size
    weight, hessian, n_levels = weight_of(columns), hessian_of(columns), mixed_levels()
    _, whole = run(name, weight, n_levels, hessian, scale_format)
    _, part = run(name, weight[:, 16:32].contiguous(), n_levels[:, 16:32].contiguous(), hessian, scale_format)
    # sums run in another order, so that a few codes at a tie may differ
    assert (whole[:, 16:32] == part).float().mean() > 0.9
    mine, its = (loss_of(weight[:, 16:32], found, hessian) for found in (whole[:, 16:32], part))
    assert mine == pytest.approx(its, rel=0.05)


@pytest.mark.parametrize("scale_format", ScaleFormat)
@pytest.mark.parametrize("name", NAMES)
def test_encoded_weights_pack_and_dequantize(name, scale_format):
    generator = np.random.default_rng(0)
    grid = TileGrid(40, 150, 64)
    second = hessian_of(150).numpy()
    importance = Importance(second, np.ones(40, np.float32), np.full(40, 1e3), np.full(150, 1e3))
    columns = generator.permutation(150).astype(np.uint16)
    weight = torch.randn(40, 150, generator=torch.Generator().manual_seed(0))
    rows = generator.permutation(40).astype(np.uint16)
    method, hessian = QUANTIZERS.get(name)(), sorted_hessian(importance, grid, columns)
    sorted_weight = sort_weight(weight, importance, grid, hessian=hessian, rows=rows, columns=columns)
    choices = np.full((3, 3), 8, np.uint8)
    feedback = method.prepare(hessian)
    (tensor,) = encode(
        [sorted_weight], [choices], method, feedback, columns=columns, scale_format=scale_format
    )
    packed = pack(tensor)
    check_packed(packed, name="w")
    assert np.abs(dequantize(packed) - weight.numpy()).max() < 0.1


@pytest.mark.parametrize("name", NAMES)
def test_column_weights_are_positive_and_one_a_column(name):
    feedback = QUANTIZERS.get(name)().prepare(hessian_of(64))
    assert isinstance(feedback, Feedback)
    assert feedback.column_weights.shape == (64,)
    assert (feedback.column_weights > 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_every_quantizer_says_what_it_is(name):
    method = QUANTIZERS.get(name)
    assert issubclass(method, Quantizer)
    assert method.status in ("stable", "experimental")
    assert method.summary


@pytest.mark.parametrize("scale_format", ScaleFormat, ids=lambda scale_format: scale_format.value)
@pytest.mark.parametrize("n_levels", ALL_LEVELS)
@pytest.mark.parametrize("name", NAMES)
def test_all_zero_group_dequantizes_to_zero(name, n_levels, scale_format):
    weight = weight_of(64)
    weight[:, 5] = 0
    _, restored = run(name, weight, torch.full((1, ROWS), n_levels), torch.eye(64), scale_format)
    assert not restored[:, 5].any()


@pytest.mark.parametrize("small", [0.0, 1e-12])
@pytest.mark.parametrize("name", NAMES)
def test_group_far_smaller_than_its_neighbours_can_be_stored(name, small):
    grid = TileGrid(16, 128, 64)
    weight = torch.randn(16, 128, generator=torch.Generator().manual_seed(0))
    weight[:, 64:] *= small
    importance = Importance(np.eye(128, dtype=np.float32), np.ones(16, np.float32), np.ones(16), np.ones(128))
    method, hessian = QUANTIZERS.get(name)(), sorted_hessian(importance, grid, None)
    sorted_weight = sort_weight(weight, importance, grid, hessian=hessian, rows=None, columns=None)
    feedback = method.prepare(hessian)
    choices = np.full((1, 2), 5, np.uint8)
    (tensor,) = encode(
        [sorted_weight], [choices], method, feedback, columns=None, scale_format=ScaleFormat.LOG8
    )
    restored = dequantize(pack(tensor))
    assert np.abs(restored[:, 64:]).max() <= 1e-6
