"""Curves are losses: they fall with bits, rise with importance, and forbid what samples cannot support."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from laq.core.formats import CANDIDATES, formats_of
from laq.core.groups import TileGrid
from laq.core.importance import FLOOR_SUPPORT, Importance
from laq.core.scheme import ScaleFormat
from laq.kernels.reference import dequantize, pack
from laq.quantizers import QUANTIZERS
from laq.quantizers.common.encode import encode
from laq.quantizers.common.sorting import sort_weight, sorted_hessian
from laq.sensitivity.common.tile_losses import Tiled, tile_losses

SHAPE = (48, 128)
ABSENT, INT2, INT4, INT8, TRELLIS2, TRELLIS3, TRELLIS4 = 0, 3, 5, 8, 10, 11, 12
NF4, FP4, PALETTE2, PALETTE3, PALETTE4, TRITS, RESIDUAL = 15, 16, 17, 18, 19, 20, 22


def importance_of(rows=None, support=1e6):
    generator = np.random.default_rng(0)
    inputs = generator.standard_normal((1000, 4)) @ generator.standard_normal((4, SHAPE[1]))
    inputs = (inputs + 2 * generator.standard_normal((1000, SHAPE[1]))) * np.linspace(2, 0.3, SHAPE[1])
    hessian = (inputs.T @ inputs / 1000).astype(np.float32)
    rows = np.ones(SHAPE[0], np.float32) if rows is None else rows
    return Importance(hessian, rows, np.full(SHAPE[0], support), np.full(SHAPE[1], support))


def measured(name="gptq", importance=None):
    importance = importance or importance_of()
    grid = TileGrid(*SHAPE, 64)
    values = torch.randn(*SHAPE, generator=torch.Generator().manual_seed(0))
    hessian = sorted_hessian(importance, grid, None)
    weight = sort_weight(values, importance, grid, hessian=hessian, rows=None, columns=None)
    method = QUANTIZERS.get(name)()
    feedback = method.prepare(weight.hessian)
    losses = tile_losses(Tiled(weight, method, feedback, importance, None, ScaleFormat.LOG8))
    return losses, weight, method, feedback


@pytest.mark.parametrize("name", QUANTIZERS.names())
def test_every_tile_has_a_finite_positive_loss_that_falls_with_the_levels(name):
    losses, *_ = measured(name)
    assert losses.shape == (len(CANDIDATES), 3, 2)
    assert np.isfinite(losses).all()
    assert (losses > 0).all()
    whole = losses.sum((1, 2))
    for family in (whole[INT2 : INT8 + 1], whole[INT8 + 1 : NF4], whole[PALETTE2 : PALETTE4 + 1]):
        assert (np.diff(family) < 0).all()


@pytest.mark.parametrize("name", QUANTIZERS.names())
@pytest.mark.parametrize(
    "choice",
    [INT2, INT4, INT8, TRELLIS2, TRELLIS3, TRELLIS4, NF4, FP4, PALETTE2, PALETTE3, PALETTE4, TRITS, RESIDUAL],
)
def test_predicted_loss_is_near_the_loss_of_the_encoded_weight(name, choice):
    losses, weight, method, feedback = measured(name)
    tiles = np.full((3, 2), choice, np.uint8)
    (tensor,) = encode([weight], [tiles], method, feedback, columns=None, scale_format=ScaleFormat.LOG8)
    restored = torch.from_numpy(dequantize(pack(replace(tensor, row_permutation=None))))
    error = (restored.T - weight.matrix[: SHAPE[1], : SHAPE[0]]).double()
    true = 0.5 * float((((weight.hessian.double() @ error) * error).sum(0) * weight.rows).sum())
    assert 0.6 < float(losses[choice].sum()) / true < 1.7


@pytest.mark.parametrize("formats", ["integer", "fp4", "binary,palette", "residual_binary"])
def test_only_formats_that_are_asked_for_are_measured(formats):
    losses, weight, method, feedback = measured()
    allowed = formats_of(formats)
    found = tile_losses(Tiled(weight, method, feedback, importance_of(), None, ScaleFormat.LOG8, allowed))
    assert np.isinf(found[~np.array(allowed)]).all()
    np.testing.assert_allclose(found[1:][np.array(allowed)[1:]], losses[1:][np.array(allowed)[1:]], rtol=0.3)


def test_loss_is_proportional_to_the_importance_of_rows():
    plain, *_ = measured()
    heavy, *_ = measured(importance=importance_of(rows=np.full(SHAPE[0], 4, np.float32)))
    np.testing.assert_allclose(heavy, 4 * plain, rtol=1e-3)


def test_rows_that_do_not_matter_cost_nothing():
    rows = np.ones(SHAPE[0], np.float32)
    rows[:16] = 0
    losses, *_ = measured(importance=importance_of(rows=rows))
    assert not losses[:, 0].any()
    assert losses[:, 1:].all()


def test_too_few_samples_forbid_less_than_two_bits():
    losses, *_ = measured(importance=importance_of(support=FLOOR_SUPPORT / 2))
    narrow = np.array([candidate.n_levels < 4 for candidate in CANDIDATES])
    assert np.isinf(losses[narrow]).all()
    assert np.isfinite(losses[~narrow]).all()


def test_support_is_judged_tile_by_tile():
    importance = importance_of()
    importance.row_support[16:32] = 0
    losses, *_ = measured(importance=importance)
    assert np.isinf(losses[ABSENT, 1]).all()
    assert np.isfinite(losses[ABSENT, [0, 2]]).all()
