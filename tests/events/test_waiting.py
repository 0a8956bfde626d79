"""Reading what one has just written: waiting until readers are so far."""

from __future__ import annotations

import asyncio
import threading

import pytest

from socketio_postgres import (
    END,
    AsyncEventStore,
    ClosedError,
    Event,
    EventStore,
    IncompatibleVersionError,
    NotificationPayload,
    OperationTimeoutError,
    OptionsError,
)
from tests.fixtures.database import Database
from tests.fixtures.waiting import nothing_arrives

LONG = 20.0


async def test_until_nothing_can_come_before(store: AsyncEventStore, database: Database) -> None:
    with database.connect() as writer:
        writer.execute("BEGIN")
        writer.execute("INSERT INTO events (id, aggregate_id, event_type) VALUES ('e', 'a', 'T')")
        stored = await store.store(Event("T", "b"))
        with pytest.raises(OperationTimeoutError, match=f"not at {stored.version}"):
            await store.wait_for(stored, timeout=0.05)
        waiting = asyncio.create_task(store.wait_for(stored, timeout=LONG))
        await nothing_arrives()
        assert not waiting.done()
        writer.execute("COMMIT")
        await waiting
    page = await store.load()
    assert (len(page), page.safe_since) == (2, stored.version)


async def test_until_a_subscriber_is_done(store: AsyncEventStore) -> None:
    shown: list[int] = []
    live = store.subscribe(END, types="T")
    await live.__aenter__()

    async def project() -> None:
        async for event in live:
            await asyncio.sleep(0.01)
            shown.append(event.version)

    projecting = asyncio.create_task(project())
    for _ in range(5):
        stored = await store.store(Event("T", "a"))
        await live.wait_for(stored, LONG)
        assert shown[-1] == stored.version, "given out is not enough"
    # What does not match is passed as soon as somebody waits, however patient the subscription is.
    live._patience = 3600.0
    other = await store.store(Event("other", "a"))
    await live.wait_for(other.version, LONG)
    assert live.handled == other.version
    with pytest.raises(OperationTimeoutError):
        await live.wait_for(other.version + 1, 0.05)
    waiting = asyncio.create_task(live.wait_for(other.version + 1))
    await asyncio.sleep(0)
    live.close()
    with pytest.raises(ClosedError):
        await waiting
    await projecting


async def test_until_a_callback_has_returned(store: AsyncEventStore) -> None:
    heard: list[int] = []

    async def handler(payload: NotificationPayload) -> None:
        await asyncio.sleep(0.05)
        heard.append(payload.version)

    callback = await store.subscribe_to_all(handler)
    stored = await store.store(Event("T", "a"))
    await callback.wait_for(stored, LONG)
    assert heard == [stored.version]


async def test_until_a_durable_subscription_elsewhere_has_acknowledged(
    store: AsyncEventStore, database: Database
) -> None:
    with pytest.raises(OptionsError, match="billing"):
        await store.wait_for(1, durable="billing")
    other = AsyncEventStore(database.dsn)
    shown: list[int] = []

    durable = await other.durable("billing", checkpoint_interval=0.05).__aenter__()

    async def consume() -> None:
        async for event in durable:
            await asyncio.sleep(0.01)
            shown.append(event.version)
            if event.data == "last":
                await durable.ack(event)
                break
        await durable.__aexit__(None, None, None)

    consuming = asyncio.create_task(consume())
    for data in (1, 2, "last"):
        stored = await store.store(Event("T", "a", data))
        await store.wait_for(stored, durable="billing", timeout=LONG)
        assert shown[-1] == stored.version
    with pytest.raises(OperationTimeoutError, match="billing"):
        await store.wait_for(stored.version + 1, durable="billing", timeout=0.05)
    await consuming
    await other.close()


async def test_what_is_no_version(store: AsyncEventStore) -> None:
    with pytest.raises(IncompatibleVersionError):
        await store.wait_for(-1)
    with pytest.raises(IncompatibleVersionError):
        await store.subscribe().wait_for("1")  # type: ignore[arg-type]


def test_from_threads(database: Database) -> None:
    with EventStore(database.dsn) as store:
        shown: list[int] = []
        with store.subscribe() as live:
            reading = threading.Thread(target=lambda: [shown.append(event.version) for event in live])  # type: ignore[func-returns-value]
            reading.start()
            stored = store.store(Event("T", "a"))
            live.wait_for(stored, LONG)
            assert shown == [stored.version]
            store.wait_for(stored, timeout=LONG)
            with pytest.raises(OperationTimeoutError):
                store.wait_for(stored.version + 1, timeout=0.05)
        reading.join()


async def test_a_wait_without_an_end_in_sight(store: AsyncEventStore) -> None:
    """The clock cannot tell a moment that far away."""
    for timeout in (1e19, 1e300, float("inf")):
        async with store.subscribe(END) as subscription:
            waiting = asyncio.create_task(subscription.next(timeout))
            await nothing_arrives()
            await store.store(Event("T", "a", timeout > 1e30))
            assert (await asyncio.wait_for(waiting, 20)).event_type == "T"
