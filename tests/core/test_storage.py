"""Folders are replaced as a whole or not at all; damaged values are refused."""

import json

import numpy as np
import pytest

from laq.core.errors import FormatError, RequestError
from laq.core.storage import (
    HEADER_NAME,
    FolderKind,
    open_value,
    replaced_folder,
    save_value,
    write_text_atomic,
)

MARKER = "laq.json"
KIND = FolderKind(MARKER, ("extra", "own"))


def files_of(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def write_ours(folder, content=b"old"):
    with replaced_folder(folder, KIND) as partial:
        (partial / MARKER).write_bytes(content)


def test_folder_appears_whole(tmp_path):
    with replaced_folder(tmp_path / "a" / "out", KIND) as partial:
        (partial / MARKER).write_bytes(b"new")
        assert not (tmp_path / "a" / "out").exists()
    assert files_of(tmp_path) == {"a/out/laq.json": b"new"}


def test_old_folder_is_replaced_with_all_its_files(tmp_path):
    write_ours(tmp_path / "out")
    (tmp_path / "out" / "extra").write_bytes(b"x")
    write_ours(tmp_path / "out", b"new")
    assert files_of(tmp_path) == {"out/laq.json": b"new"}


def interrupt(folder):
    with replaced_folder(folder, KIND) as partial:
        (partial / MARKER).write_bytes(b"half")
        raise KeyboardInterrupt


def test_interrupted_save_leaves_what_was_there(tmp_path):
    write_ours(tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        interrupt(tmp_path / "out")
    assert files_of(tmp_path) == {"out/laq.json": b"old"}


def test_interrupted_first_save_leaves_nothing(tmp_path):
    with pytest.raises(OSError, match="disk full"), replaced_folder(tmp_path / "out", KIND):
        raise OSError("disk full")
    assert list(tmp_path.iterdir()) == []


def test_failed_rename_puts_the_old_folder_back(tmp_path, monkeypatch):
    write_ours(tmp_path / "out")
    original = type(tmp_path).rename

    def rename(self, target):
        if ".partial-" in self.name and not self.name.endswith(".old"):
            raise OSError("no")
        return original(self, target)

    monkeypatch.setattr(type(tmp_path), "rename", rename)
    with pytest.raises(OSError, match="no"):
        write_ours(tmp_path / "out", b"new")
    assert files_of(tmp_path) == {"out/laq.json": b"old"}


def test_foreign_folder_is_left_untouched(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("precious")
    with pytest.raises(RequestError, match="not written by laq"):
        write_ours(tmp_path / "out")
    assert files_of(tmp_path) == {"out/thesis.tex": b"precious"}


def test_foreign_file_is_left_untouched(tmp_path):
    (tmp_path / "out").write_text("precious")
    with pytest.raises(RequestError, match="not written by laq"):
        write_ours(tmp_path / "out")
    assert (tmp_path / "out").read_text() == "precious"


def test_empty_folder_is_taken(tmp_path):
    (tmp_path / "out").mkdir()
    write_ours(tmp_path / "out", b"new")
    assert files_of(tmp_path) == {"out/laq.json": b"new"}


def test_text_is_replaced_in_one_step(tmp_path):
    write_text_atomic(tmp_path / "a" / "plan.json", "one")
    write_text_atomic(tmp_path / "a" / "plan.json", "two")
    assert files_of(tmp_path) == {"a/plan.json": b"two"}


@pytest.fixture
def folder(tmp_path):
    save_value(
        tmp_path / "value", "stats", {"n": 3}, {"a:b": np.arange(6.0).reshape(2, 3), "c": np.uint8([1])}
    )
    return tmp_path / "value"


def test_values_survive_saving(folder):
    header, arrays = open_value(folder, "stats")
    assert header == {"n": 3}
    assert arrays["a:b"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert arrays["c"].dtype == np.uint8


def test_opened_arrays_cannot_be_changed(folder):
    with pytest.raises(ValueError, match="read-only"):
        open_value(folder, "stats")[1]["c"][0] = 2


def test_another_kind_is_refused(folder):
    with pytest.raises(FormatError, match="expected a saved curves"):
        open_value(folder, "curves")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "[" * 100_000, "{}", '"x"', "\xff", '{"kind":"stats","version":1,"header":{}}']
)
def test_damaged_header_is_refused(folder, text):
    (folder / HEADER_NAME).write_text(text, encoding="latin-1")
    with pytest.raises(FormatError, match="not a saved stats"):
        open_value(folder, "stats")


def test_missing_folder_is_refused(tmp_path):
    with pytest.raises(FormatError, match="holds no stats"):
        open_value(tmp_path / "nowhere", "stats")


@pytest.mark.parametrize("n_kept", [0, 5, 40, 130])
def test_truncated_array_is_refused(folder, n_kept):
    file = folder / "00000.npy"
    file.write_bytes(file.read_bytes()[:n_kept])
    with pytest.raises(FormatError, match="damaged array"):
        open_value(folder, "stats")


def test_pickled_array_is_refused(folder):
    np.save(folder / "00000.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(FormatError, match="damaged array"):
        open_value(folder, "stats")


def test_array_outside_of_the_folder_is_refused(folder):
    content = json.loads((folder / HEADER_NAME).read_text())
    content["arrays"]["c"] = "../../secret.npy"
    (folder / HEADER_NAME).write_text(json.dumps(content))
    np.save(folder.parent / "secret.npy", np.ones(1))
    with pytest.raises(FormatError, match="damaged array"):
        open_value(folder, "stats")


@pytest.mark.parametrize("name", ["notes.txt", "own"])
def test_what_the_user_put_into_our_folder_is_not_deleted(tmp_path, name):
    out = tmp_path / "out"
    write_ours(out)
    if name == "own":
        (out / "own" / "deep").mkdir(parents=True)  # an allowed name, as a folder: ours
        write_ours(out, b"new")
        assert files_of(tmp_path) == {"out/laq.json": b"new"}
        return
    (out / name).write_text("precious")
    with pytest.raises(RequestError, match=name):
        write_ours(out, b"new")
    assert (out / name).read_text() == "precious"


def test_a_value_of_another_kind_is_not_replaced(tmp_path):
    save_value(tmp_path / "v", "stats", {}, {"a": np.zeros(2)})
    with pytest.raises(RequestError, match="holds stats, not curves"):
        save_value(tmp_path / "v", "curves", {}, {})
    assert open_value(tmp_path / "v", "stats")[1]["a"].tolist() == [0, 0]
