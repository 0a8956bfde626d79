"""Large tables and many subscriptions: what is read, and what is kept in memory."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from socketio_postgres import END, AsyncEventStore, Event
from tests.fixtures.database import Database
from tests.fixtures.waiting import eventually

EVENTS = 1_000_000
WARM = 50_000
"""Events after which everything that is needed for reading is there."""

GROWTH_BYTES = 48 * 1024 * 1024
"""A few pages and the allocator's habits; the events themselves are ten times as much."""

SUBSCRIPTIONS = 1000
CYCLES = 1500
LEAK_BYTES = 8 * 1024 * 1024
ADVISORY_LOCKS = """SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"""
SESSIONS = """SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
    AND backend_type = 'client backend'"""


def memory_bytes() -> int:
    """What this process has in memory."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def open_files() -> int:
    """How many descriptors this process has."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def fill(database: Database, count: int) -> None:
    """Many events in one statement, in a table whose content survives no crash and so is written quickly."""
    with database.connect() as admin:
        admin.execute("ALTER TABLE events SET UNLOGGED")
        admin.execute("DROP INDEX events_aggregate_version")
        admin.execute(
            "INSERT INTO events (id, aggregate_id, event_type, data) SELECT 'e' || i, 'a' || i %% 1000, 'T',"
            " jsonb_build_object('n', i, 'text', repeat('x', 300)) FROM generate_series(1, %s) AS i",
            (count,),
        )
        admin.execute("ANALYZE events")


async def test_a_million_events_in_bounded_memory(our_store: AsyncEventStore, database: Database) -> None:
    await asyncio.to_thread(fill, database, EVENTS)
    count = total = warm = 0
    async for event in our_store.read():
        count += 1
        total += event.data["n"]
        if count == WARM:
            warm = memory_bytes()
        if count % 100_000 == 0:
            assert memory_bytes() - warm < GROWTH_BYTES
    assert (count, total) == (EVENTS, EVENTS * (EVENTS + 1) // 2)
    async with our_store.subscribe(EVENTS - 200_000) as live:
        for version in range(EVENTS - 200_000 + 1, EVENTS + 1):
            assert (await live.next(60)).version == version
    assert memory_bytes() - warm < GROWTH_BYTES


async def test_a_thousand_subscriptions_share_each_read(table: str, database: Database) -> None:
    del table
    # Nothing but wake-ups: on a slow machine polls would come in between.
    async with AsyncEventStore(database.dsn, poll_interval=600.0, max_open_conns=2) as store:
        lives = [store.subscribe(END) for _ in range(SUBSCRIPTIONS)]
        await asyncio.gather(*(live.__aenter__() for live in lives))
        await eventually(lambda: store.is_listener_connected, "it listens")
        before = store.stats()
        for i in range(20):
            await store.store(Event("T", "a", i))
            found = await asyncio.gather(*(live.next(60) for live in lives))
            assert {event.data for event in found} == {i}
        after = store.stats()
        assert after["read"] - before["read"] == 20
        # A read that comes before a writer's lock is gone is made again.
        assert after["reads"] - before["reads"] <= 60
        assert after["pages"] == before["pages"]
        # one that listens, one for the watermark, one that reads for all, and two of the store's own
        await eventually(lambda: int(str(database.value(SESSIONS))) <= 5, "there are no more sessions")
        for live in lives:
            live.close()


async def test_subscriptions_leave_nothing_behind(our_store: AsyncEventStore, database: Database) -> None:
    store = our_store
    await store.store_batch(Event("T", "a", i) for i in range(100))

    async def cycle(*, is_last: bool) -> None:
        async with store.subscribe() as live:
            assert (await live.next(60)).data == 0
        if is_last:
            await eventually(lambda: not store.is_listener_connected, "the last one ends the listening")

    for _ in range(10):
        await cycle(is_last=True)  # the feed starts and ends with it
    other = store.subscribe(END)
    await other.__aenter__()
    await eventually(lambda: store.is_listener_connected, "it listens")
    for _ in range(CYCLES // 3):
        await cycle(is_last=False)
    memory, files = memory_bytes(), open_files()
    sessions = int(str(database.value(SESSIONS)))
    for _ in range(CYCLES):
        await cycle(is_last=False)
    await eventually(lambda: store.stats()["subscriptions"] == 1, "the others are gone")
    assert memory_bytes() - memory < LEAK_BYTES
    # A cycle that meets a reader of another may need one connection more, which the pool keeps.
    await eventually(lambda: open_files() <= files + 3, "files are closed")
    await eventually(lambda: int(str(database.value(SESSIONS))) <= sessions + 3, "sessions end")
    await eventually(lambda: database.value(ADVISORY_LOCKS) == 1, "the one by which a reader is counted")
    other.close()
