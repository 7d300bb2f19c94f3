"""Gains bring sums of curves to the KL of the whole network, and say how well."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from laq.core.curve import Curves
from laq.core.errors import DataError, FormatError, RequestError
from laq.core.gains import Gains, weight_classes
from laq.core.target import Unit
from laq.networks import describe
from laq.sensitivity.common.gain_fit import fit_gains, rank_correlation
from laq.sensitivity.common.mixes import (
    LEVELS,
    UNITS,
    MixRuns,
    calibrated,
    draw_mixes,
    gains_of,
    variant_plans,
)
from laq.steps import allocate, calibrate, measure

SAME = {unit.value: 1.0 for unit in Unit}


def synthetic(n_mixes, true_gains, *, noise=0.0, seed=0):
    """Losses by class over three decades, and the KL that gains make of them."""
    generator = np.random.default_rng(seed)
    losses = 10.0 ** generator.uniform(-3, 0, (n_mixes, len(true_gains)))
    losses *= 10.0 ** generator.uniform(-1.5, 0, (n_mixes, 1))
    return losses, losses @ true_gains * np.exp(noise * generator.standard_normal(n_mixes))


def fitted(losses, kl, units=None):
    units = np.zeros(len(kl), np.int64) if units is None else units
    return fit_gains(losses, kl, units, n_units=int(units.max()) + 1)


def predicted(fit, losses):
    return fit.predict(losses, np.zeros(len(losses), np.int64))


def test_one_common_gain_is_found_from_few_mixes():
    losses, kl = synthetic(9, np.full(6, 3.6))
    fit = fitted(losses, kl)
    np.testing.assert_allclose(np.exp(fit.log_gains), 3.6, rtol=0.02)


def test_gains_of_classes_are_told_apart():
    true_gains = np.array([1.3, 2.2, 4.0])
    fit = fitted(*synthetic(40, true_gains))
    np.testing.assert_allclose(np.exp(fit.log_gains), true_gains, rtol=0.1)
    held_losses, held_kl = synthetic(20, true_gains, seed=1)
    np.testing.assert_allclose(predicted(fit, held_losses), held_kl, rtol=0.1)


def test_units_have_gains_of_their_own():
    losses, kl = synthetic(40, np.full(4, 3.0), noise=0.02)
    units = np.arange(40) % 3
    fit = fitted(losses, kl * np.array([1.0, 0.8, 0.4])[units], units)
    np.testing.assert_allclose(np.exp(fit.log_units), [1, 0.8, 0.4], rtol=0.1)
    np.testing.assert_allclose(np.exp(fit.log_gains), 3.0, rtol=0.15)


def test_a_unit_of_no_mix_takes_the_common_gain():
    losses, kl = synthetic(24, np.full(3, 2.0))
    fit = fit_gains(losses, kl, np.zeros(24, np.int64), n_units=2)
    np.testing.assert_allclose(np.exp(fit.log_units), 1, rtol=0.02)


def test_one_mix_gone_wrong_moves_the_fit_little():
    losses, kl = synthetic(24, np.full(4, 2.0), noise=0.05)
    spoiled = kl.copy()
    spoiled[3] *= 20
    one, other = (predicted(fitted(losses, each), losses) for each in (kl, spoiled))
    assert np.median(np.abs(other / one - 1)) < 0.05


def test_a_class_that_no_mix_tells_apart_takes_the_common_gain():
    losses, kl = synthetic(16, np.full(3, 2.5))
    losses[:, 2] = 1e-12
    gains = np.exp(fitted(losses, kl).log_gains)
    assert gains[2] == pytest.approx(np.exp(np.log(gains[:2]).mean()), rel=0.1)


def test_rank_correlation_is_spearmans():
    one, other = np.array([1.0, 2.0, 3.0, 4.0]), np.array([2.0, 1.0, 4.0, 3.0])
    assert rank_correlation(one, other) == pytest.approx(0.6)
    assert rank_correlation(one, -one) == -1


def test_held_out_mixes_judge_what_others_made():
    losses, kl = synthetic(32, np.array([2.0, 2.0, 2.0]), noise=0.1)
    gains = gains_of(MixRuns(("a", "b", "c"), losses, kl, np.arange(32) % 3, 100))
    assert (gains.n_fitted, gains.n_held_out) == (24, 8)
    assert gains.median_error < 0.2 < gains.median_error_before
    assert gains.rank_correlation > 0.9
    spoiled = kl.copy()
    spoiled[3::4] *= 5
    other = gains_of(MixRuns(("a", "b", "c"), losses, spoiled, np.arange(32) % 3, 100))
    assert other.classes == gains.classes
    assert other.median_error > 0.7


def test_classes_are_roles_by_thirds_of_the_depth():
    names = [f"model.layers.{i}.mlp.up_proj.weight" for i in range(6)] + ["lm_head.weight"]
    found = list(weight_classes(names).values())
    assert found == ["up_proj/0"] * 2 + ["up_proj/1"] * 2 + ["up_proj/2"] * 2 + ["lm_head"]


def test_mixes_are_of_the_whole_network_near_one_size_and_the_same_for_a_seed():
    classes = [f"{role}/{band}" for role in "abcd" for band in range(3)]
    mixes = draw_mixes(classes, n_mixes=30, seed=3)
    assert mixes == draw_mixes(classes, n_mixes=30, seed=3)
    assert mixes != draw_mixes(classes, n_mixes=30, seed=4)
    assert [mix.unit for mix in mixes] == [0, 1, 2] * 10
    assert all(sorted(mix.variants) == classes for mix in mixes)
    variants = np.array([list(mix.variants.values()) for mix in mixes])
    assert all((row // len(LEVELS) == mix.unit).all() for row, mix in zip(variants, mixes, strict=True))
    levels = variants % len(LEVELS)
    assert (levels.max(1) - levels.min(1)).max() == 2
    assert np.bincount(levels.ravel(), minlength=len(LEVELS)).min() > 40


@pytest.fixture(scope="module")
def small():
    """A network of two layers that can be run in no time, its statistics and data of their own."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(96, 128), nn.ReLU(), nn.Linear(128, 64))
    data = torch.randn(640, 96, generator=torch.Generator().manual_seed(0))
    batches = list(data.split(64))
    network = describe(module)
    return network, calibrate(network, batches[:6]), batches[8:]


def test_gains_are_multiplied_into_curves_and_predict_for_plans(small, tmp_path):
    network, stats, batches = small
    plain = measure(network, stats, group_size=32)
    curves = measure(network, stats, group_size=32, mixes=12, batches=batches)
    gains = curves.gains
    assert gains is not None
    assert gains.n_fitted + gains.n_held_out == 12
    assert gains.n_tokens == 128
    assert gains.median_error < 0.5
    for before, after in zip(plain.weights, curves.weights, strict=True):
        gain = gains.classes[weight_classes([w.name for w in plain.weights])[before.name]]
        np.testing.assert_allclose(after.loss_nats, before.loss_nats * gain, rtol=1e-5)
    size = int(0.4 * curves.original_bytes)
    plan, own = (allocate(each, size=size, unit="network") for each in (curves, replace(curves, gains=None)))
    assert plan.predicted_loss_nats == pytest.approx(gains.predict(own.predicted_loss_nats, Unit.NETWORK))
    curves.save(tmp_path / "curves")
    assert Curves.open(tmp_path / "curves").gains == gains


@pytest.mark.parametrize("group_size", [32, 64])
def test_variants_grow_within_their_unit(small, group_size):
    network, stats, _ = small
    plans = variant_plans(measure(network, stats, group_size=group_size))
    assert [plan.unit for plan in plans[:: len(LEVELS)]] == list(UNITS)
    for start in range(0, len(plans), len(LEVELS)):
        sizes = [plan.size_bytes for plan in plans[start : start + len(LEVELS)]]
        assert sizes == sorted(sizes)
        assert len(set(sizes)) > 2
        assert sizes[-1] > 1.3 * sizes[0]
    assert all(len(set(weight.histogram())) == 1 for plan in plans[-len(LEVELS) :] for weight in plan.weights)


def test_gains_cannot_be_fitted_twice_or_from_nothing(small):
    network, stats, batches = small
    curves = measure(network, stats, group_size=32)
    with pytest.raises(RequestError, match="8 or more"):
        calibrated(curves, network, stats, batches, n_mixes=3)
    with pytest.raises(DataError, match="did not see"):
        calibrated(curves, network, stats, [], n_mixes=8)
    given = curves.with_gains(Gains({"0": 1.0, "2": 1.0, "0/0": 1.0, "2/2": 1.0}, SAME, 6, 2, 9, 1, 0, 0))
    with pytest.raises(RequestError, match="already"):
        calibrated(given, network, stats, batches, n_mixes=8)


@pytest.mark.parametrize(
    "damage",
    [{"units": SAME | {"row": float("nan")}}, {"classes": {"a": -2.0}}, {"units": {"tile": 1.0}}],
)
def test_damaged_gains_are_a_format_error(small, tmp_path, damage):
    network, stats, _ = small
    curves = measure(network, stats, group_size=32)
    names = weight_classes(weight.name for weight in curves.weights)
    good = Gains(dict.fromkeys(names.values(), 2.0), SAME, 6, 2, 9, 1.0, 0.1, 0.5)
    replace(curves, gains=replace(good, **damage)).save(tmp_path / "curves")
    with pytest.raises(FormatError, match="curves"):
        Curves.open(tmp_path / "curves")
