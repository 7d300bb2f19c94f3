"""The native kernels search and round as torch does: the same bits on every tier and number of threads."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from laq.core.errors import FormatError, RequestError
from laq.core.formats import CANDIDATES, Integer, Palette, formats_of
from laq.core.formats.table import PALETTE_BYTES
from laq.core.groups import GROUP_SIZES, TILE_ROWS, TileGrid
from laq.core.importance import Importance
from laq.core.scheme import ScaleFormat
from laq.kernels import native
from laq.quantizers import QUANTIZERS
from laq.quantizers.common.engine import Columns
from laq.quantizers.common.engines import engine_of
from laq.quantizers.common.mixed_engine import MixedEngine
from laq.quantizers.common.native_engine import NativeEngine
from laq.quantizers.common.palettes import with_palettes
from laq.quantizers.common.sorting import sort_weight, sorted_hessian
from laq.quantizers.common.torch_engine import TorchEngine
from laq.ranges.absmax import AbsMax
from laq.ranges.common.grid import scale_floor
from laq.ranges.mse import Mse
from laq.sensitivity.common.tile_losses import Tiled, tile_losses

LIBRARY = native.library()
pytestmark = pytest.mark.usefixtures("tier_is_put_back")
needs_library = pytest.mark.skipif(LIBRARY is None, reason="native kernels are not built here")
FIELDS = ("codes", "scales", "zero_points", "errors")


def same_bits(one, other):
    one, other = one.numpy(), other.numpy()
    return (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())


def each_tier():
    for tier in LIBRARY.tiers:
        LIBRARY.use_tier(tier)
        yield NativeEngine(LIBRARY)


def columns_of(generator, shape, exponent):
    """Rows of many kinds: normal, of one sign, constant, zero, with outliers, tiny beside large ones."""
    values = generator.standard_normal(shape)
    kinds = generator.integers(0, 8, shape[1])
    values[:, kinds == 1] = np.abs(values[:, kinds == 1])
    values[:, kinds == 2] = -np.abs(values[:, kinds == 2]) - 1
    values[:, kinds == 3] = generator.standard_normal((kinds == 3).sum())
    values[:, kinds == 4] = 0
    values[generator.integers(shape[0]), kinds == 5] *= 1000
    values[:, kinds == 6] *= 1e-9
    values[:, kinds == 7] = np.round(values[:, kinds == 7] * 2) / 2  # ties
    return torch.from_numpy(np.clip(np.ldexp(values, exponent), -1.7e38, 1.7e38).astype(np.float32))


@st.composite
def problems(draw, largest=110):
    """A matrix of whole tiles, column weights, group size and scale format.

    Above 2 ** 110 squares would be infinite in float32, and with a weight of zero no numbers.
    """
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    group_size = draw(st.sampled_from(GROUP_SIZES))
    shape = draw(st.integers(1, 3)) * group_size, draw(st.integers(1, 5)) * TILE_ROWS
    matrix = columns_of(generator, shape, draw(st.sampled_from([0, -3, 9, -30, 30, -140, -75, largest])))
    weights = generator.uniform(0, 1, shape[0]) ** 4 * 10.0 ** draw(st.integers(-12, 6))
    weights[generator.uniform(size=shape[0]) < 0.1] = 0
    return (
        matrix,
        torch.from_numpy(weights.astype(np.float32)),
        group_size,
        draw(st.sampled_from(ScaleFormat)),
    )


def palettes_of(matrix, *, shared=False):
    """Any bytes: of all row blocks, or of each."""
    n = 1 if shared else matrix.shape[1] // TILE_ROWS
    return torch.randint(0, 256, (n, PALETTE_BYTES), generator=torch.Generator().manual_seed(n)).to(
        torch.uint8
    )


@needs_library
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(problem=problems(), threads=st.sampled_from([1, 2, 5]))
def test_errors_have_the_same_bits(problem, threads):
    matrix, weights, group_size, scale_format = problem
    LIBRARY.set_threads(threads)
    columns = Columns(matrix, weights, scale_floor(matrix), scale_format, palettes_of(matrix))
    expected = TorchEngine().errors(columns, group_size=group_size)
    for kernels in each_tier():
        assert same_bits(kernels.errors(columns, group_size=group_size), expected)


@needs_library
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    problem=problems(largest=60),
    feedback=st.booleans(),
    threads=st.sampled_from([1, 2, 5]),
    seed=st.integers(0, 999),
)
def test_rounding_has_the_same_bits(problem, feedback, threads, seed):
    matrix, weights, group_size, scale_format = problem
    LIBRARY.set_threads(threads)
    generator = np.random.default_rng(seed)
    tiles = generator.integers(0, len(CANDIDATES), matrix.shape[1] // TILE_ROWS)
    choices = torch.from_numpy(tiles.astype(np.uint8))
    factor = torch.from_numpy(generator.normal(0, 0.2, (group_size, group_size)).astype(np.float32)).triu()
    factor.diagonal().abs_().add_(0.5)
    used = factor.T.contiguous().T if feedback else None  # as triangular solvers return it
    palettes = palettes_of(matrix, shared=seed % 2 == 0)
    columns = Columns(matrix, weights, scale_floor(matrix), scale_format, palettes)
    columns = columns.part(slice(-group_size, None))
    block = columns.matrix
    before = block.clone()
    expected = TorchEngine().round(columns, choices, factor=used)
    for kernels in each_tier():
        found = kernels.round(columns, choices, factor=used)
        for field in FIELDS:
            assert same_bits(getattr(found, field), getattr(expected, field)), field
    assert same_bits(block, before)


@needs_library
def test_only_formats_that_are_asked_for_are_searched():
    matrix = columns_of(np.random.default_rng(0), (64, 48), 0)
    columns = Columns(matrix, torch.ones(64), scale_floor(matrix), ScaleFormat.LOG8)
    allowed = formats_of("integer,palette")
    every = TorchEngine().errors(columns, group_size=64)
    assert [torch.isinf(every[i]).all().item() for i in range(len(CANDIDATES))] == [
        isinstance(candidate, Palette) for candidate in CANDIDATES
    ]
    for kernels in (TorchEngine(), *each_tier()):
        found = kernels.errors(columns, group_size=64, allowed=allowed)
        for i, candidate in enumerate(CANDIDATES):
            wanted = isinstance(candidate, Integer)
            assert same_bits(found[i], every[i]) if wanted else torch.isinf(found[i]).all()


@needs_library
def test_palettes_that_are_not_given_are_refused():
    columns = Columns(torch.zeros(32, 16), torch.ones(32), torch.zeros(16), ScaleFormat.LOG8)
    choices = torch.tensor([[c.name for c in CANDIDATES].index("palette3")], dtype=torch.uint8)
    with pytest.raises(RequestError):
        NativeEngine(LIBRARY).round(columns, choices, factor=None)


@needs_library
def test_matrices_may_be_parts_of_wider_ones():
    wide = columns_of(np.random.default_rng(0), (64, 96), 0)
    part = wide[:, 32:80]
    columns = Columns(part, torch.ones(64), scale_floor(part), ScaleFormat.LOG8)
    alone = replace(columns, matrix=part.clone())
    for kernels in each_tier():
        found = kernels.errors(columns, group_size=64)
        assert same_bits(found, kernels.errors(alone, group_size=64))


@needs_library
def test_calls_from_several_python_threads_do_not_mix():
    LIBRARY.set_threads(2)
    kernels, generator = NativeEngine(LIBRARY), np.random.default_rng(0)
    several = [columns_of(generator, (128, 320), 0) for _ in range(4)]

    def errors(matrix):
        columns = Columns(matrix, torch.ones(128), scale_floor(matrix), ScaleFormat.LOG8)
        return kernels.errors(columns, group_size=64)

    expected = [errors(matrix) for matrix in several]
    with ThreadPoolExecutor(4) as threads:
        found = threads.map(errors, several * 8)
    assert all(same_bits(one, expected[i % 4]) for i, one in enumerate(found))


@pytest.fixture
def in_torch(monkeypatch):
    """Return a function that runs another one without the native kernels."""

    def run(function):
        monkeypatch.setenv(native.ENVIRONMENT, native.WITHOUT)
        native.library.cache_clear()
        try:
            assert isinstance(engine_of(Mse()), TorchEngine)
            return function()
        finally:
            monkeypatch.undo()
            native.library.cache_clear()

    return run


@needs_library
@pytest.mark.parametrize("name", QUANTIZERS.names())
@pytest.mark.parametrize("scale_format", ScaleFormat)
def test_methods_and_curves_are_the_same_with_and_without_kernels(in_torch, name, scale_format):
    """Feedback between groups is a product in torch on both paths."""
    assert isinstance(engine_of(Mse()), NativeEngine)
    generator = np.random.default_rng(0)
    inputs = generator.standard_normal((900, 300)) @ np.triu(generator.uniform(-0.1, 0.2, (300, 300)), -1)
    second = (inputs.T @ inputs / 900).astype(np.float32)
    importance = Importance(second, np.ones(100, np.float32), np.full(100, 1e6), np.full(300, 1e6))
    grid = TileGrid(100, 300, 64)
    hessian = sorted_hessian(importance, grid, None)
    values = torch.from_numpy(generator.standard_normal((100, 300)).astype(np.float32))
    weight = sort_weight(values, importance, grid, hessian=hessian, rows=None, columns=None)
    method = QUANTIZERS.get(name)()
    feedback = with_palettes(method.prepare(hessian), [weight], scale_format)
    tiles = generator.integers(0, len(CANDIDATES), (grid.n_groups, grid.n_row_blocks))
    choices = torch.from_numpy(tiles.astype(np.uint8))

    def codes():
        return method.quantize(weight.matrix, feedback, choices, scale_format=scale_format)

    def curves():
        return tile_losses(Tiled(weight, method, feedback, importance, None, scale_format))

    native_codes, torch_codes = codes(), in_torch(codes)
    for field in ("codes", "scales", "zero_points"):
        assert same_bits(getattr(native_codes, field), getattr(torch_codes, field)), field
    assert np.array_equal(curves(), in_torch(curves))


@needs_library
@pytest.mark.parametrize("scale_format", ScaleFormat)
@pytest.mark.parametrize("feedback", [False, True])
def test_other_ranges_leave_other_formats_to_the_kernels_with_the_bits_of_torch(scale_format, feedback):
    generator = np.random.default_rng(0)
    without_palettes = [i for i, each in enumerate(CANDIDATES) if not isinstance(each, Palette)]
    block = columns_of(generator, (64, 16 * len(without_palettes)), 0)
    choices = torch.tensor(without_palettes, dtype=torch.uint8)
    columns = Columns(block, torch.ones(64), scale_floor(block), scale_format)
    factor = torch.eye(64) + 0.1 * torch.ones(64, 64).triu(1) if feedback else None
    mixed = engine_of(AbsMax())
    assert isinstance(mixed, MixedEngine)
    found = mixed.round(columns, choices, factor=factor)
    expected = TorchEngine(AbsMax()).round(columns, choices, factor=factor)
    for field in FIELDS:
        assert same_bits(getattr(found, field), getattr(expected, field)), field


def test_without_kernels_every_range_runs_in_torch(in_torch):
    assert isinstance(in_torch(lambda: engine_of(AbsMax())), TorchEngine)


def source(**changes):
    values, floor = torch.zeros(64, 16), torch.zeros(16)
    sizes = {
        "n_rows": 16,
        "n_columns": 64,
        "stride": 16,
        "group_size": 64,
        "scale_format": native.SCALES_LOG8,
    }
    wide = native.formats([native.Format(4, 16, 0, 5)])
    addresses = {"values": values.data_ptr(), "column_weights": values.data_ptr(), "floors": floor.data_ptr()}
    return native.Source(**sizes | addresses | {"formats": wide, "n_formats": 1} | changes), (values, floor)


@needs_library
@pytest.mark.parametrize(
    "changes",
    [
        {"group_size": 48},
        {"n_rows": 17},
        {"n_columns": 96},
        {"stride": 8},
        {"scale_format": 4},
        {"formats": native.formats([native.Format(4, 0, 0, 5)])},
        {"formats": native.formats([native.Format(8, 257, 0, 5)])},
        {"formats": native.formats([native.Format(4, 16, 5, 5)])},
        {"formats": native.formats([native.Format(4, 16, -1, 5)])},
        {"formats": native.formats([native.Format(7, 16, 0, 5)])},
        {"formats": native.formats([native.Format(23, 16, 0, 5)])},
        {"formats": native.formats([native.Format(20, 16, -65, 5)])},
        {"formats": native.formats([native.Format(37, 16, 0, 5)])},
        {"formats": native.formats([native.Format(52, 17, 0, 5)])},
        {"formats": native.formats([native.Format(36, 16, 0, 5)])},  # no palettes
    ],
    ids=str,
)
def test_sizes_out_of_range_are_refused(changes):
    asked, _kept = source(**changes)
    out = torch.zeros(1, 4, 32)
    with pytest.raises((FormatError, RequestError)):
        LIBRARY.errors(asked, out.data_ptr())
    assert not out.any()


@needs_library
def test_format_out_of_range_is_refused():
    asked, _kept = source()
    choices, out = torch.ones(1, dtype=torch.uint8), torch.zeros(64, 16)
    places = dict.fromkeys(("codes", "scales", "zero_points", "errors"), out.data_ptr())
    with pytest.raises(RequestError):
        LIBRARY.round(asked, native.Rounding(choices=choices.data_ptr(), factor=None, **places))


@pytest.mark.parametrize("name", ["nf4", "fp4", "trits"])
def test_no_power_of_two_leaves_less_than_the_one_chosen_for_a_table(name):
    (index,) = (i for i, candidate in enumerate(CANDIDATES) if candidate.name == name)
    matrix = torch.randn(64, 320, generator=torch.Generator().manual_seed(0))
    weights = torch.rand(64, generator=torch.Generator().manual_seed(1)) + 0.1
    columns = Columns(matrix, weights, scale_floor(matrix), ScaleFormat.E8M0)
    found = engine_of(Mse()).errors(columns, group_size=64)[index, 0]
    entries = torch.tensor(CANDIDATES[index].levels, dtype=torch.float32)
    left = []
    for octave in range(-12, 6):
        distance = (matrix[..., None] - entries * 2.0**octave).abs().amin(-1)
        left.append(weights @ distance.square())
    torch.testing.assert_close(found, torch.stack(left).amin(0))
