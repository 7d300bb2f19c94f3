"""What every quantizer promises, checked the day its file appears."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from laq.core.formats import CANDIDATES, TRELLISES
from laq.core.formats.trellis import MIDDLE, TAG
from laq.core.groups import GROUP_SIZES, TILE_ROWS, TileGrid
from laq.core.importance import Importance
from laq.core.packing import TAGS, ZERO_POINT_BITS, check_packed
from laq.core.qtensor import LOG4_SPAN, zero_point_code, zero_point_value
from laq.core.scheme import ScaleFormat
from laq.kernels.reference import dequantize, pack
from laq.quantizers import QUANTIZERS, Codes, Feedback, Quantizer
from laq.quantizers.common.dequantize import dequantize_columns
from laq.quantizers.common.encode import encode
from laq.quantizers.common.sorting import sort_weight, sorted_hessian

NAMES = QUANTIZERS.names()
ROWS = 48
N_GROUPS = 3
PALETTES = torch.tensor([[1, 86, 170, 255, *range(16, 256, 32), *range(8, 256, 16)]], dtype=torch.uint8)
"""Evenly spaced entries of 2, 3 and 4 bits."""

LEVELS = torch.tensor([candidate.n_levels for candidate in CANDIDATES])
INT1, INT2, INT3, INT4, INT8 = 1, 3, 4, 5, 8
NF4, FP4, PALETTE2, TRITS = 15, 16, 17, 20
RESIDUALS = range(21, 25)


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


def mixed(rows=ROWS, n_groups=N_GROUPS):
    """Every candidate in turn."""
    tiles = torch.arange(n_groups)[:, None] * 4 + torch.arange(rows // TILE_ROWS)
    return (tiles % len(CANDIDATES)).to(torch.uint8)


def everywhere(choice, n_groups=N_GROUPS):
    return torch.full((n_groups, ROWS // TILE_ROWS), choice, dtype=torch.uint8)


def run(name, weight, choices, hessian, scale_format):
    method = QUANTIZERS.get(name)()
    feedback = replace(method.prepare(hessian), palettes=PALETTES)
    codes = method.quantize(weight, feedback, choices, scale_format=scale_format)
    return codes, dequantize_columns(codes, choices, scale_format, PALETTES)


def loss_of(weight, restored, hessian):
    error = (restored - weight).double()
    return float(((hessian.double() @ error) * error).sum())


@every_method
def test_codes_fit_their_levels_and_zero_points_can_be_stored(name, group_size, scale_format):
    columns, choices = N_GROUPS * group_size, mixed()
    codes, _ = run(name, weight_of(columns), choices, hessian_of(columns), scale_format)
    assert isinstance(codes, Codes)
    assert (codes.codes.dtype, codes.zero_points.dtype) == (torch.uint8, torch.float32)
    assert codes.scales.dtype == (torch.int16 if scale_format.is_log else torch.float16)
    of_rows = choices.repeat_interleave(TILE_ROWS, 1)
    assert (codes.codes.view(N_GROUPS, group_size, ROWS) < LEVELS[of_rows.long()][:, None]).all()
    tags = TAGS[of_rows.flatten().numpy()]
    bits, zeros = ZERO_POINT_BITS[tags], codes.zero_points.flatten().numpy()
    assert (zeros[tags > TAG] == MIDDLE).all()
    present = bits > 0
    stored = zero_point_code(zeros[present], bits[present])
    assert (stored < (1 << bits[present].astype(int))).all()
    assert np.array_equal(zero_point_value(stored, bits[present]), zeros[present])


@every_method
def test_absent_tiles_are_zero(name, group_size, scale_format):
    columns = N_GROUPS * group_size
    choices = everywhere(INT4)
    choices[1, 0] = 0
    codes, restored = run(name, weight_of(columns), choices, hessian_of(columns), scale_format)
    here = slice(group_size, 2 * group_size)
    assert not codes.codes[here, :16].any()
    assert not restored[here, :16].any()
    assert restored[here, 16:].any()


@every_method
def test_nothing_but_absent_tiles_is_zero_throughout(name, group_size, scale_format):
    columns = N_GROUPS * group_size
    codes, restored = run(name, weight_of(columns), everywhere(0), hessian_of(columns), scale_format)
    assert not codes.codes.any()
    assert not restored.any()


@every_method
@pytest.mark.parametrize(("choice", "share"), [(INT2, 0.8), (INT4, 0.5), (INT8, 0.2)])
def test_error_stays_within_the_spacing_of_each_group(name, group_size, scale_format, choice, share):
    """With independent inputs nothing is fed back: an error is half a step, or what clipping cuts off."""
    weight, columns = weight_of(group_size), group_size
    _, restored = run(name, weight, everywhere(choice, 1), torch.eye(columns), scale_format)
    span = weight.amax(0).clamp(min=0) - weight.amin(0).clamp(max=0)
    if (
        scale_format is ScaleFormat.LOG4
    ):  # scales lie within 15 eighths of an octave of the largest of their tile
        widest = span.view(-1, TILE_ROWS).amax(1).repeat_interleave(TILE_ROWS)
        span = torch.maximum(span, widest * 2 ** (-LOG4_SPAN / 8))
    assert ((restored - weight).abs() <= share * span).all()
    assert ((restored - weight).square().sum(0) <= weight.square().sum(0)).all()


@every_method
def test_same_input_gives_the_same_codes_and_is_left_alone(name, group_size, scale_format):
    columns = N_GROUPS * group_size
    weight, hessian, choices = weight_of(columns), hessian_of(columns), mixed()
    before = [tensor.clone() for tensor in (weight, hessian, choices)]
    method = QUANTIZERS.get(name)()
    feedback = replace(method.prepare(hessian), palettes=PALETTES)
    kept = feedback.column_weights.clone(), None if feedback.factor is None else feedback.factor.clone()
    first = method.quantize(weight, feedback, choices, scale_format=scale_format)
    second = QUANTIZERS.get(name)().quantize(weight, feedback, choices, scale_format=scale_format)
    for field in ("codes", "scales", "zero_points"):
        assert torch.equal(getattr(first, field), getattr(second, field))
    assert all(torch.equal(a, b) for a, b in zip(before, (weight, hessian, choices), strict=True))
    assert torch.equal(kept[0], feedback.column_weights)
    assert kept[1] is None or torch.equal(kept[1], feedback.factor)


@every_method
def test_more_levels_are_never_much_worse(name, group_size, scale_format):
    columns = N_GROUPS * group_size
    weight, hessian = weight_of(columns), hessian_of(columns)
    losses = [
        loss_of(weight, run(name, weight, everywhere(i), hessian, scale_format)[1], hessian)
        for i in range(len(CANDIDATES))
    ]
    of_integers, of_trellises = losses[1 : INT8 + 1], losses[INT8 + 1 : NF4]
    of_palettes = losses[PALETTE2 : PALETTE2 + 3]
    # one bit holds no zero beside the others, so that it may lose more than an absent tile
    for family in (of_integers, of_trellises, of_palettes):
        assert all(after <= 1.1 * before for before, after in pairwise(family))
    assert of_integers[1] < losses[0]
    assert of_integers[-1] < 1e-2 * of_integers[2]
    assert of_trellises[-1] < 2e-2 * of_trellises[1]
    assert max(losses[NF4], losses[FP4]) < of_palettes[1]
    assert losses[TRITS] < losses[0]
    assert max(losses[i] for i in RESIDUALS) < losses[INT1]
    assert min(losses[i] for i in RESIDUALS) < 1.2 * losses[PALETTE2]


@every_method
@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_a_trellis_loses_less_than_integers_of_its_width(name, group_size, scale_format, bits):
    columns = N_GROUPS * group_size
    weight = torch.randn((columns, ROWS), generator=torch.Generator().manual_seed(bits))
    losses = [
        loss_of(
            weight,
            run(name, weight, everywhere(choice), torch.eye(columns), scale_format)[1],
            torch.eye(columns),
        )
        for choice in (CANDIDATES.index(TRELLISES[bits]), [INT1, INT2, INT3, INT4][bits - 1])
    ]
    far_apart = scale_format is ScaleFormat.E8M0  # scales that errors were not fitted for
    assert losses[0] < (1.0 if group_size == 32 or far_apart else 0.9) * losses[1]


@every_method
def test_row_blocks_are_quantized_independently_of_each_other(name, group_size, scale_format):
    columns = N_GROUPS * group_size
    weight, hessian, choices = weight_of(columns), hessian_of(columns), mixed()
    _, whole = run(name, weight, choices, hessian, scale_format)
    _, part = run(name, weight[:, 16:32].contiguous(), choices[:, 1:2].contiguous(), hessian, scale_format)
    # sums run in another order, so that a few codes at a tie may differ
    assert (whole[:, 16:32] == part).float().mean() > 0.9
    mine, its = (loss_of(weight[:, 16:32], found, hessian) for found in (whole[:, 16:32], part))
    assert mine == pytest.approx(its, rel=0.05)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("name", NAMES)
def test_learned_entries_of_siblings_are_their_own(name, bits):
    """Values of heavy tails lose less with them than evenly spaced."""
    grid, generator = TileGrid(64, 128, 64), torch.Generator().manual_seed(bits)
    importance = Importance(np.eye(128, dtype=np.float32), np.ones(64, np.float32), np.ones(64), np.ones(128))
    method, hessian = QUANTIZERS.get(name)(), sorted_hessian(importance, grid, None)
    squares = torch.randn(5, 64, 128, generator=generator).square().mean(0)
    normal = torch.randn(2, 64, 128, generator=generator)
    several = [normal[0], normal[1] / squares.sqrt()]  # Student's t, whose tails are heavier
    weights = [
        sort_weight(one, importance, grid, hessian=hessian, rows=None, columns=None) for one in several
    ]
    losses, found = {}, {}
    for choice in (PALETTE2 + bits - 2, [INT2, INT3, INT4][bits - 2]):
        choices = [np.full((4, 2), choice, np.uint8)] * 2
        options = {"columns": None, "scale_format": ScaleFormat.LOG8}
        found[choice] = [
            pack(t) for t in encode(weights, choices, method, method.prepare(hessian), **options)
        ]
        for one, packed in zip(several, found[choice], strict=True):
            check_packed(packed, name="w")
            losses.setdefault(choice, []).append(np.square(dequantize(packed) - one.numpy()).sum())
    learned, even = losses.values()
    assert learned[0] < 1.1 * even[0]  # normal values, where a zero point for each group does as well
    assert learned[1] < (1.1 if bits == 2 else 0.95) * even[1]
    first, second = (packed.palettes for packed in found[PALETTE2 + bits - 2])
    assert not np.array_equal(first, second)
    assert all(packed.palettes is None for packed in found[[INT2, INT3, INT4][bits - 2]])


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
@pytest.mark.parametrize("choice", range(len(CANDIDATES)))
@pytest.mark.parametrize("name", NAMES)
def test_all_zero_group_dequantizes_to_zero(name, choice, scale_format):
    """Where zero is no level to what nobody can tell from it beside its neighbours; with LOG4 to less."""
    weight = weight_of(64)
    weight[:, 5] = 0
    _, restored = run(name, weight, everywhere(choice, 1), torch.eye(64), scale_format)
    share = 2 ** (-LOG4_SPAN / 8) if scale_format is ScaleFormat.LOG4 else 1e-3
    below = 0 if choice <= INT8 else share * float(weight.abs().amax())
    assert float(restored[:, 5].abs().amax()) <= below


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
