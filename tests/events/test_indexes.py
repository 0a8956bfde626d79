"""Indexes on request: made while others write, repaired, and used by the readers that they are for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from socketio_postgres import AsyncEventStore, Event, Filter, OptionsError, SchemaMismatchError
from socketio_postgres.events.partition import partition_of
from tests.events.test_plans import ROWS, fill, plans, rows_read
from tests.fixtures.database import Database
from tests.fixtures.waiting import eventually

PARTITIONS = 8
INVALID = "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'events_type_version'::regclass"
IS_VALID = "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(%s)"

Job = Callable[[AsyncEventStore], Awaitable[None]]


async def add_all(store: AsyncEventStore) -> None:
    await store.add_index("type")
    await store.add_index("category")
    await store.add_index("partition", partitions=PARTITIONS)


async def test_they_are_made_once(our_store: AsyncEventStore, database: Database) -> None:
    before = set(our_store.layout()["indexes"])
    for _ in range(2):
        await add_all(our_store)
    for suffix in ("type_version", "category_version", f"partition_{PARTITIONS}"):
        assert database.value(IS_VALID, f"events_{suffix}") is True
    added = {'"events_type_version"', '"events_category_version"', '"events_partition_8"'}
    assert set(our_store.layout()["indexes"]) - before == added
    async with AsyncEventStore(database.dsn) as another:
        assert another.layout()["indexes"] == our_store.layout()["indexes"]


async def test_many_at_once(our_store: AsyncEventStore, database: Database) -> None:
    """Of several processes one makes it, and the others wait until it is valid."""
    stores = [AsyncEventStore(database.dsn) for _ in range(4)]
    await our_store.store_batch(Event("T", f"a-{i}") for i in range(1000))
    await asyncio.gather(*(store.add_index("category") for store in stores))
    for store in stores:
        assert any("category" in name for name in store.layout()["indexes"])
        await store.close()


async def test_one_that_is_left_invalid_is_made_again(our_store: AsyncEventStore, database: Database) -> None:
    await our_store.add_index("type")
    with database.connect() as admin:
        before = admin.execute("SELECT 'events_type_version'::regclass::oid").fetchone()
        admin.execute("SET allow_system_table_mods TO on")
        admin.execute(INVALID)
    async with AsyncEventStore(database.dsn) as store:
        assert not any("type" in name for name in store.layout()["indexes"])
        await store.add_index("type")
        assert any("type" in name for name in store.layout()["indexes"])
    with database.connect() as admin:
        assert admin.execute("SELECT 'events_type_version'::regclass::oid").fetchone() != before
    assert database.value(IS_VALID, "events_type_version") is True


async def test_writers_go_on_meanwhile(our_store: AsyncEventStore, database: Database) -> None:
    """It waits for a transaction that is open when it begins, and nobody waits for it."""
    await our_store.store(Event("T", "a"))
    with database.connect() as writer:
        writer.execute("BEGIN")
        writer.execute("INSERT INTO events (id, aggregate_id, event_type) VALUES ('e', 'a', 'T')")
        adding = asyncio.ensure_future(our_store.add_index("type"))
        is_there = "SELECT to_regclass('events_type_version') IS NOT NULL"
        await eventually(lambda: database.value(is_there), "it has begun")
        await our_store.store(Event("T", "b"))
        assert database.value(IS_VALID, "events_type_version") is False
        assert not adding.done()
        writer.execute("COMMIT")
    await asyncio.wait_for(adding, 60)
    assert database.value(IS_VALID, "events_type_version") is True


async def test_the_table_of_go_stays_as_it_is(go_store: AsyncEventStore, database: Database) -> None:
    before = database.value("SELECT count(*) FROM pg_index WHERE indrelid = 'events'::regclass")
    for kind in ("type", "category"):
        with pytest.raises(SchemaMismatchError, match="go-sync-kit"):
            await go_store.add_index(kind)
    assert database.value("SELECT count(*) FROM pg_index WHERE indrelid = 'events'::regclass") == before


@pytest.mark.parametrize(
    ("kind", "partitions"),
    [("data", None), ("type", 4), ("partition", None), ("partition", 0), ("partition", 1025), ("partition", True)],
)
async def test_arguments_are_checked(our_store: AsyncEventStore, kind: Any, partitions: Any) -> None:
    with pytest.raises(OptionsError):
        await our_store.add_index(kind, partitions=partitions)


async def test_another_table_with_the_index_name(our_store: AsyncEventStore, database: Database) -> None:
    with database.connect() as admin:
        admin.execute("CREATE TABLE other (a int)")
        admin.execute("CREATE INDEX events_type_version ON other (a)")
    with pytest.raises(SchemaMismatchError, match="another table"):
        await our_store.add_index("type")


async def test_the_partition_is_the_same_everywhere(our_store: AsyncEventStore, database: Database) -> None:
    await our_store.add_index("partition", partitions=1024)
    for name in ("a", "order-1", "Größe", "日本語", "\\x00", "x" * 1000):
        for count in (1, 7, 1024):
            assert database.value("SELECT events_partition(%s, %s)", name, count) == partition_of(name, count)


# ------------------------------------------------------------------------------------------ which rows are read


async def rare_type(store: AsyncEventStore) -> None:
    assert len(await store.load(types="Rare", limit=100)) == 10


async def rare_category(store: AsyncEventStore) -> None:
    assert len(await store.load(filters=[Filter("aggregate_prefix", "rare-")], limit=100)) == 10
    assert len(await store.load(filters=[Filter("aggregate_prefix", ["rare-1", "none-"])], limit=100)) == 2


async def subscribed(store: AsyncEventStore) -> None:
    async with store.subscribe(0, [Filter("aggregate_prefix", "rare-")]) as live:
        for _ in range(10):
            assert (await live.next(60)).event_type == "Rare"


async def own_partition(store: AsyncEventStore) -> None:
    """As a durable subscription reads that owns one of the partitions."""
    live = store._subscription([("partitions", str(PARTITIONS), ["3"])], 0, 500, 60.0)
    seen = 0
    async with live:
        while (await live.next(60)).version <= ROWS // 2:
            seen += 1
    assert ROWS / 2 / PARTITIONS * 0.8 < seen < ROWS / 2 / PARTITIONS * 1.2


JOBS: dict[str, tuple[Job, int]] = {
    "a rare type": (rare_type, 50),
    "a rare category": (rare_category, 50),
    "a subscription to a rare category": (subscribed, 300),
    # Half of the table, in windows that hold about two pages. All partitions together are eight times that.
    "a partition": (own_partition, ROWS // 2 // PARTITIONS * 4),
}


@pytest.mark.parametrize("has_statistics", [True, False], ids=["analyzed", "not analyzed"])
async def test_rows_read(our_store: AsyncEventStore, database: Database, has_statistics: bool) -> None:
    await add_all(our_store)
    await our_store.close()
    fill(database)
    with database.connect() as admin:
        admin.execute(
            "UPDATE events SET event_type = 'Rare', aggregate_id = 'rare-' || version / 10000 WHERE version % 10000 = 0"
        )
        admin.execute("VACUUM events")
        if has_statistics:
            admin.execute("ANALYZE events")
    too_many = {}
    before = await rows_read(database)
    for name, (run, limit) in JOBS.items():
        async with AsyncEventStore(database.dsn) as fresh:
            await run(fresh)
        after = await rows_read(database)
        if after - before > limit:
            too_many[name] = f"{after - before} rows read, at most {limit} expected"
        before = after
    assert too_many == {}


PLANS = {
    "type": ("event_type = $2", "'Rare'", "events_type_version"),
    "category": ("pg_catalog.split_part(aggregate_id, '-', 1) = $2", "'rare'", "events_category_version"),
    "partition": ('"events_partition"(aggregate_id, 8) = $2', "3", "events_partition_8"),
}


async def test_plans(our_store: AsyncEventStore, database: Database) -> None:
    """By the index, for any parameters and for these, with statistics and without."""
    await add_all(our_store)
    await our_store.close()
    fill(database)
    with database.connect() as admin:  # of few types, walking the key finds enough events
        admin.execute("UPDATE events SET event_type = 'T' || version % 300")
        admin.execute("VACUUM events")
    wrong = {}
    for has_statistics in (False, True):
        if has_statistics:
            with database.connect() as admin:
                admin.execute("ANALYZE events")
        for name, (condition, value, index) in PLANS.items():
            statement = (
                f"SELECT version, data FROM events WHERE version > $1 AND version <= $3 AND {condition}"
                " ORDER BY version LIMIT $4"
            )
            for plan in plans(database, statement, f"1000, {value}, 90000, 500"):
                if index not in plan or "Seq Scan" in plan:
                    wrong[name, has_statistics] = plan
    assert wrong == {}


async def test_every_page_of_a_rare_category(our_store: AsyncEventStore, database: Database) -> None:
    """Also from the sixth on, when PostgreSQL plans a prepared statement for any category, and there are but two."""
    await our_store.add_index("category")
    await our_store.close()
    fill(database)
    with database.connect() as admin:
        admin.execute(
            "UPDATE events SET aggregate_id = CASE WHEN version % 100 = 0 THEN 'rare-' ELSE 'order-' END || version"
        )
        admin.execute("VACUUM ANALYZE events")
    before = await rows_read(database)
    async with (
        AsyncEventStore(database.dsn) as fresh,
        fresh.subscribe(0, [Filter("aggregate_prefix", "rare-")], prefetch=10) as live,
    ):
        for _ in range(ROWS // 100):
            assert (await live.next(60)).aggregate_id.startswith("rare-")
    assert await rows_read(database) - before < 5000
