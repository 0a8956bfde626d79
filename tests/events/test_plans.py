"""On a large table every statement of the store reads what it gives out and little more, with statistics or without.

What the server counts is looked at: rows that were read by way of an index, or by walking the table, for the store's
own statements, prepared and pipelined as they are. And the plans of those that read: which index, and what is sorted.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import psycopg
import pytest

from socketio_postgres import ANY, END, NO_STREAM, AsyncEventStore, Event, EventNotFoundError, Filter
from tests.events.conftest import GO_TABLE, OUR_TABLE
from tests.fixtures.database import Database
from tests.fixtures.waiting import eventually

ROWS = 100_000
AGGREGATES = 1000
READ = """
SELECT (SELECT coalesce(seq_tup_read, 0) FROM pg_stat_user_tables WHERE relid = 'events'::regclass)
    + (SELECT coalesce(sum(idx_tup_read), 0) FROM pg_stat_user_indexes WHERE relid = 'events'::regclass)
"""
# Before PostgreSQL 15 a process of its own counts, and tells now and then.
IS_COUNTED = "SELECT coalesce(pg_stat_get_snapshot_timestamp(), 'infinity') > %s"
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


async def rows_read(database: Database, but: psycopg.Connection | None = None) -> int:
    """How many rows of the table the server has read; it tells at the latest when a session ends.

    Args:
        database: Where the table is.
        but: A session that goes on, and has read nothing yet.
    """
    others = 0 if but is None else 1
    await eventually(lambda: database.value(SESSIONS) == others, "the store's sessions have ended")
    ended = database.value("SELECT clock_timestamp()")
    await eventually(lambda: database.value(IS_COUNTED, ended), "what they had read is counted")
    return int(str(database.value(READ)))


def without_autovacuum(database: Database) -> None:
    with database.connect() as admin:
        admin.execute("ALTER TABLE events SET (autovacuum_enabled = false)")


def insert(database: Database, name: str = "e") -> None:
    """Many events, with this at the beginning of their ids."""
    with database.connect() as admin:
        admin.execute(
            "INSERT INTO events (id, aggregate_id, event_type, data) SELECT %s || i, 'a' || i %% %s, 'T' || i %% 3,"
            " jsonb_build_object('n', i) FROM generate_series(1, %s) AS i",
            (name, AGGREGATES, ROWS),
        )


def fill(database: Database) -> None:
    """Many events, without statistics."""
    without_autovacuum(database)
    with database.connect() as admin:
        admin.execute("ALTER TABLE events DISABLE TRIGGER USER")
    insert(database)
    with database.connect() as admin:
        admin.execute("ALTER TABLE events ENABLE TRIGGER USER")


@pytest.mark.parametrize("has_statistics", [True, False], ids=["analyzed", "not analyzed"])
async def test_rows_read(store: AsyncEventStore, database: Database, has_statistics: bool) -> None:
    await store.close()
    fill(database)
    if has_statistics:
        with database.connect() as admin:
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


async def write_at_once(store: AsyncEventStore, name: str, *, expected: bool) -> None:
    """Ten calls, which share a group or two; some of them expect something."""
    wanted = NO_STREAM if expected else ANY
    await asyncio.gather(*(store.store(Event("T", f"{name}-{i}"), expected=wanted) for i in range(10)))


async def use(store: AsyncEventStore, name: str) -> None:
    """Each of the statements that a busy process has prepared."""
    last = await store.latest_version(settled=False)
    await write_at_once(store, f"{name}-any", expected=False)
    await write_at_once(store, f"{name}-new", expected=True)
    await store.store(Event("T", name))
    await store.load_by_aggregate(name)
    await store.load(last, limit=10)
    await store.load(limit=3, backwards=True)
    await store.latest_version()
    with pytest.raises(EventNotFoundError):
        await store.get("missing")


@pytest.mark.parametrize("has_statistics", [True, False], ids=["analyzed", "not analyzed"])
@pytest.mark.parametrize("history", ["none", "deleted", "truncated"])
async def test_a_table_that_grows(
    store: AsyncEventStore, database: Database, has_statistics: bool, history: str
) -> None:
    """What PostgreSQL planned for a table of a few rows is not kept while the table grows.

    Until then autovacuum, which is switched off here, was all that ended it: each group of calls read the whole table.
    Versions alone do not say how large the table is: its old events may have been deleted.
    """
    without_autovacuum(database)
    if history != "none":
        database.value("SELECT setval('events_version_seq', 10000000)")
        await use(store, "old")
    if history == "truncated":
        with database.connect() as admin:
            admin.execute("TRUNCATE events RESTART IDENTITY")
    for i in range(10):  # a prepared statement has a plan for any parameters after five uses
        await use(store, f"few-{i}")
        if i == 0 and has_statistics:
            with database.connect() as admin:
                admin.execute("ANALYZE events")
    insert(database)  # and no ALTER TABLE, which would end the plans
    await store.store(Event("T", "the first to see how large it is"))
    for i in range(10):
        await use(store, f"many-{i}")
    await store.close()
    assert await rows_read(database) < 3 * ROWS


@pytest.mark.parametrize("has_statistics", [True, False], ids=["analyzed", "not analyzed"])
async def test_a_table_that_grows_beside_a_connection_of_the_user(
    store: AsyncEventStore, database: Database, has_statistics: bool
) -> None:
    without_autovacuum(database)
    async with await psycopg.AsyncConnection.connect(database.dsn) as conn:
        for name in ("few", "many"):
            for i in range(15):  # psycopg prepares what was used five times, and then PostgreSQL plans it five times
                async with conn.transaction():
                    await store.store_in(conn, Event("T", f"{name}-{i}"))
                if i == 0 and name == "few" and has_statistics:
                    with database.connect() as admin:
                        admin.execute("ANALYZE events")
            insert(database, name)
    await store.close()
    # Only the first call that comes after others have written does not know how many events there are.
    assert await rows_read(database) < 2 * ROWS


@pytest.mark.parametrize("has_statistics", [True, False], ids=["analyzed", "not analyzed"])
async def test_a_subscription_while_the_table_grows(
    store: AsyncEventStore, database: Database, has_statistics: bool
) -> None:
    without_autovacuum(database)
    calls, size = 100, 50
    async with store.subscribe(END) as live, store.subscribe(END, types="T", prefetch=7) as filtered:
        for i in range(20):  # a prepared statement has a plan for any parameters after five uses
            await store.store(Event("T", f"few-{i}"))
            await live.next(20)
            await filtered.next(20)
        if has_statistics:
            with database.connect() as admin:
                admin.execute("ANALYZE events")
        for i in range(calls):
            await store.store_batch(Event("T", f"many-{i}") for _ in range(size))
            for _ in range(size):
                await live.next(20)
                await filtered.next(20)
    await store.close()
    # Each read would walk the table otherwise: some hundred reads of some thousand rows. How many read together before
    # PostgreSQL plans anew depends on when they come.
    assert await rows_read(database) < 20 * calls * size


@pytest.mark.parametrize("has_statistics", [True, False], ids=["analyzed", "not analyzed"])
async def test_a_guarded_table_that_grows(store: AsyncEventStore, database: Database, has_statistics: bool) -> None:
    """The guard's trigger keeps its plan, too: whoever inserted many events read the table for each of them."""
    await store.enable_guard()
    await store.store(Event("T", "a"))
    await store.close()
    without_autovacuum(database)
    with database.connect() as writer:
        if has_statistics:
            writer.execute("ANALYZE events")
        before = await rows_read(database, but=writer)
        for i in range(10):
            writer.execute("INSERT INTO events (id, aggregate_id, event_type) VALUES (%s, 'a', 'T')", (f"few-{i}",))
        writer.execute(
            "INSERT INTO events (id, aggregate_id, event_type) SELECT 'many-' || i, 'a' || i, 'T'"
            " FROM generate_series(1, 3000) AS i"
        )
    assert await rows_read(database) - before < 10_000


VERSIONS = {OUR_TABLE: {"events_pkey"}, GO_TABLE: {"events_pkey", "idx_events_version"}}
AGGREGATE = {OUR_TABLE: {"events_aggregate_version"}, GO_TABLE: {"idx_events_aggregate_id"}}
# Without versions in that index, the last few of an aggregate may be found sooner by walking back.
LAST_OF_AGGREGATE = {OUR_TABLE: AGGREGATE[OUR_TABLE], GO_TABLE: AGGREGATE[GO_TABLE] | VERSIONS[GO_TABLE]}
IDS = {table: {"events_id_key"} for table in (OUR_TABLE, GO_TABLE)}
WAITING_STATEMENT = """
SELECT query FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'
    AND strpos(query, 'FROM "events"') > 0
"""
"""A session's text of it has at most 1023 bytes; those that read are shorter."""


@dataclass(frozen=True)
class Read:
    """A statement that reads.

    Attributes:
        run: Has the store send it.
        parameters: Its parameters, as SQL.
        indexes: By the table's origin, the indexes that it may use; it must use one of them.
        may_sort: On which tables a plan may sort what it has found.
        needs_statistics: As above.
    """

    run: Callable[[AsyncEventStore], Awaitable[object]]
    parameters: str
    indexes: dict[str, set[str]]
    may_sort: tuple[str, ...] = ()
    needs_statistics: bool = False


async def pages_after_the_first(store: AsyncEventStore) -> None:
    count = 0
    async for _ in store.read(types="T1"):
        count += 1
        if count == 3000:
            break


async def id_that_is_missing(store: AsyncEventStore) -> None:
    """Of one that is there the page with the event is read afterwards."""
    with pytest.raises(EventNotFoundError):
        await store.get("missing")


async def last_of_aggregate(store: AsyncEventStore) -> None:
    assert len(await store.load_by_aggregate("a7", backwards=True, limit=5)) == 5


READS = {
    "load": Read(page, "50000, 500", VERSIONS),
    "load backwards": Read(last_page, "10", VERSIONS),
    "load a type": Read(page_of_a_type, "50000, 'T1', 100", VERSIONS, needs_statistics=True),
    "read a type": Read(pages_after_the_first, "3000, 'T1', 1000", VERSIONS, needs_statistics=True),
    "load by aggregate": Read(aggregate, "0, 'a7'", AGGREGATE, may_sort=(OUR_TABLE, GO_TABLE)),
    "load the last of an aggregate": Read(last_of_aggregate, "'a7', 5", LAST_OF_AGGREGATE, may_sort=(GO_TABLE,)),
    "latest version": Read(lambda store: store.latest_version(settled=False), "9223372036854775807", VERSIONS),
    "id": Read(id_that_is_missing, "'e500'", IDS),
}


async def statement_of(read: Read, database: Database) -> str:
    """The statement that reads, caught while it waits for the table."""
    async with AsyncEventStore(database.dsn) as fresh:
        with database.connect() as blocker, database.connect() as spy:
            blocker.execute("BEGIN")
            blocker.execute("LOCK TABLE events IN ACCESS EXCLUSIVE MODE")
            reading = asyncio.ensure_future(read.run(fresh))
            row = await eventually(lambda: spy.execute(WAITING_STATEMENT).fetchone(), "the reader waits")
            blocker.execute("ROLLBACK")
        await reading
    assert row is not None
    return str(row[0])


def plans(database: Database, statement: str, parameters: str) -> list[str]:
    """Of a statement that is prepared, when the server looks at the parameters and when it does not."""
    found = []
    with database.connect() as session:
        session.execute(f"PREPARE read AS {statement}".encode())
        for mode in ("force_custom_plan", "force_generic_plan"):
            session.execute(f"SET plan_cache_mode = {mode}".encode())
            lines = session.execute(f"EXPLAIN EXECUTE read ({parameters})".encode()).fetchall()
            found.append("\n".join(line[0] for line in lines))
    return found


async def test_plans(store: AsyncEventStore, table: str, database: Database) -> None:
    """Prepared for any parameters or planned for these: by the intended index, without walking the table or sorting."""
    await store.close()
    fill(database)
    wrong = {}
    for has_statistics in (False, True):
        if has_statistics:
            with database.connect() as admin:
                admin.execute("ANALYZE events")
        for name, read in READS.items():
            if read.needs_statistics and not has_statistics:
                continue
            statement = await statement_of(read, database)
            for plan in plans(database, statement, read.parameters):
                is_by_index = any(index in plan for index in read.indexes[table])
                if not is_by_index or "Seq Scan" in plan or ("Sort" in plan and table not in read.may_sort):
                    wrong[name, has_statistics] = plan
    assert wrong == {}
