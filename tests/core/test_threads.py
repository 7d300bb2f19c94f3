"""LAQ_THREADS is a number of threads, or refused with the way out."""

import pytest

from laq.core.errors import RequestError
from laq.core.threads import MAX_THREADS, usable_threads, wanted_threads


def test_without_it_the_cores_of_this_process_are_used(monkeypatch):
    monkeypatch.delenv("LAQ_THREADS", raising=False)
    assert wanted_threads() is None
    assert 1 <= usable_threads() <= MAX_THREADS


def test_a_number_is_taken(monkeypatch):
    monkeypatch.setenv("LAQ_THREADS", "3")
    assert wanted_threads() == usable_threads() == 3


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", str(MAX_THREADS + 1)])
def test_anything_else_is_refused(monkeypatch, value):
    monkeypatch.setenv("LAQ_THREADS", value)
    with pytest.raises(RequestError, match="LAQ_THREADS"):
        usable_threads()
