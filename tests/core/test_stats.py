"""Statistics add up, say how far they can be trusted, and survive the disk."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laq.core.errors import CalibrationError, FormatError
from laq.core.stats import Moments, Stats, Use
from laq.core.storage import HEADER_NAME


def moments_of(vectors):
    exact = vectors.astype(np.float64)
    second, fourth = exact.T @ exact / len(exact), (exact**4).mean(0)
    return Moments(second.astype(np.float32), fourth.astype(np.float32), len(vectors))


def squares_of(vectors):
    whole = moments_of(vectors)
    return Moments(whole.diagonal, whole.fourth, whole.n_samples)


def stats_of(vectors):
    moments = {"w:input": moments_of(vectors), "w:rows": squares_of(vectors[:, :2])}
    return Stats(moments, {"w": (Use("w:input", "w:rows"),)}, len(vectors), "hash")


@given(n=st.integers(2, 40), cut=st.floats(0.01, 0.99), seed=st.integers(0, 2**32))
def test_merged_moments_are_the_moments_of_all_data(n, cut, seed):
    vectors = np.random.default_rng(seed).standard_normal((n, 3)).astype(np.float32)
    first = min(max(1, int(cut * n)), n - 1)
    for of in (moments_of, squares_of):
        merged, whole = of(vectors[:first]).merge(of(vectors[first:])), of(vectors)
        assert merged.n_samples == n
        np.testing.assert_allclose(merged.second, whole.second, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(merged.fourth, whole.fourth, rtol=1e-5)
        np.testing.assert_allclose(merged.support, whole.support, rtol=1e-4)


def test_support_is_n_for_constant_size_and_one_for_a_single_spike():
    constant = squares_of(np.array([[1.0], [-1.0]] * 50))
    spike = squares_of(np.array([[0.0]] * 99 + [[7.0]]))
    assert constant.support.tolist() == pytest.approx([100])
    assert spike.support.tolist() == pytest.approx([1])


def test_support_is_zero_where_nothing_was_seen():
    assert squares_of(np.zeros((10, 2))).support.tolist() == [0, 0]


def test_diagonal_is_the_same_for_matrices_and_vectors():
    vectors = np.random.default_rng(0).standard_normal((20, 4))
    assert np.array_equal(moments_of(vectors).diagonal, squares_of(vectors).diagonal)


def test_merged_stats_cover_both_data_sets():
    vectors = np.random.default_rng(0).standard_normal((30, 4))
    merged, whole = stats_of(vectors[:10]).merge(stats_of(vectors[10:])), stats_of(vectors)
    assert merged.n_tokens == 30
    assert merged.uses == whole.uses
    for key, moments in whole.moments.items():
        np.testing.assert_allclose(merged.moments[key].second, moments.second, rtol=1e-5, atol=1e-6)


def test_stats_of_different_networks_do_not_merge():
    mine = stats_of(np.ones((3, 4)))
    other = Stats(mine.moments, {"v": mine.uses["w"]}, 3, "hash")
    with pytest.raises(CalibrationError, match="different networks"):
        mine.merge(other)


def test_stats_survive_saving(tmp_path):
    stats = stats_of(np.random.default_rng(0).standard_normal((30, 4)))
    stats.save(tmp_path / "stats")
    opened = Stats.open(tmp_path / "stats")
    assert (opened.n_tokens, opened.data_hash, dict(opened.uses)) == (30, "hash", dict(stats.uses))
    for key, moments in stats.moments.items():
        assert np.array_equal(opened.moments[key].second, moments.second)
        assert np.array_equal(opened.moments[key].fourth, moments.fourth)
        assert opened.moments[key].n_samples == moments.n_samples


def without(field):
    def damage(content):
        del content["header"][field]

    return damage


def lose_array(content):
    del content["arrays"]["second:w:input"]


def break_uses(content):
    content["header"]["uses"] = {"w": 5}


def dangling_use(content):
    content["header"]["uses"] = {"w": [["v:input", "w:rows"]]}


def break_header(content):
    content["header"] = []


DAMAGES = [
    without("n_tokens"),
    without("n_samples"),
    without("uses"),
    lose_array,
    break_uses,
    dangling_use,
    break_header,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_header_is_a_format_error(tmp_path, damage):
    folder = tmp_path / "stats"
    stats_of(np.ones((3, 4))).save(folder)
    content = json.loads((folder / HEADER_NAME).read_text())
    damage(content)
    (folder / HEADER_NAME).write_text(json.dumps(content))
    with pytest.raises(FormatError, match="stats"):
        Stats.open(folder)


def test_arrays_that_do_not_fit_each_other_are_a_format_error(tmp_path):
    folder = tmp_path / "stats"
    stats = stats_of(np.ones((3, 4)))
    odd = dict(stats.moments)
    odd["w:input"] = Moments(np.ones((4, 3), np.float32), np.ones(4, np.float32), 3)
    Stats(odd, stats.uses, 3, "hash").save(folder)
    with pytest.raises(FormatError, match="w:input"):
        Stats.open(folder)
