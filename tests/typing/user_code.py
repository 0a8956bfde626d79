"""What users write, checked by the type checkers and never run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict

from typing_extensions import assert_type

import socketio_postgres
from socketio_postgres import (
    START,
    AsyncDurableSubscription,
    AsyncEmitter,
    AsyncEventBatch,
    AsyncEventStore,
    AsyncPostgresClient,
    AsyncPostgresManager,
    BusOptions,
    BusStats,
    ConnectionLostError,
    DurableSubscription,
    Emitter,
    Event,
    EventStore,
    EventStoreStats,
    Message,
    MessageType,
    Notification,
    Outage,
    Park,
    PostgresClient,
    PostgresManager,
    Projection,
    RequestTimeoutError,
    StoredEvent,
    StoreResult,
    TableLayout,
)
from socketio_postgres._cluster.async_server_operator import AsyncRemoteSocket
from socketio_postgres.health import problems
from socketio_postgres.manager import RemoteSocket
from socketio_postgres.opentelemetry import observe
from socketio_postgres.prometheus import PostgresCollector


def misspelt() -> object:
    # Names are imported when they are asked for, and still a checker knows them; mypy wants this comment to be needed.
    return socketio_postgres.Emiter  # type: ignore[attr-defined]


def token() -> str:
    return "secret"


async def fresh_token() -> str:
    return "secret"


async def asynchronous() -> None:
    manager = AsyncPostgresManager("postgresql://app@db/app", channel="chat", password=fresh_token, max_payload=1000)
    assert_type(await manager.to("room").except_(["a", 1]).fetch_sockets(), list[AsyncRemoteSocket])
    assert_type(await manager.of("/chat").timeout(2.0).emit_with_ack("sure?", 1, partial=True), list[Any])
    assert_type(await manager.in_("room").local.volatile.compress(True).emit("news", {"a": [1]}), None)
    assert_type(await manager.sockets_join("room"), None)
    assert_type(await manager.server_side_emit_with_ack("ping", timeout=1.0), list[Any])
    assert_type(manager.server_count("/"), int)
    await manager.flush()
    async with AsyncEmitter("postgresql://app@db/app", buffer_count=10) as io:
        assert_type(await io.of("/chat").to("room").emit("news", b"bytes"), None)
        await io.server_side_emit("reload")
    async with AsyncPostgresClient("postgresql://app@db/app") as client:
        await client.listen("jobs")
        async for notification in client:
            assert_type(notification, Notification)
        assert_type(await client.get_attachment(1), bytes | None)


def blocking() -> None:
    manager = PostgresManager("postgresql://app@db/app", write_only=True, password=token)
    assert_type(manager.to("room").fetch_sockets(), list[RemoteSocket])
    assert_type(manager.to("room").emit("news", 1), None)
    assert_type(manager.emit("news", {"a": 1}, room="room"), None)
    with Emitter("postgresql://app@db/app", table_name="chat.attachments") as io:
        assert_type(io.to({"a", "b"}).emit("news"), None)
        try:
            io.flush(timeout=1.0)
        except ConnectionLostError as error:
            assert_type(error.may_be_sent, bool)
            assert_type(error.failed_count, int)
        except RequestTimeoutError as error:
            assert_type(error.missing_servers, list[str])
    with PostgresClient("postgresql://app@db/app") as client:
        assert_type(client.wait_for_notification(1.0), Notification)


def handlers(manager: AsyncPostgresManager) -> None:
    @manager.on_server_side("reload")
    async def reload(what: str) -> str:
        return what

    def done(result: Any) -> None:
        del result

    manager.on_server_side("done", done, namespace="/chat")
    assert_type(Message(MessageType.BROADCAST, "/", packet=["hello"]).type, int)
    assert_type(reload.__name__, str)


def monitoring(manager: AsyncPostgresManager, blocking: PostgresManager, io: Emitter, jobs: AsyncEmitter) -> None:
    assert_type(problems(manager.stats(), max_probe_age=10), list[str])
    PostgresCollector({"server": manager, "other": blocking, "io": io, "store": EventStore("")})
    observe({"jobs": jobs, "client": PostgresClient(), "async client": AsyncPostgresClient()})


def statistics(io: Emitter, client: AsyncPostgresClient, store: EventStore) -> None:
    stats = io.stats()
    assert_type(stats, BusStats)
    if "published" in stats:
        assert_type(stats["published"], int)
    outage = client.stats().get("listener_outage")
    assert_type(outage, Outage | None)
    if outage is not None:
        assert_type(outage["sqlstate"], str | None)
    assert_type(store.stats(), EventStoreStats)
    assert_type(store.stats().get("gap_seconds"), float | None)
    assert_type(store.layout(), TableLayout)
    assert_type(BusOptions("", max_payload=1).max_payload, int)


class Order(TypedDict):
    total: int


def total(event: StoredEvent[Order]) -> int:
    return event.data["total"]


async def handle(event: StoredEvent[Order]) -> None:
    assert_type(event.data["total"], int)


class Totals(Projection):
    name = "totals"
    types = ("OrderPlaced",)

    async def handle(self, conn: object, events: Sequence[StoredEvent[Order]]) -> None:
        assert conn is not None
        assert_type(events[0].data["total"], int)


async def storing(store: AsyncEventStore, blocking: EventStore) -> None:
    order: Order = {"total": 5}
    assert_type(Event("OrderPlaced", "order-1", order), Event[Order])
    closed: Event = Event("OrderClosed", "order-1")
    typed: Event[Order] = Event("OrderPlaced", "order-1", {"total": 5})
    assert_type(await store.store([typed, closed]), StoreResult)
    async for event in store.subscribe(START, types=["OrderPlaced"]):
        assert_type(event, StoredEvent[Any])
        placed: StoredEvent[Order] = event
        assert_type(placed.data, Order)
        assert_type(total(event), int)
    assert_type((await store.load(types="OrderPlaced"))[0], StoredEvent[Any])
    async with store.durable("one") as one, store.durable("shared", partitions=8) as shared:
        assert_type(one, AsyncDurableSubscription)
        assert_type(shared.partitions, list[int])
        await one.run(handle)
        async for batch in one.batches(max_count=10):
            assert_type(batch, AsyncEventBatch)
            assert_type(batch[0], StoredEvent)
            await batch.ack()
        await store.run(Totals(), connect=lambda: None, on_error=Park(after=5), partitions=8)
    with blocking.durable("one") as durable:
        assert_type(durable, DurableSubscription)
        durable.run(total)


def rooms(io: Emitter, names: set[str], numbers: tuple[int, ...]) -> None:
    io.to(names).to(numbers).to("red").to(7).except_(["red", 7]).emit("news")
    io.to(frozenset(names)).sockets_join(["a"])
    io.to(None).emit("news")  # type: ignore[arg-type]
    io.to({"red": 1}).emit("news")  # type: ignore[arg-type]
