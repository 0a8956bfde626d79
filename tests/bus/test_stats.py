"""What `stats()` and `layout()` return is what their types say, key by key."""

from __future__ import annotations

import types
import typing
from typing import Any

import pytest

from socketio_postgres import (
    AsyncPostgresManager,
    BusStats,
    Emitter,
    EventStore,
    EventStoreStats,
    ManagerStats,
    OperationTimeoutError,
    Outage,
    PostgresClient,
    SocketIOPostgresError,
    TableLayout,
)
from tests.fixtures.database import Database
from tests.fixtures.waiting import TIMEOUT_S


def is_of(value: Any, hint: Any) -> bool:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in {typing.Union, types.UnionType}:
        return any(is_of(value, each) for each in arguments)
    if origin is typing.Literal:
        return value in arguments
    if origin is dict:
        return all(is_of(key, arguments[0]) and is_of(each, arguments[1]) for key, each in value.items())
    if origin is list:
        return all(is_of(each, arguments[0]) for each in value)
    if typing.is_typeddict(hint):
        return isinstance(value, dict) and not wrong(value, hint)
    return type(value) is hint


def wrong(value: Any, declared: Any) -> set[str]:
    """Keys that are missing, too many, or have a value of another type."""
    hints = typing.get_type_hints(declared)
    return {key for key in hints.keys() | value.keys() if key not in value or not is_of(value[key], hints.get(key))}


def test_of_a_client(database: Database) -> None:
    client = PostgresClient(database.dsn)
    assert client.stats() == {}
    with client:
        client.listen("news")
        client.notify("news", "1")
        client.wait_for_notification(TIMEOUT_S)
        assert not wrong(client.stats(), BusStats)


async def test_of_a_manager(database: Database) -> None:
    manager = AsyncPostgresManager(database.dsn)
    assert manager.stats() == {"peers": {}}
    await manager.start()
    assert not wrong(manager.stats(), ManagerStats)
    await manager.close()


def test_of_an_emitter_in_an_outage() -> None:
    emitter = Emitter("host=127.0.0.1 port=1 dbname=any user=any", buffer_age=0.1)
    emitter.emit("lost")
    with pytest.raises(SocketIOPostgresError):
        emitter.flush(TIMEOUT_S)
    stats = emitter.stats()
    assert not wrong(stats, BusStats)
    assert not wrong(stats.get("publisher_outage"), Outage)
    emitter.close()


def test_of_an_event_store(database: Database) -> None:
    store = EventStore(database.dsn)
    assert not wrong(store.stats(), EventStoreStats)
    assert store.layout() == {}
    with store, store.subscribe() as events:
        with pytest.raises(OperationTimeoutError):
            events.next(0.1)
        assert not wrong(store.stats(), EventStoreStats)
        assert not wrong(store.layout(), TableLayout)
