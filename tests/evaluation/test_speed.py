"""Turns, medians and rates, with contenders and writers that take known times."""

import time

import pytest
import torch

from laq.evaluation import speed
from laq.evaluation.speed import (
    Contender,
    Stopwatch,
    Writer,
    copies_of,
    product_speeds,
    seconds_in_turns,
    text_speeds,
    torch_contender,
)


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(speed, "SETTLE_S", 0.0)


def sleeper(name, time_s, weight_bytes=1000):
    return Contender(name, weight_bytes, 2, lambda inputs: lambda copy: time.sleep(time_s))


def test_each_runs_in_its_turn_with_a_running_number():
    calls = []
    runs = {name: lambda count, name=name: calls.append((name, count)) for name in "ab"}
    found = seconds_in_turns(runs, seconds=0, min_turns=3)
    assert calls == [("a", 0), ("b", 0), ("a", 1), ("b", 1), ("a", 2), ("b", 2)]
    assert set(found) == {"a", "b"}


def test_median_is_not_moved_by_one_slow_turn():
    found = seconds_in_turns({"": lambda count: time.sleep(0.2 if count == 1 else 0)}, seconds=0, min_turns=5)
    assert found[""] < 0.1


def test_time_to_settle_is_not_counted(monkeypatch):
    monkeypatch.setattr(speed, "SETTLE_S", 0.02)
    counts = []
    seconds_in_turns({"": counts.append}, seconds=0, min_turns=1)
    assert len(counts) > 1
    assert counts == list(range(len(counts)))


def test_copies_fill_more_than_the_caches():
    for size in (100_000, 1 << 20, 64 << 20, (64 << 20) + 1):
        assert copies_of(size) * size >= speed.ROTATED_BYTES > 160e6
    assert copies_of(1 << 30) == 2


def test_share_of_read_compares_rates_of_bytes():
    reading, slow = sleeper("read", 0.002, 4000), sleeper("slow", 0.004, 2000)
    found = {one.name: one for one in product_speeds([slow], reading, torch.ones(3, 8), seconds=0)}
    assert found["read"].share_of_read == 1.0
    assert found["slow"].share_of_read == pytest.approx(
        2000 / found["slow"].time_s / (4000 / found["read"].time_s)
    )
    assert (found["slow"].n_inputs, found["slow"].weight_bytes) == (3, 2000)


def test_contenders_get_the_inputs_and_rotate_their_copies():
    seen = []

    def bind(inputs):
        assert inputs.shape == (5, 8)
        return seen.append

    product_speeds([Contender("", 1, 3, bind)], sleeper("read", 0), torch.ones(5, 8), seconds=0)
    assert seen[:4] == [0, 1, 2, 0]


def test_first_token_is_the_prompts_and_the_others_are_medians():
    def write():
        time.sleep(0.05)
        yield 1
        for _ in range(4):
            time.sleep(0.002)
            yield 2

    texts, read_bytes_per_s = text_speeds(
        [Writer("w", 300, write)], sleeper("read", 0.001), n_prompt=10, rounds=2
    )
    (text,) = texts
    assert 20 < text.prefill_tokens_per_s <= 200
    assert 50 < text.decode_tokens_per_s <= 500
    assert text.bytes_per_token == 300
    assert text.share_of_read == pytest.approx(300 * text.decode_tokens_per_s / read_bytes_per_s)
    assert read_bytes_per_s <= 1000 / 0.001


def test_stopwatch_lets_items_pass_and_notes_a_lap_each():
    watch = Stopwatch()
    assert list(watch.each("abc")) == ["a", "b", "c"]
    assert len(watch.laps_s) == 3
    assert min(watch.laps_s) >= 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dense_linear_multiplies(monkeypatch, dtype):
    monkeypatch.setattr(speed, "ROTATED_BYTES", 1)
    contender = torch_contender((24, 8), dtype)
    assert contender.weight_bytes == 24 * 8 * dtype.itemsize
    result = contender.bind(torch.ones(3, 8))(1)
    assert (result.shape, result.dtype) == ((3, 24), dtype)
