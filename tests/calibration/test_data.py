"""Three splits that share nothing; data that cannot be used are refused with what is needed."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from laq.calibration.data import (
    Splits,
    builtin_text,
    evaluation_batches,
    read_tokens,
    split_tokens,
    text_splits,
)
from laq.core.errors import DataError
from laq.networks import describe
from laq.steps import splits_of


class Letters:
    """A tokenizer of one token a byte."""

    def __call__(self, text, verbose=True):
        return {"input_ids": list(text.encode())}


@pytest.fixture
def network(llama):
    return describe(llama(vocab_size=256), tokenizer=Letters())


@given(
    n=st.integers(30, 5000),
    length=st.integers(1, 10),
    wanted=st.tuples(st.integers(800, 3000), st.integers(1, 800), st.integers(1, 800)),
)
def test_text_splits_share_no_token(n, length, wanted):
    splits = split_tokens(np.arange(n), wanted, length=length, source="text")
    parts = [
        torch.cat([b["input_ids"][0] for b in part])
        for part in (splits.calibration, splits.selection, splits.test)
    ]
    every = torch.cat(parts).tolist()
    assert len(set(every)) == len(every)
    for part, tokens in zip(parts, wanted, strict=True):
        assert length <= len(part) <= tokens + 2 * length
        assert (torch.diff(part.view(-1, length)) == 1).all()


def test_enough_text_gives_all_that_is_wanted():
    splits = split_tokens(np.arange(1000), (300, 100, 100), length=10, source="text")
    assert [len(part) for part in (splits.calibration, splits.selection, splits.test)] == [30, 10, 10]


def test_long_text_is_sampled_from_all_of_each_part():
    splits = split_tokens(np.arange(10_000), (300, 100, 100), length=10, source="text")
    starts = [int(batch["input_ids"][0, 0]) for batch in splits.calibration]
    assert starts == sorted(starts)
    assert starts[0] < 300
    assert starts[-1] > 5500


@given(n=st.integers(0, 29))
def test_text_too_short_for_three_sequences_is_refused_with_what_is_needed(n):
    with pytest.raises(DataError, match=r"mine: .*at least 30.*\nhint: give a longer text"):
        split_tokens(np.arange(n), (10, 10, 10), length=10, source="mine")


@pytest.mark.parametrize("n", [3, 4, 5, 10, 25])
def test_batches_are_split_without_overlap(network, n):
    batches = [(torch.tensor([i]),) for i in range(n)]
    splits = splits_of(network, batches)
    parts = [[int(b[0]) for b in part] for part in (splits.calibration, splits.selection, splits.test)]
    assert list(itertools.chain(*parts)) == list(range(n))
    assert all(parts)
    assert len(parts[0]) >= len(parts[1])


@pytest.mark.parametrize("n", [0, 1, 2])
def test_fewer_than_three_batches_are_refused(network, n):
    with pytest.raises(DataError, match=f"{n} batches.*at least 3"):
        splits_of(network, [(torch.ones(1),)] * n)


def test_default_text_is_the_same_for_every_call(network):
    assert builtin_text() == builtin_text()
    assert len(builtin_text()) > 100_000
    one, other = (text_splits(network, None, n_tokens=256, seed=seed) for seed in (0, 1))
    for mine, its in zip(one.calibration + one.test, other.calibration + other.test, strict=True):
        assert torch.equal(mine["input_ids"], its["input_ids"])
    assert one.source == "pydoc_data.topics"


def test_sequences_fit_the_context(network):
    splits = text_splits(network, None, n_tokens=256)
    assert {batch["input_ids"].shape for batch in splits.calibration} == {(1, 32)}


@pytest.mark.parametrize("bad", [256, 100_000, -1])
def test_token_ids_outside_of_the_vocabulary_are_refused(network, tmp_path, bad):
    np.save(tmp_path / "ids.npy", np.array([1, 2, bad] * 100))
    with pytest.raises(DataError, match="256"):
        read_tokens(network, tmp_path / "ids.npy")


def test_token_ids_are_read_from_numpy_and_safetensors(network, tmp_path):
    from safetensors.numpy import save_file

    ids = np.arange(96).reshape(3, 32)
    np.save(tmp_path / "ids.npy", ids.astype(np.int32))
    save_file({"input_ids": ids}, tmp_path / "ids.safetensors")
    for name in ("ids.npy", "ids.safetensors"):
        assert read_tokens(network, tmp_path / name).tolist() == list(range(96))


@pytest.mark.parametrize("array", [np.ones(5), np.array(["a"])])
def test_arrays_that_are_no_integers_are_refused(network, tmp_path, array):
    np.save(tmp_path / "ids.npy", array)
    with pytest.raises(DataError, match="expected integer token ids"):
        read_tokens(network, tmp_path / "ids.npy")


@pytest.mark.parametrize(
    ("name", "content"), [("ids.npy", b"junk"), ("text.txt", b"\xff\xfe\x00"), ("ids.npy", b"")]
)
def test_unreadable_files_are_refused(network, tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=name):
        read_tokens(network, tmp_path / name)


def test_damaged_safetensors_are_refused(network, tmp_path):
    from laq.core.errors import LaqError

    (tmp_path / "ids.safetensors").write_bytes(b"junk")
    with pytest.raises(LaqError, match=r"ids\.safetensors"):
        read_tokens(network, tmp_path / "ids.safetensors")


def test_missing_file_is_refused(network, tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_tokens(network, tmp_path / "nowhere.txt")


def test_folder_is_read_in_the_order_of_its_names(network, tmp_path):
    (tmp_path / "b.txt").write_text("two")
    (tmp_path / "a.txt").write_text("one")
    assert bytes(read_tokens(network, tmp_path).tolist()) == b"one\n\ntwo"


def test_text_without_a_tokenizer_is_refused(llama):
    with pytest.raises(DataError, match="no tokenizer"):
        text_splits(describe(llama()), None)


def test_self_sampled_text_is_fixed_by_the_seed(network):
    one, again, other = (text_splits(network, "self", n_tokens=64, seed=seed) for seed in (0, 0, 1))
    ids = [torch.cat([b["input_ids"] for b in splits.calibration]) for splits in (one, again, other)]
    assert torch.equal(ids[0], ids[1])
    assert not torch.equal(ids[0], ids[2])


def test_evaluation_takes_whole_sequences_from_the_start(network, tmp_path):
    np.save(tmp_path / "ids.npy", np.arange(100))
    batches = evaluation_batches(network, tmp_path / "ids.npy")
    assert torch.cat([b["input_ids"][0] for b in batches]).tolist() == list(range(96))
    assert len(evaluation_batches(network, tmp_path / "ids.npy", n_tokens=64)) == 2
    with pytest.raises(DataError, match="less than one sequence of 32"):
        evaluation_batches(network, tmp_path / "ids.npy", n_tokens=31)


def test_batches_held_out_are_kept_from_the_statistics_and_spread_evenly():
    splits = Splits(tuple(range(64)), (), (), "numbers")
    held = splits.holding_out()
    assert held.held_out == (8, 24, 40, 56)
    assert sorted(held.calibration + held.held_out) == list(range(64))
    assert splits.holding_out() == held
    assert len(Splits((1, 2), (), (), "two").holding_out().calibration) == 1
    with pytest.raises(DataError, match="one calibration batch"):
        Splits((1,), (), (), "one").holding_out()
