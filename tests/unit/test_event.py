"""Events are generic in their data, also where annotations are read while the program runs."""

from __future__ import annotations

import dataclasses
import pickle
import typing

import pytest

from socketio_postgres import Event, StoredEvent


class Order(typing.TypedDict):
    total: int


def handle(event: StoredEvent[Order], answer: Event[Order]) -> None:
    """A handler, as users write it."""


def test_annotations_can_be_read() -> None:
    hints = typing.get_type_hints(handle)
    assert typing.get_origin(hints["event"]) is StoredEvent
    assert typing.get_origin(hints["answer"]) is Event
    assert [typing.get_args(hints[name]) for name in ("event", "answer")] == [(Order,), (Order,)]


@pytest.mark.parametrize("make", [Event, Event[Order]])
def test_an_event_is_the_same_with_and_without_its_data_s_type(make: type[Event[Order]]) -> None:
    event = make("OrderPlaced", "order-1", {"total": 5}, id="1")
    assert event == Event("OrderPlaced", "order-1", {"total": 5}, id="1")
    assert pickle.loads(pickle.dumps(event)) == event  # noqa: S301 - our own
    assert type(event) is Event
    assert [field.name for field in dataclasses.fields(event)] == [
        "event_type",
        "aggregate_id",
        "data",
        "metadata",
        "id",
    ]


def test_a_stored_event_is_the_same_with_and_without_its_data_s_type() -> None:
    stored = StoredEvent[Order](1, "id", "order-1", "OrderPlaced", '{"total": 5}')
    assert stored == StoredEvent(1, "id", "order-1", "OrderPlaced", '{"total": 5}')
    assert stored.data["total"] == 5
