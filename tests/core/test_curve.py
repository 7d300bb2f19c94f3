"""Curves survive the disk; damaged ones are refused."""

import json
from dataclasses import replace

import numpy as np
import pytest

from laq.core.curve import Curves, WeightCurves
from laq.core.errors import FormatError
from laq.core.formats import CANDIDATES
from laq.core.groups import TileGrid
from laq.core.scale_units import ScalePer
from laq.core.scheme import ScaleFormat, StoredAs
from laq.core.storage import HEADER_NAME


def curves():
    generator = np.random.default_rng(0)
    weights = []
    for name, shape, rows in (
        ("a", (40, 100), None),
        ("b", (17, 100), generator.permutation(17).astype(np.uint16)),
    ):
        grid = TileGrid(*shape, 32)
        losses = generator.random((len(CANDIDATES), grid.n_row_blocks, grid.n_groups)).astype(np.float32)
        losses[0] = np.inf
        weights.append(WeightCurves(name, grid, losses, rows, "a:input.column_permutation"))
    order = {"a:input.column_permutation": generator.permutation(100).astype(np.uint16)}
    return Curves(
        tuple(weights), order, ScaleFormat.FLOAT16, "gptq", 1000, 20000, 5700, "source", "data", "hqq"
    )


def test_curves_survive_saving(tmp_path):
    saved = curves()
    saved.save(tmp_path / "curves")
    opened = Curves.open(tmp_path / "curves")
    for name in (
        "scale_format",
        "quantizer",
        "range",
        "fixed_bytes",
        "original_bytes",
        "n_params",
        "source_hash",
        "data_hash",
    ):
        assert getattr(opened, name) == getattr(saved, name)
    for mine, other in zip(saved.weights, opened.weights, strict=True):
        assert (mine.name, mine.grid, mine.column_order) == (other.name, other.grid, other.column_order)
        assert np.array_equal(mine.loss_nats, other.loss_nats)
    assert opened.weights[0].row_permutation is None
    assert np.array_equal(opened.weights[1].row_permutation, saved.weights[1].row_permutation)
    key = "a:input.column_permutation"
    assert np.array_equal(opened.column_permutations[key], saved.column_permutations[key])


def test_how_tiles_are_stored_survives_saving(tmp_path):
    first = curves()
    assert first.stored == StoredAs((32,), ScaleFormat.FLOAT16)
    grid = TileGrid(40, 100, 64)
    losses = np.ones((len(CANDIDATES), grid.n_row_blocks, grid.n_groups), np.float32)
    other = replace(first.weights[0], grid=grid, loss_nats=losses)
    replace(first, alternatives=(other,), scale_per=ScalePer.CHANNEL).save(tmp_path / "curves")
    stored = Curves.open(tmp_path / "curves").stored
    assert stored == StoredAs((32, 64), ScaleFormat.FLOAT16, ScalePer.CHANNEL)
    assert (first.stored.group_size, stored.group_size) == ("32", "auto")


def forget(field):
    def damage(header, arrays):
        del arrays
        del header[field]

    return damage


def transforms_as_text(header, arrays):
    header["transforms"] = "awq"


def odd_group_size(header, arrays):
    del arrays
    header["weights"][0][3] = 48


def other_shape(header, arrays):
    del arrays
    header["weights"][0][1] = 400


def text_shape(header, arrays):
    del arrays
    header["weights"][0][1] = "40"


def lose_loss(header, arrays):
    del header
    del arrays["loss:a"]


def lose_columns(header, arrays):
    del header
    del arrays["columns:a:input.column_permutation"]


def unknown_scale_format(header, arrays):
    del arrays
    header["scale_format"] = "log9"


def unknown_order(header, arrays):
    del arrays
    header["weights"][0][4] = "elsewhere"


DAMAGES = [
    forget("weights"),
    forget("n_params"),
    transforms_as_text,
    odd_group_size,
    other_shape,
    text_shape,
    lose_loss,
    lose_columns,
    unknown_scale_format,
    unknown_order,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_curves_are_a_format_error(tmp_path, damage):
    folder = tmp_path / "curves"
    curves().save(folder)
    content = json.loads((folder / HEADER_NAME).read_text())
    damage(content["header"], content["arrays"])
    (folder / HEADER_NAME).write_text(json.dumps(content))
    with pytest.raises(FormatError, match="curves"):
        Curves.open(folder)


def test_curves_of_before_transforms_are_read_with_none(tmp_path):
    curves().save(tmp_path / "curves")
    file = tmp_path / "curves" / HEADER_NAME
    content = json.loads(file.read_text())
    del content["header"]["transforms"]
    file.write_text(json.dumps(content))
    assert Curves.open(tmp_path / "curves").transforms == ()


@pytest.mark.parametrize("n", [9, 15], ids=["trellises", "tables"])
def test_curves_of_before_formats_are_read_without_them(tmp_path, n):
    saved = curves()
    older = tuple(replace(weight, loss_nats=weight.loss_nats[:n]) for weight in saved.weights)
    replace(saved, weights=older).save(tmp_path / "curves")
    opened = Curves.open(tmp_path / "curves")
    for before, after in zip(older, opened.weights, strict=True):
        assert np.array_equal(after.loss_nats[:n], before.loss_nats)
        assert np.isinf(after.loss_nats[n:]).all()
    cut = tuple(replace(weight, loss_nats=weight.loss_nats[:2]) for weight in saved.weights)
    replace(saved, weights=cut).save(tmp_path / "cut")
    with pytest.raises(FormatError, match="losses have shape"):
        Curves.open(tmp_path / "cut")


def test_curves_of_before_ranges_are_of_mse(tmp_path):
    folder = tmp_path / "curves"
    curves().save(folder)
    content = json.loads((folder / HEADER_NAME).read_text())
    assert content["header"].pop("range") == "hqq"
    (folder / HEADER_NAME).write_text(json.dumps(content))
    assert Curves.open(folder).range == "mse"
