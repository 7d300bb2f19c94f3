"""Recordings tell what differs between two calls."""

import pytest
import torch

from laq.runtime.recording import NotRecordableError, Recording, check_same


def events_of(function):
    recording = Recording()
    with recording:
        function()
    return recording.events


def test_results_are_as_without_it():
    x = torch.arange(6.0)
    with Recording() as recording:
        y = (x * 2)[1:].view(5, 1)
    assert torch.equal(y, (x * 2)[1:].view(5, 1))
    assert [event.name for event in recording.events] == [
        "aten.mul.Tensor",
        "aten.slice.Tensor",
        "aten.view.default",
    ]
    assert [event.is_view for event in recording.events] == [False, True, True]


def test_changes_in_place_are_noted():
    x = torch.zeros(3)
    (event,) = events_of(lambda: x.add_(1))
    assert event.written[0] is x
    assert event.target is x


def test_equal_calls_are_the_same_though_their_memory_is_not():
    x = torch.ones(3)
    check_same(events_of(lambda: x * 2 + torch.tensor(1.0)), events_of(lambda: x * 2 + torch.tensor(1.0)))


@pytest.mark.parametrize(
    "change",
    {
        "a number": lambda x, i: x * (2 + i),
        "a number made a tensor": lambda x, i: x * torch.tensor(2.0 + i),
        "a shape": lambda x, i: x[: 2 + i] * 2,
        "an offset": lambda x, i: x[i : i + 2] * 2,
        "a type": lambda x, i: x.to([torch.float16, torch.bfloat16][i]) * 2,
        "an operation": lambda x, i: [torch.sin, torch.cos][i](x),
        "how many": lambda x, i: [x * 2 for _ in range(1 + i)],
        "other memory": lambda x, i: [x, torch.ones(4)][i] * 2,
        "which of its own": lambda x, i: [x * 2, x * 2][i] + (x * 3),
    }.items(),
    ids=lambda item: item[0],
)
def test_differences_are_found(change):
    x = torch.ones(4)
    if change[0] == "which of its own":

        def call(i):
            pair = [x * 2, x * 2]
            return pair[i] + 1
    else:

        def call(i):
            return change[1](x, i)

    with pytest.raises(NotRecordableError):
        check_same(events_of(lambda: call(0)), events_of(lambda: call(1)))
