"""On a large table every statement of the store reads what it gives out and little more, with statistics and without.

What the server counts is looked at, and not plans: rows that were read by way of an index, or by walking the table, for
the store's own statements, prepared and pipelined as they are.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import pytest

from socketio_postgres import END, NO_STREAM, AsyncEventStore, Event, Filter
from tests.fixtures.database import Database
from tests.fixtures.waiting import eventually

ROWS = 100_000
AGGREGATES = 1000
READ = """
SELECT (SELECT coalesce(seq_tup_read, 0) FROM pg_stat_user_tables WHERE relid = 'events'::regclass)
    + (SELECT coalesce(sum(idx_tup_read), 0) FROM pg_stat_user_indexes WHERE relid = 'events'::regclass)
"""
SESSIONS = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"


@dataclass(frozen=True)
class Job:
    """Something a store does.

    Attributes:
        run: Does it.
        limit: Most rows that the server may read for it.
        needs_statistics: Without them PostgreSQL believes that hardly anything matches, and sorts all that does.
    """

    run: Callable[[AsyncEventStore], Awaitable[object]]
    limit: int
    needs_statistics: bool = False


async def page(store: AsyncEventStore) -> None:
    assert len(await store.load(ROWS // 2, limit=500)) == 500


async def last_page(store: AsyncEventStore) -> None:
    assert len(await store.load(limit=10, backwards=True)) == 10


async def page_of_a_type(store: AsyncEventStore) -> None:
    assert len(await store.load(ROWS // 2, types="T1", limit=100)) == 100


async def aggregate(store: AsyncEventStore) -> None:
    assert len(await store.load_by_aggregate("a7")) == ROWS // AGGREGATES


async def beginning(store: AsyncEventStore, *, backwards: bool) -> None:
    count = 0
    async for _ in store.read(backwards=backwards):
        count += 1
        if count == 10:
            break


async def versions(store: AsyncEventStore) -> None:
    assert await store.latest_version() == await store.latest_version(settled=False) == ROWS


async def by_id(store: AsyncEventStore) -> None:
    assert (await store.get("e500")).version == 500


async def one(store: AsyncEventStore) -> None:
    await store.store(Event("T", "new"))


async def one_of_new_aggregate(store: AsyncEventStore) -> None:
    await store.store(Event("T", "newer"), expected=NO_STREAM)


async def one_of_old_aggregate(store: AsyncEventStore) -> None:
    last = (await store.load_by_aggregate("a7", backwards=True, limit=1))[0].version
    await store.store(Event("T", "a7"), expected=last)


async def batch(store: AsyncEventStore) -> None:
    await store.store_batch(Event("T", f"b{i}") for i in range(50))


async def catching_up(store: AsyncEventStore) -> None:
    async with store.subscribe(ROWS - 100, prefetch=10) as live:
        for _ in range(100):
            await live.next(20)


async def from_far_behind(store: AsyncEventStore) -> None:
    async with store.subscribe(1000, [Filter("type", "T2")], prefetch=10) as live:
        for _ in range(50):
            await live.next(20)


async def live_events(store: AsyncEventStore) -> None:
    async with store.subscribe(END) as live:
        for i in range(20):
            await store.store(Event("T", f"c{i}"))
            await live.next(20)


JOBS = {
    "a page": Job(page, 1100),
    "the last page": Job(last_page, 30),
    "a page of a type": Job(page_of_a_type, 700, needs_statistics=True),
    "an aggregate": Job(aggregate, 2 * ROWS // AGGREGATES),
    # Up to three pages are on their way.
    "the first events": Job(functools.partial(beginning, backwards=False), 4500),
    "the last events": Job(functools.partial(beginning, backwards=True), 4500),
    "versions": Job(versions, 10),
    "by id": Job(by_id, 10),
    "one event": Job(one, 10),
    "one of a new aggregate": Job(one_of_new_aggregate, 10),
    # Of a thousand aggregates the last event of one is found by walking the key backwards.
    "one of an old aggregate": Job(one_of_old_aggregate, 3 * AGGREGATES),
    "a batch": Job(batch, 200),
    "catching up": Job(catching_up, 2000),
    "from far behind": Job(from_far_behind, 2000, needs_statistics=True),
    "live": Job(live_events, 200),
}


async def rows_read(database: Database) -> int:
    """How many rows of the table the server has read; it tells at the latest when a session ends."""
    await eventually(lambda: database.value(SESSIONS) == 0, "the store's sessions have ended")
    return int(str(database.value(READ)))


@pytest.mark.parametrize("has_statistics", [True, False], ids=["analyzed", "not analyzed"])
async def test_rows_read(store: AsyncEventStore, database: Database, has_statistics: bool) -> None:
    await store.close()
    with database.connect() as admin:
        admin.execute("ALTER TABLE events SET (autovacuum_enabled = false)")
        admin.execute("ALTER TABLE events DISABLE TRIGGER USER")
        admin.execute(
            "INSERT INTO events (id, aggregate_id, event_type, data) SELECT 'e' || i, 'a' || i % %s, 'T' || i %% 3,"
            " jsonb_build_object('n', i) FROM generate_series(1, %s) AS i".replace("i % %s", "i %% %s"),
            (AGGREGATES, ROWS),
        )
        admin.execute("ALTER TABLE events ENABLE TRIGGER USER")
        if has_statistics:
            admin.execute("ANALYZE events")
    too_many = {}
    before = await rows_read(database)
    for name, job in JOBS.items():
        if job.needs_statistics and not has_statistics:
            continue
        async with AsyncEventStore(database.dsn) as fresh:
            await job.run(fresh)
        after = await rows_read(database)
        if after - before > job.limit:
            too_many[name] = f"{after - before} rows read, at most {job.limit} expected"
        before = after
    assert too_many == {}
