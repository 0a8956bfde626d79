"""Several stores of one process on the same table: one listener and one reader for all of them."""

from __future__ import annotations

import asyncio
import contextlib
import time

import pytest

from socketio_postgres import END, AsyncEventStore, Event, EventStore, StoreClosedError
from tests.fixtures.database import Database
from tests.fixtures.waiting import TIMEOUT_S, eventually

LISTENERS = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    " AND (strpos(query, 'LISTEN') = 1 OR strpos(query, 'pg_listening') > 0) AND pid <> pg_backend_pid()"
)
SESSIONS = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND backend_type = 'client backend'"
    " AND pid <> pg_backend_pid()"
)


async def test_a_thousand_subscriptions_of_five_stores(store: AsyncEventStore, database: Database) -> None:
    async with contextlib.AsyncExitStack() as stack:
        stores = [store, *[await stack.enter_async_context(AsyncEventStore(database.dsn)) for _ in range(4)]]
        lives = [each.subscribe(END) for each in stores for _ in range(200)]
        for live in lives:
            await stack.enter_async_context(live)
        await eventually(lambda: store.is_listener_connected, "it listens")
        before = store.stats()
        for i in range(5):
            await store.store(Event("T", "a", i))
            for event in await asyncio.gather(*(live.next(60) for live in lives)):
                assert event.data == i
        after = [each.stats() for each in stores]
        assert [each["subscriptions"] for each in after] == [200] * 5
        assert {each["read"] for each in after} == {before["read"] + 5}, "each event is read once"
        assert {each["pages"] for each in after} == {before["pages"]}
        assert all(each.is_listener_connected for each in stores)
        await eventually(lambda: database.value(LISTENERS) == 1, "one session listens")
        # The store's own and those of the one keeper: rows, watermark, listener.
        await eventually(lambda: int(str(database.value(SESSIONS))) <= 2 * 5 + 3, "there are no more sessions")


async def test_whoever_closes_leaves_the_others_alone(store: AsyncEventStore, database: Database) -> None:
    other = AsyncEventStore(database.dsn)
    mine, theirs = store.subscribe(), other.subscribe()
    await mine.__aenter__()
    await theirs.__aenter__()
    waiting = asyncio.create_task(mine.next(60))
    await asyncio.sleep(0)
    await store.close()  # the one that had made what is shared
    try:
        await waiting
    except StoreClosedError:
        pass
    else:
        raise AssertionError("it should have ended")
    await other.store(Event("T", "a", 1))
    assert (await theirs.next(60)).data == 1
    async with AsyncEventStore(database.dsn) as third, third.subscribe() as late:
        assert (await late.next(60)).data == 1
        await eventually(lambda: third.is_listener_connected, "it listens")
        assert database.value(LISTENERS) == 1
        await other.close()
        await third.store(Event("T", "a", 2))
        assert (await late.next(60)).data == 2
    await eventually(lambda: database.value(SESSIONS) == 0, "nothing stays")


async def test_what_listens_otherwise_or_elsewhere_is_apart(store: AsyncEventStore, database: Database) -> None:
    async with (
        AsyncEventStore(database.dsn, poll_interval=0.5) as slower,
        AsyncEventStore(database.dsn, table_name="other") as elsewhere,
        AsyncEventStore(database.dsn + " application_name=mine") as named,
        AsyncEventStore(database.dsn, answer_timeout=29) as hasty,
    ):
        stores = [store, slower, elsewhere, named, hasty]
        lives = [each.subscribe() for each in stores]
        for live in lives:
            await live.__aenter__()
        await eventually(lambda: all(each.is_listener_connected for each in stores), "they listen")
        assert database.value(LISTENERS) == 5
        await elsewhere.store(Event("T", "a", "elsewhere"))
        await store.store(Event("T", "a", "here"))
        assert [(await live.next(60)).data for live in lives] == ["here", "here", "elsewhere", "here", "here"]
        for live in lives:
            live.close()


async def test_one_store_of_each_kind(store: AsyncEventStore, database: Database) -> None:
    """The blocking class shares with the other, and a store that was forgotten is no member any more."""

    def forget() -> None:
        blocking = EventStore(database.dsn)
        live = blocking.subscribe()
        blocking.store(Event("T", "a", 1))
        assert live.next(60).data == 1
        deadline = time.monotonic() + TIMEOUT_S
        while not blocking.is_listener_connected:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert database.value(LISTENERS) == 1

    async with store.subscribe() as live:
        await asyncio.to_thread(forget)
        assert (await live.next(60)).data == 1
        # Of the forgotten store nothing stays; its sessions may take a moment to end.
        await eventually(lambda: database.value(LISTENERS) == 1, "one session listens")
    await store.close()
    await eventually(lambda: database.value(SESSIONS) == 0, "nothing stays")


@pytest.mark.parametrize("is_waiting", [False, True], ids=["idle", "waiting"])
async def test_the_reader_replaces_its_connections(database: Database, *, is_waiting: bool) -> None:
    """All but the listening session, which is probed instead; also while it waits for a transaction to end."""
    pids = (
        "SELECT coalesce(array_agg(pid), '{}') FROM pg_stat_activity WHERE datname = current_database()"
        " AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
        " AND NOT (strpos(query, 'LISTEN') = 1 OR strpos(query, 'pg_listening') > 0)"
    )

    def sessions() -> set[int]:
        found = database.value(pids)
        assert isinstance(found, list)
        return set(found)

    async with (
        AsyncEventStore(database.dsn, conn_max_lifetime=1, poll_interval=0.1) as store,
        store.subscribe() as live,
    ):
        await store.store(Event("T", "a", 1))
        assert (await live.next(60)).data == 1
        await eventually(lambda: store.stats()["is_listening"], "it listens")
        with database.connect() as writer:
            writer.execute("BEGIN")
            if is_waiting:
                writer.execute("INSERT INTO events (id, aggregate_id, event_type, data) VALUES ('e', 'a', 'T', '2')")
                await store.store(Event("T", "a", 3))
                await eventually(lambda: store.stats()["gap_seconds"], "it waits")
            first = sessions() - {writer.info.backend_pid}
            await eventually(lambda: not first & sessions(), "all are new")
            writer.execute("COMMIT")
        await store.store(Event("T", "a", 4))
        assert [(await live.next(60)).data for _ in range(3 if is_waiting else 1)] == ([2, 3, 4] if is_waiting else [4])
