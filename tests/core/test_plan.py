"""Plans survive the disk, count their bytes, and are refused when damaged."""

import base64
import json
import zlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laq.core.errors import FormatError
from laq.core.formats import CANDIDATES
from laq.core.groups import TileGrid
from laq.core.packing import section_specs
from laq.core.permutation import index_dtype
from laq.core.plan import PLAN_VERSIONS, Plan, WeightPlan
from laq.core.scale_units import ScalePer
from laq.core.scheme import ScaleFormat
from laq.core.target import Unit


def plan_of(seed=0, shapes=((40, 100), (17, 100))):
    generator = np.random.default_rng(seed)
    weights = []
    for index, shape in enumerate(shapes):
        grid = TileGrid(*shape, 32)
        choices = generator.integers(0, len(CANDIDATES), (grid.n_row_blocks, grid.n_groups)).astype(np.uint8)
        rows = generator.permutation(shape[0]).astype(index_dtype(shape[0])) if index % 2 else None
        weights.append(WeightPlan(f"w{index}", grid, choices, rows, "columns" if shape[1] == 100 else ""))
    columns = {"columns": generator.permutation(100).astype(np.uint16)}
    return Plan(
        tuple(weights), columns, Unit.TILE, ScaleFormat.LOG8, "gptq", 9000, 8000, 5700, 0.125, "source", "hqq"
    )


@given(
    seed=st.integers(0, 2**32),
    shapes=st.lists(st.tuples(st.integers(1, 60), st.integers(1, 200)), max_size=4),
)
def test_plans_survive_saving(tmp_path_factory, seed, shapes):
    path = tmp_path_factory.getbasetemp() / "plan.json"
    plan = plan_of(seed, shapes)
    plan.save(path)
    opened = Plan.open(path)
    assert opened.summary() == plan.summary()
    assert np.array_equal(opened.column_permutations["columns"], plan.column_permutations["columns"])
    for mine, other in zip(plan.weights, opened.weights, strict=True):
        assert (mine.name, mine.grid, mine.column_order) == (other.name, other.grid, other.column_order)
        assert np.array_equal(mine.choices, other.choices)
        assert other.choices.dtype == np.uint8
        assert (mine.row_permutation is None) == (other.row_permutation is None)
        assert mine.row_permutation is None or np.array_equal(mine.row_permutation, other.row_permutation)


@pytest.mark.parametrize(("per", "version"), [(ScalePer.GROUP, 1), (ScalePer.TILE, 3)])
def test_what_scales_serve_survives_saving_in_a_version_that_knows_it(tmp_path, per, version):
    path = tmp_path / "plan.json"
    replace(plan_of(), scale_per=per).save(path)
    assert Plan.open(path).scale_per is per
    assert json.loads(path.read_text())["version"] == version


def test_plan_is_one_line_a_weight(tmp_path):
    plan_of().save(tmp_path / "plan.json")
    lines = (tmp_path / "plan.json").read_text().splitlines()
    assert [line[:9] for line in lines if '"name": "w' in line] == ['{"choices'] * 2


def test_same_plan_gives_the_same_bytes(tmp_path):
    plan_of().save(tmp_path / "a")
    plan_of().save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_histogram_counts_every_tile():
    weight = plan_of().weights[0]
    histogram = weight.histogram()
    assert sum(histogram.values()) == weight.grid.n_tiles
    assert all(
        n == (weight.choices == [c.name for c in CANDIDATES].index(name)).sum()
        for name, n in histogram.items()
    )


def test_weight_size_is_the_sum_of_its_sections():
    for weight in plan_of().weights:
        has_rows = weight.row_permutation is not None
        specs = section_specs(weight.grid, ScaleFormat.LOG8, weight.choices, has_row_permutation=has_rows)
        assert weight.size_bytes(ScaleFormat.LOG8) == sum(spec.size_bytes for spec in specs)


def test_bits_per_weight_count_the_whole_archive():
    assert plan_of().bpw == pytest.approx(8 * 8000 / 5700)


def change(**fields):
    def damage(content):
        content.update(fields)

    return damage


def change_weight(**fields):
    def damage(content):
        content["weights"][1].update(fields)

    return damage


def forget(field):
    def damage(content):
        del content[field]

    return damage


DAMAGES = {
    "another kind": change(kind="stats"),
    "a later version": change(version=PLAN_VERSIONS[-1] + 1),
    "no weights": forget("weights"),
    "weights of another type": change(weights=5),
    "no unit": forget("unit"),
    "an unknown unit": change(unit="galaxy"),
    "an unknown scale format": change(scale_format="log9"),
    "column permutations of another type": change(column_permutations=[]),
    "column permutation that is no text": change(column_permutations={"columns": 5}),
    "column permutation that repeats": change(column_permutations={"columns": "<u2:eJxjYGBgAAAABAAB"}),
    "an odd group size": change_weight(group_size=48),
    "a shape of three": change_weight(shape=[17, 100, 1]),
    "a shape of text": change_weight(shape=["17", "100"]),
    "a shape of nothing": change_weight(shape=[0, 100]),
    "choices that are no text": change_weight(choices=5),
    "choices that are not base64": change_weight(choices="|u1:%%%"),
    "choices that are not compressed": change_weight(choices="|u1:AAAA"),
    "choices of an object type": change_weight(choices="|O:eJxjAAAAAQAB"),
    "choices of another length": change_weight(choices="|u1:eJxjAAAAAQAB"),
    "row permutation of another length": change_weight(row_permutation="<u2:eJxjYAAAAAIAAQ=="),
    "unknown column order": change_weight(column_order="elsewhere"),
    "no name": lambda content: content["weights"][1].pop("name"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_damaged_plan_is_a_format_error(tmp_path, damage):
    path = tmp_path / "plan.json"
    plan_of().save(path)
    content = json.loads(path.read_text())
    damage(content)
    path.write_text(json.dumps(content))
    with pytest.raises(FormatError, match="not a plan"):
        Plan.open(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, "null", "5", "\xff"])
def test_file_that_is_no_plan_is_a_format_error(tmp_path, text):
    (tmp_path / "plan.json").write_text(text, encoding="latin-1")
    with pytest.raises(FormatError, match="not a plan"):
        Plan.open(tmp_path / "plan.json")


def test_missing_file_is_a_format_error(tmp_path):
    with pytest.raises(FormatError, match="not a plan"):
        Plan.open(tmp_path / "plan.json")


def test_format_that_does_not_exist_is_a_format_error(tmp_path):
    path = tmp_path / "plan.json"
    plan_of().save(path)
    content = json.loads(path.read_text())
    beyond = plan_of().weights[0].choices.copy()
    beyond[0, 0] = len(CANDIDATES)
    content["weights"][0]["choices"] = "|u1:" + base64.b64encode(zlib.compress(beyond.tobytes())).decode()
    path.write_text(json.dumps(content))
    with pytest.raises(FormatError, match="unknown format"):
        Plan.open(path)


def test_plans_of_before_ranges_are_of_mse(tmp_path):
    path = tmp_path / "plan.json"
    plan_of().save(path)
    content = json.loads(path.read_text())
    assert content.pop("range") == "hqq"
    path.write_text(json.dumps(content))
    assert Plan.open(path).range == "mse"
