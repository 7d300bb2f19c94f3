"""Plans count every byte, finer units predict less loss, and the control keeps the losses it shuffles."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laq.allocation import ALLOCATORS, common
from laq.allocation.common import allocate, size_range
from laq.core.curve import Curves, WeightCurves
from laq.core.errors import BudgetError, RequestError
from laq.core.formats import CANDIDATES, Integer
from laq.core.groups import GROUP_SIZES, TileGrid
from laq.core.scale_units import ScalePer
from laq.core.scheme import ScaleFormat
from laq.core.target import UNITS_UNDER, Unit

FIXED_BYTES = 12_345
LEVELS = np.array([candidate.n_levels for candidate in CANDIDATES], float)


def curves_of(
    seed=0,
    shapes=((100, 300), (64, 64), (17, 300)),
    group_size=64,
    n_forbidden=0,
    scale_format=ScaleFormat.LOG8,
):
    """Losses that fall with the square of the levels, tiles of very different weight; some may not go low."""
    generator = np.random.default_rng(seed)
    weights = []
    for index, shape in enumerate(shapes):
        grid = TileGrid(*shape, group_size)
        tiles = (grid.n_row_blocks, grid.n_groups)
        losses = 10.0 ** generator.normal(-4, 1.5, tiles) / LEVELS[:, None, None] ** 2
        losses = losses.astype(np.float32)
        for _ in range(n_forbidden):
            losses[:3, generator.integers(tiles[0]), generator.integers(tiles[1])] = np.inf
        rows = generator.permutation(shape[0]).astype(np.uint16) if index % 2 == 0 else None
        weights.append(WeightCurves(f"w{index}", grid, losses, rows, ""))
    n_params = sum(rows * columns for rows, columns in shapes)
    return Curves(
        tuple(weights), {}, scale_format, "rtn", FIXED_BYTES, 4 * n_params + FIXED_BYTES, n_params, "s", "d"
    )


def at_share(curves, share, *, unit=Unit.TILE, floor=True):
    smallest, _ = size_range(curves, unit=unit, floor=floor)
    return smallest + int(share * 8 * curves.n_params / 8)


@pytest.mark.parametrize("allocator", ALLOCATORS.names())
@pytest.mark.parametrize("unit", Unit)
@given(
    seed=st.integers(0, 2**32),
    share=st.floats(0, 1),
    floor=st.booleans(),
    group_size=st.sampled_from(GROUP_SIZES),
    scale_format=st.sampled_from(ScaleFormat),
)
def test_size_is_fixed_bytes_plus_sections_and_within_budget(
    allocator, unit, seed, share, floor, group_size, scale_format
):
    curves = curves_of(seed, group_size=group_size, n_forbidden=2, scale_format=scale_format)
    budget = at_share(curves, share, unit=unit, floor=floor)
    plan = allocate(curves, budget, unit=unit, allocator=allocator, floor=floor)
    assert plan.size_bytes <= budget
    assert plan.size_bytes == FIXED_BYTES + sum(w.size_bytes(plan.scale_format) for w in plan.weights)
    losses = [
        np.take_along_axis(c.loss_nats, w.choices[None], 0)
        for c, w in zip(curves.weights, plan.weights, strict=True)
    ]
    assert plan.predicted_loss_nats == pytest.approx(
        sum(float(part.sum(dtype=np.float64)) for part in losses), rel=1e-6
    )


@pytest.mark.parametrize("share", [0.1, 0.3, 0.6])
@pytest.mark.parametrize("seed", range(3))
def test_finer_units_predict_less_loss_at_the_same_bytes(seed, share):
    curves = curves_of(seed, shapes=((512, 512), (256, 512), (512, 128)))
    budget = at_share(curves, share)
    order = (Unit.TILE, Unit.ROW, Unit.TENSOR, Unit.NETWORK)
    found = [allocate(curves, budget, unit=unit).predicted_loss_nats for unit in order]
    assert found == sorted(found)
    assert found[0] < 0.8 * found[-1]


@pytest.mark.parametrize("unit", Unit)
def test_choices_are_shared_within_a_unit(unit):
    curves = curves_of(1)
    weights = allocate(curves, at_share(curves, 0.3), unit=unit).weights
    if unit is Unit.ROW:
        assert all((weight.choices == weight.choices[:, :1]).all() for weight in weights)
    if unit in (Unit.TENSOR, Unit.NETWORK):
        assert all(len(np.unique(weight.choices)) == 1 for weight in weights)
    if unit is Unit.NETWORK:
        assert len({int(weight.choices[0, 0]) for weight in weights}) == 1


@pytest.mark.parametrize("unit", Unit)
def test_rows_are_sorted_only_where_it_serves(unit):
    curves = curves_of(1)
    plan = allocate(curves, at_share(curves, 0.3), unit=unit)
    assert (plan.weights[0].row_permutation is not None) == (unit in (Unit.ROW, Unit.TILE))


def test_floor_keeps_every_tile_at_two_bits_or_more():
    curves = curves_of(2)
    plan = allocate(curves, at_share(curves, 0.05))
    assert all(CANDIDATES[c].n_levels >= 4 for w in plan.weights for c in np.unique(w.choices))
    free = allocate(curves, plan.budget_bytes, floor=False)
    assert any(CANDIDATES[c].n_levels < 4 for w in free.weights for c in np.unique(w.choices))
    assert free.predicted_loss_nats <= plan.predicted_loss_nats


def test_formats_that_are_not_allowed_are_never_chosen():
    curves = curves_of(2, n_forbidden=10)
    plan = allocate(curves, at_share(curves, 0.02, floor=False), floor=False)
    for weight, decided in zip(curves.weights, plan.weights, strict=True):
        assert np.isfinite(np.take_along_axis(weight.loss_nats, decided.choices[None], 0)).all()


@pytest.mark.parametrize("unit", [Unit.TILE, Unit.ROW, Unit.TENSOR])
def test_permuted_control_deals_out_the_same_losses(unit):
    curves = curves_of(3, n_forbidden=4)
    units = common.allocate.__globals__["_units"](curves, unit, formats="all", floor=False)
    dealt = common.allocate.__globals__["_permuted"](units, "permuted", 0)
    for candidate in range(len(CANDIDATES)):
        mine, its = np.sort(units.losses[candidate] / units.sizes), np.sort(dealt[candidate] / units.sizes)
        np.testing.assert_allclose(its, mine, rtol=1e-12)
    assert not np.array_equal(dealt, units.losses)


def test_permuted_control_costs_the_same_and_predicts_more_loss():
    curves = curves_of(4, shapes=((256, 512),))
    budget = at_share(curves, 0.3)
    plan, control = (allocate(curves, budget, control=control) for control in (None, "permuted"))
    assert control.size_bytes <= budget
    assert control.predicted_loss_nats > 2 * plan.predicted_loss_nats
    assert (
        allocate(curves, budget, control="permuted", seed=1).predicted_loss_nats
        != control.predicted_loss_nats
    )


@given(seed=st.integers(0, 100), share=st.floats(0, 0.2))
def test_permuted_control_never_chooses_what_is_not_allowed(seed, share):
    curves = curves_of(seed, n_forbidden=6)
    plan = allocate(curves, at_share(curves, share, floor=False), control="permuted", floor=False, seed=seed)
    assert np.isfinite(plan.predicted_loss_nats)


def test_unknown_control_is_refused():
    curves = curves_of()
    with pytest.raises(RequestError, match=r"unknown control 'shuffled'\nhint: .*permuted"):
        allocate(curves, at_share(curves, 0.3), control="shuffled")


@pytest.mark.parametrize("unit", Unit)
def test_budget_out_of_range_says_the_range(unit):
    curves = curves_of()
    smallest, largest = size_range(curves, unit=unit, floor=True)
    for budget in (smallest - 1, largest + 1, 0):
        with pytest.raises(
            BudgetError, match=f"possible are {smallest / 1e6:.2f} MB .* to {largest / 1e6:.2f} MB"
        ):
            allocate(curves, budget, unit=unit)
    for budget in (smallest, largest):
        assert allocate(curves, budget, unit=unit).size_bytes <= budget


def test_network_too_small_to_shrink_is_told_so():
    curves = curves_of(shapes=((2, 2),))
    with pytest.raises(BudgetError, match="cannot get smaller"):
        allocate(curves, 1000)


def test_allocation_needs_no_torch():
    code = "import sys, laq.allocation.common, laq.core.curve; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("formats", ["integer", "trellis", "palette"])
def test_a_family_of_formats_is_kept_to(formats):
    curves = curves_of(3)
    budget = curves.original_bytes // 5
    plan = allocate(curves, budget, formats=formats)
    used = {CANDIDATES[c].name.rstrip("0123456789") for w in plan.weights for c in np.unique(w.choices)}
    assert used <= {"int" if formats == "integer" else formats}
    together = allocate(curves, budget, formats="integer,trellis,palette")
    assert together.predicted_loss_nats <= plan.predicted_loss_nats


def test_plans_use_integers_and_trellises_by_default():
    curves = curves_of(3)
    budget = curves.original_bytes // 5
    plans = [allocate(curves, budget, formats=formats) for formats in ("all", "integer,trellis")]
    assert all(np.array_equal(a.choices, b.choices) for a, b in zip(*(p.weights for p in plans), strict=True))


@pytest.mark.parametrize("formats", ["ternary", "binary"])
def test_families_below_the_floor_have_none(formats):
    curves = curves_of(2)
    names = {
        CANDIDATES[c].name
        for w in allocate(curves, curves.original_bytes // 6, formats=formats).weights
        for c in np.unique(w.choices)
    }
    assert names <= {"absent", {"ternary": "trits", "binary": "int1"}[formats]}


def test_unknown_formats_are_refused_with_those_there_are():
    with pytest.raises(
        RequestError, match="unknown formats 'float'\nhint: choose one of: all, integer, trellis, palette"
    ):
        allocate(curves_of(1), 10_000, formats="float")


def test_curves_that_know_nothing_of_a_family_are_refused():
    curves = curves_of(2)
    unknown = np.array([not isinstance(c, Integer) for c in CANDIDATES])[:, None, None]
    old = [replace(w, loss_nats=np.where(unknown, np.inf, w.loss_nats)) for w in curves.weights]
    older = replace(curves, weights=tuple(old))
    assert allocate(older, curves.original_bytes // 5).size_bytes
    for formats in ("trellis", "integer,trellis"):
        with pytest.raises(RequestError, match="nothing is known of trellis"):
            allocate(older, curves.original_bytes // 5, formats=formats, floor=True)


@pytest.mark.parametrize("scale_format", [ScaleFormat.LOG8, ScaleFormat.FLOAT16, ScaleFormat.E8M0])
@pytest.mark.parametrize("per", ScalePer)
@settings(max_examples=8)
@given(seed=st.integers(0, 2**32), share=st.floats(0, 1))
def test_shared_scales_are_priced_as_they_are_stored(per, scale_format, seed, share):
    curves = replace(curves_of(seed, n_forbidden=2, scale_format=scale_format), scale_per=per)
    for unit in UNITS_UNDER[per]:
        smallest, _ = size_range(curves, unit=unit, formats="integer", floor=True)
        budget = smallest + int(share * curves.n_params)
        plan = allocate(curves, budget, unit=unit, formats="integer")
        stored = sum(weight.size_bytes(scale_format, per) for weight in plan.weights)
        assert plan.size_bytes == FIXED_BYTES + stored <= budget
        assert plan.scale_per is per
    for unit in set(Unit) - set(UNITS_UNDER[per]):
        with pytest.raises(RequestError, match=f"scale per {per.value} takes one format"):
            allocate(curves, budget, unit=unit, formats="integer")
