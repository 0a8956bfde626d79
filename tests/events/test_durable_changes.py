"""What others do to a durable subscription reaches its consumers at once: they never have to look around for it."""

from __future__ import annotations

import asyncio
import functools
import operator
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from psycopg.conninfo import make_conninfo

from socketio_postgres import AsyncDurableSubscription, AsyncEventStore, Event, EventStore, SubscriptionFencedError
from socketio_postgres.events.async_positions import AsyncPositions
from tests.fixtures.database import Database
from tests.fixtures.waiting import TIMEOUT_S, eventually, nothing_arrives

COUNT = 6
HOUR_S = 3600.0
SET_BACK = (
    "UPDATE events_subscriptions SET position = 4, position_id = NULL, epoch = epoch + 1, owner = NULL,"
    " lease_until = NULL"
)
"""A rewind by hand."""


@pytest.fixture(autouse=True)
def _nobody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Consumers that own something do not look around within the time of a test."""
    module = "socketio_postgres.events.async_durable_subscription"
    monkeypatch.setattr(f"{module}.ALONE_SECONDS", HOUR_S)
    monkeypatch.setattr(f"{module}.BALANCE_SECONDS", HOUR_S)


@pytest.fixture(params=[1, 4], ids=["undivided", "divided"])
def partitions(request: pytest.FixtureRequest) -> int:
    number: int = request.param
    return number


@asynccontextmanager
async def idle(
    store: AsyncEventStore, partitions: int, handled: list[int]
) -> AsyncIterator[tuple[AsyncDurableSubscription, asyncio.Task[None]]]:
    """A consumer that has handled all events, and waits."""
    await store.store_batch(Event("T", f"a{i}", i) for i in range(COUNT))
    async with store.durable("d", partitions=partitions, lease=4 * HOUR_S, checkpoint_interval=0) as durable:
        running = asyncio.create_task(durable.run(lambda event: handled.append(event.data)))
        try:
            await eventually(lambda: durable.position == COUNT, "it has handled all")
            yield durable, running
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


async def test_rewind(database: Database, partitions: int) -> None:
    handled: list[int] = []
    async with (
        AsyncEventStore(database.dsn) as store,
        AsyncEventStore(database.dsn) as other,
        idle(store, partitions, handled),
    ):
        for version in (0, 3):
            handled.clear()
            await other.rewind_durable("d", version)
            expected = list(range(version, COUNT))
            await eventually(functools.partial(operator.eq, handled, expected), f"it goes on after {version}")


async def test_rewind_by_hand(database: Database, partitions: int) -> None:
    handled: list[int] = []
    async with AsyncEventStore(database.dsn) as store, idle(store, partitions, handled):
        handled.clear()
        with database.connect() as admin:
            admin.execute(SET_BACK)
        await eventually(lambda: handled == [4, 5], "it goes on there")


async def test_pause(database: Database, partitions: int) -> None:
    async with (
        AsyncEventStore(database.dsn) as store,
        AsyncEventStore(database.dsn) as other,
        idle(store, partitions, []) as (durable, running),
    ):
        await other.pause_durable("d")
        await eventually(lambda: durable.partitions == [], "it has none")
        assert not running.done()


async def test_delete(database: Database, partitions: int) -> None:
    async with (
        AsyncEventStore(database.dsn) as store,
        AsyncEventStore(database.dsn) as other,
        idle(store, partitions, []) as (_, running),
    ):
        await other.delete_durable("d")
        with pytest.raises(SubscriptionFencedError, match="deleted"):
            await asyncio.wait_for(running, TIMEOUT_S)


async def test_tables_of_an_earlier_release(database: Database, partitions: int) -> None:
    """They get what notifies with the first use, and their consumers go on."""
    handled: list[int] = []
    async with AsyncEventStore(database.dsn) as store, idle(store, partitions, handled):
        pass
    with database.connect() as admin:
        admin.execute("DROP FUNCTION events_durable_wake() CASCADE")
        admin.execute("DELETE FROM events_migrations WHERE name = 'changed'")
    async with (
        AsyncEventStore(database.dsn) as store,
        store.durable("d", partitions=partitions, lease=4 * HOUR_S, checkpoint_interval=0) as durable,
    ):
        assert durable.position == COUNT
        running = asyncio.create_task(durable.run(lambda event: handled.append(event.data)))
        await eventually(lambda: store.is_listener_connected, "it listens")
        await store.rewind_durable("d", 4)
        await eventually(lambda: handled[COUNT:] == [4, 5], "it goes on there")
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_a_change_while_nobody_listened(database: Database, partitions: int) -> None:
    """A new listening connection stands for all that may have been missed."""
    handled: list[int] = []
    async with AsyncEventStore(database.dsn) as store, idle(store, partitions, handled):
        await eventually(lambda: store.is_listener_connected, "it listens")
        handled.clear()
        with database.connect() as admin:
            # The change comes while the listener is ended, and nothing says so but its new session.
            with admin.transaction():
                admin.execute("ALTER TABLE events_subscriptions DISABLE TRIGGER USER")
                admin.execute(SET_BACK)
                admin.execute("ALTER TABLE events_subscriptions ENABLE TRIGGER USER")
            admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND query LIKE 'LISTEN%'"
            )
        await eventually(lambda: handled == [4, 5], "it goes on there")


@asynccontextmanager
async def listening(store: AsyncEventStore) -> AsyncIterator[None]:
    """Something else of this process keeps the listening session, so that none begins when a consumer does."""
    async with store.subscribe():
        await eventually(lambda: store.is_listener_connected, "it listens")
        yield


@asynccontextmanager
async def running(durable: AsyncDurableSubscription, handled: list[int]) -> AsyncIterator[None]:
    task = asyncio.create_task(durable.run(lambda event: handled.append(event.data)))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def heard(store: AsyncEventStore, notifications: int) -> None:
    """So many more notifications than before have come."""
    await eventually(lambda: store.stats()["notifications"] >= notifications, "the notification has come")


async def test_a_change_between_the_claim_and_the_first_step(database: Database, partitions: int) -> None:
    handled: list[int] = []
    async with AsyncEventStore(database.dsn) as store, listening(store):
        await store.store_batch(Event("T", f"a{i}", i) for i in range(COUNT))
        async with store.durable("d", partitions=partitions, start=COUNT, lease=4 * HOUR_S) as durable:
            assert durable.position == COUNT
            before = store.stats()["notifications"]
            await store.rewind_durable("d", 4)
            await heard(store, before + 1)
            async with running(durable, handled):
                await eventually(lambda: handled == [4, 5], "it goes on there")


async def test_a_change_while_another_one_is_heeded(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes after the claim, and before the consumer reads from where it is now."""
    claim = AsyncPositions.claim
    claimed, goes_on = asyncio.Event(), asyncio.Event()

    async def slow_claim(self: AsyncPositions, *arguments: Any) -> Any:
        result = await claim(self, *arguments)
        claimed.set()
        await goes_on.wait()
        return result

    handled: list[int] = []
    async with AsyncEventStore(database.dsn) as store, listening(store), idle(store, 1, handled):
        handled.clear()
        monkeypatch.setattr(AsyncPositions, "claim", slow_claim)
        await store.rewind_durable("d", COUNT)  # there is nothing to do after it
        await asyncio.wait_for(claimed.wait(), TIMEOUT_S)
        before = store.stats()["notifications"]
        await store.rewind_durable("d", 4)
        await heard(store, before + 1)
        goes_on.set()
        await eventually(lambda: handled == [4, 5], "it goes on there")


async def test_a_change_whose_look_is_cancelled(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """`asyncio.wait_for(anext(durable), …)` may end within the statement that follows a notification."""
    owned = AsyncPositions.owned
    looks = asyncio.Event()

    async def endless(self: AsyncPositions) -> Any:
        looks.set()
        await asyncio.sleep(HOUR_S)

    async with AsyncEventStore(database.dsn) as store, listening(store):
        await store.store_batch(Event("T", f"a{i}", i) for i in range(COUNT))
        async with store.durable("d", start=COUNT, lease=4 * HOUR_S, checkpoint_interval=0) as durable:
            taking = asyncio.create_task(anext(durable))
            monkeypatch.setattr(AsyncPositions, "owned", endless)
            await store.rewind_durable("d", 4)
            await asyncio.wait_for(looks.wait(), TIMEOUT_S)
            taking.cancel()
            await asyncio.gather(taking, return_exceptions=True)
            monkeypatch.setattr(AsyncPositions, "owned", owned)
            assert (await asyncio.wait_for(anext(durable), TIMEOUT_S)).data == 4


async def test_tables_in_another_schema_than_the_events(database: Database) -> None:
    """Without a schema in `table_name`, they are made in the first one of the `search_path`."""
    handled: list[int] = []
    async with AsyncEventStore(database.dsn):
        pass
    with database.connect() as admin:
        admin.execute("CREATE SCHEMA app")
    dsn = make_conninfo(database.dsn, options="-c search_path=app,public")
    async with AsyncEventStore(dsn) as store, listening(store), idle(store, 1, handled):
        assert database.value("SELECT to_regclass('app.events_subscriptions') IS NOT NULL")
        handled.clear()
        await store.rewind_durable("d", 4)
        await eventually(lambda: handled == [4, 5], "it goes on there")


async def test_a_schema_that_was_renamed(database: Database) -> None:
    """Blue and green: what notifies finds the event table beside it, whatever the schema is called by now."""
    handled: list[int] = []
    with database.connect() as admin:
        admin.execute("CREATE SCHEMA green")
    async with AsyncEventStore(database.dsn, table_name="green.events") as store:
        await store.durable_subscriptions()  # makes the tables
    with database.connect() as admin:
        admin.execute("ALTER SCHEMA green RENAME TO blue")
    async with (
        AsyncEventStore(database.dsn, table_name="blue.events") as store,
        listening(store),
        idle(store, 1, handled),
    ):
        handled.clear()
        await store.rewind_durable("d", 4)
        await eventually(lambda: handled == [4, 5], "it goes on there")


async def test_a_batch_that_waits_for_more(database: Database, partitions: int) -> None:
    """It is not handed out any more once the subscription was paused."""
    async with AsyncEventStore(database.dsn) as store, listening(store):
        await store.store_batch(Event("T", f"a{i}", i) for i in range(COUNT))
        subscription = store.durable("d", partitions=partitions, lease=4 * HOUR_S, checkpoint_interval=HOUR_S)
        async with subscription as durable:
            batches = durable.batches(max_wait=HOUR_S)
            while durable._delivered < COUNT:
                await anext(batches)
            taking = asyncio.ensure_future(anext(batches))
            await store.store(Event("T", "a0", COUNT))
            await eventually(lambda: durable._delivered > COUNT, "it has one, and waits for more")
            await store.pause_durable("d")
            await eventually(lambda: durable.partitions == [], "it has none")
            await nothing_arrives()
            assert not taking.done()
            taking.cancel()
            await asyncio.gather(taking, return_exceptions=True)


FORKED = """
import os, sys, threading, time
from socketio_postgres import EventStore

store = EventStore(sys.argv[1])  # before the fork, and not used before it
if (child := os.fork()) == 0:
    with store.durable("d") as durable:
        consumer = iter(durable)
        assert next(consumer).data == 1
        began, used = time.monotonic(), time.process_time()
        threading.Timer(2.0, store.store, [__import__("socketio_postgres").Event("T", "a", 2)]).start()
        assert next(consumer).data == 2
        os._exit(0 if time.process_time() - used < 0.5 * (time.monotonic() - began) else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_store_that_was_made_before_a_fork(database: Database) -> None:
    """Its consumers in the child wait, too, instead of looking all the time."""
    with EventStore(database.dsn) as store:
        store.store(Event("T", "a", 1))
    ended = subprocess.run([sys.executable, "-c", FORKED, database.dsn], check=False, timeout=120)
    assert ended.returncode == 0


async def test_consumers_that_come_and_go_do_not_wake_each_other(database: Database) -> None:
    """Claims, renewals, acknowledgements and releases send nothing."""
    async with AsyncEventStore(database.dsn) as store, store.durable("first", partitions=4) as first:
        await store.store_batch(Event("T", f"a{i}", i) for i in range(COUNT))
        with database.connect() as listening:
            oid = database.value("SELECT 'events'::regclass::oid")
            listening.execute(f'LISTEN "sio_events_{oid}"')
            async with store.durable("first", partitions=4) as second, store.durable("d") as alone:
                for _ in range(COUNT):
                    event = await anext(alone)
                await alone.ack(event)
                taking = asyncio.create_task(anext(first))
                await eventually(lambda: bool(second.partitions) or taking.done(), "they share, or one has all")
                taking.cancel()
                await asyncio.gather(taking, return_exceptions=True)
            await store.rewind_durable("d", 0)
            heard: list[str] = []
            for notification in listening.notifies(timeout=TIMEOUT_S):
                heard += [notification.payload] * (not notification.payload.startswith("test "))  # a session's own
                if heard:
                    break
    assert heard == ["durable"], "the first one is that of the rewind"
