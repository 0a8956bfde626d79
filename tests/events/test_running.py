"""What docs/running-the-store.md says: the rights it grants are enough, and deleting old events disturbs nobody."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from socketio_postgres import NO_STREAM, AsyncEventStore, DatabaseError, Event, WrongExpectedVersionError
from tests.fixtures.database import Database
from tests.fixtures.program import ROOT

PAGE: Path = ROOT / "docs" / "running-the-store.md"
ROLES = ("writer", "reader", "consumer")


def statements(beginning: str) -> str:
    """The page's block of SQL that begins so."""
    blocks: list[str] = re.findall(r"```sql\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (block,) = (block for block in blocks if block.startswith(beginning))
    return block


def stated_sizes() -> list[int]:
    """Bytes of an event: all of them, those in the table, and those in the indexes."""
    pattern = r"about (\d+) bytes beside its data and metadata: (\d+) in the table and (\d+) in"
    stated = re.search(pattern, PAGE.read_text())
    assert stated is not None
    return [int(number) for number in stated.groups()]


@pytest.fixture
async def dsns(database: Database) -> AsyncIterator[dict[str, str]]:
    """Connection strings of roles with the page's rights and no others, on tables that their owner made."""
    names = {role: f"{role}_{database.name}" for role in ROLES}
    async with AsyncEventStore(database.dsn) as store, store.durable("first"):
        pass
    with database.connect() as admin:
        for role, name in names.items():
            admin.execute(f"CREATE ROLE {name} LOGIN".encode())
            granted = "\n".join(line for line in statements("-- Stores").splitlines() if line.endswith(f" TO {role};"))
            admin.execute(granted.replace(f" TO {role};", f" TO {name};").encode())
    yield {role: make_conninfo(database.dsn, user=name) for role, name in names.items()}
    with database.connect() as admin:
        for name in names.values():
            admin.execute(f"DROP OWNED BY {name} CASCADE".encode())
            admin.execute(f"DROP ROLE {name}".encode())


async def test_the_rights_are_enough_and_no_more(dsns: dict[str, str]) -> None:
    async with AsyncEventStore(dsns["writer"]) as writer:
        await writer.store(Event("T", "a-1"), expected=NO_STREAM)
        with pytest.raises(WrongExpectedVersionError):
            await writer.store(Event("T", "a-1"), expected=NO_STREAM)
        await writer.store_batch([Event("T", "a-2")])
        await writer.import_events([Event("T", "a-3")])
        async with await psycopg.AsyncConnection.connect(dsns["writer"]) as conn:
            await writer.store_in(conn, Event("T", "a-4"))
    async with AsyncEventStore(dsns["reader"]) as reader:
        assert len(await reader.load()) == 4
        async with reader.subscribe() as live:
            assert [(await anext(live)).aggregate_id for _ in range(4)] == ["a-1", "a-2", "a-3", "a-4"]
        with pytest.raises(DatabaseError, match="42501"):
            await reader.store(Event("T", "b"))
        with pytest.raises(DatabaseError, match="42501"):
            async with reader.durable("second"):
                pass
    async with AsyncEventStore(dsns["consumer"]) as consumer:
        async with consumer.durable("second", partitions=2) as durable:
            async for event in durable:
                await durable.ack(event)
                break
        await consumer.rewind_durable("second", 0)
        await consumer.delete_durable("second")
        with pytest.raises(DatabaseError, match="42501"):
            await consumer.store(Event("T", "b"))
    for dsn in dsns.values():
        async with await psycopg.AsyncConnection.connect(dsn) as conn:
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                await conn.execute("DELETE FROM events")


async def test_an_event_takes_as_much_space_as_the_page_says(database: Database) -> None:
    total, table, indexes = stated_sizes()
    assert table + indexes == total
    async with AsyncEventStore(database.dsn) as store:
        await store.import_events(Event("OrderPlaced", f"order-{i}", {"total": i}) for i in range(20_000))
    sql = (
        "SELECT ((pg_relation_size('events') + pg_indexes_size('events')) / count(*) - avg(pg_column_size(data)))::int"
        " FROM events"
    )
    assert database.value(sql) == pytest.approx(total, rel=0.1)


async def test_deleting_old_events_disturbs_no_reader(database: Database) -> None:
    async with AsyncEventStore(database.dsn) as store:
        await store.store_batch(Event("T", "a", i) for i in range(10))
        async with store.subscribe() as live:
            assert [(await anext(live)).data for _ in range(10)] == list(range(10))
            async with store.durable("d") as durable:
                async for event in durable:
                    if event.version == 6:
                        await durable.ack(event)
                        break
            with database.connect() as admin:
                admin.execute("UPDATE events SET created_at = now() - interval '91 days'")
                assert admin.execute(statements("DELETE").encode()).rowcount == 5
            await store.store(Event("T", "a", "new"))
            assert (await anext(live)).data == "new"
        async with store.durable("d") as durable:
            async for event in durable:
                assert event.version == 7
                break
        assert [event.version for event in await store.load()] == [6, 7, 8, 9, 10, 11]
    # Another process, which begins before the oldest event that is left.
    async with AsyncEventStore(database.dsn) as store, store.subscribe(after=2) as live:
        assert (await anext(live)).version == 6
