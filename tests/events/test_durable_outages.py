"""Durable subscriptions whose sessions and statements the server ends, at any moment and for any reason."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import asyncpg
import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from socketio_postgres import AsyncEventStore, DatabaseError, Event, StoredEvent
from tests.fixtures.database import Database
from tests.fixtures.waiting import eventually

PARTITIONS = [1, 4]
SQLSTATES = {"statement_timeout": "57014", "lock_timeout": "55P03", "transaction_timeout": "25P04"}


async def fill(store: AsyncEventStore, count: int, start: int = 0) -> None:
    """Store numbered events of three aggregates."""
    await store.store_batch(Event("T", f"a{i % 3}", i) for i in range(start, start + count))


def limited(database: Database, limit: str) -> str:
    """The same database for a role with a limit."""
    return make_conninfo(database.dsn, options=f"-c {limit}")


def known(database: Database, limit: str) -> str:
    """The limit, or, before PostgreSQL 17, another one."""
    is_known = limit != "transaction_timeout" or int(str(database.value("SHOW server_version_num"))) >= 170000
    return limit if is_known else "idle_in_transaction_session_timeout"


# ---------------------------------------------------------------------------------------------------- our sessions


@contextmanager
def role_of(database: Database) -> Iterator[str]:
    """A role whose limits no session of the test's own has."""
    name = f"role_of_{database.name}"
    with database.connect() as admin:
        admin.execute(f"CREATE ROLE {name} SUPERUSER LOGIN".encode())
    yield name
    with database.connect() as admin:
        admin.execute("SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE usename = %s", (name,))
        admin.execute(f"DROP OWNED BY {name}".encode())
        admin.execute(f"DROP ROLE {name}".encode())


@pytest.mark.parametrize("partitions", PARTITIONS)
async def test_idle_sessions_that_the_server_ends(
    our_store: AsyncEventStore, database: Database, partitions: int
) -> None:
    """Now and then just when the next statement is on its way."""
    seen: list[int] = []
    await fill(our_store, 1)
    with role_of(database) as role:
        async with (
            AsyncEventStore(make_conninfo(database.dsn, user=role)) as store,
            store.durable("d", partitions=partitions, lease=1.0, checkpoint_interval=0.02) as durable,
        ):
            with database.connect() as admin:
                admin.execute(f"ALTER ROLE {role} SET idle_session_timeout = 20".encode())
                admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", (role,))
            consuming = asyncio.create_task(durable.run(lambda event: seen.append(event.data)))
            for number in range(1, 150):
                await fill(our_store, 1, number)
                await asyncio.sleep(0.005 * (number % 8))
                assert not consuming.done(), consuming
            await eventually(lambda: consuming.done() or len(set(seen)) == 150, "all have come")
            assert not consuming.done(), consuming
            consuming.cancel()
            await asyncio.gather(consuming, return_exceptions=True)


@pytest.mark.parametrize("partitions", PARTITIONS)
@pytest.mark.parametrize("limit", ["statement_timeout", "lock_timeout", "transaction_timeout"])
async def test_statements_that_a_limit_ends(
    our_store: AsyncEventStore, database: Database, limit: str, partitions: int
) -> None:
    """While an administrator has locked the table of positions, for longer than the limits of our role."""
    limit = "statement_timeout" if known(database, limit) != limit else limit
    seen: list[int] = []
    errors: list[Exception] = []
    async with AsyncEventStore(limited(database, f"{limit}=200ms"), error_handler=errors.append) as store:

        async def consume() -> None:
            async with store.durable("d", partitions=partitions, checkpoint_interval=0) as durable:
                await durable.run(lambda event: seen.append(event.data))

        consuming = asyncio.create_task(consume())
        await fill(our_store, 3)
        await eventually(lambda: len(seen) == 3, "it consumes")
        with database.connect() as admin:
            admin.execute("BEGIN")
            admin.execute("LOCK TABLE events_subscriptions IN ACCESS EXCLUSIVE MODE")
            await fill(our_store, 3, 3)
            await eventually(lambda: errors or consuming.done(), "a statement is ended")
            admin.execute("COMMIT")
        await eventually(lambda: consuming.done() or len(set(seen)) == 6, "all have come")
        assert not consuming.done(), consuming
        consuming.cancel()
        await asyncio.gather(consuming, return_exceptions=True)
    assert {error.sqlstate for error in errors if isinstance(error, DatabaseError)} == {SQLSTATES[limit]}


# ------------------------------------------------------------------------------------------------ the user's sessions


class Slow:
    """Applies events, and waits in its first transaction of several events until the server has ended it."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.batches: list[int] = []
        self.is_ended = False

    async def handle(self, conn: Any, events: Sequence[StoredEvent]) -> None:
        self.batches.append(len(events))
        is_alchemy = "sqlalchemy" in type(conn).__module__
        for event in events:
            statement = f"INSERT INTO effects VALUES ({event.data})"
            await conn.execute(text(statement) if is_alchemy else statement)
        if not self.is_ended:
            in_transaction = "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction'"
            await eventually(lambda: self.database.value(in_transaction) == 0, "the server ends it")
            self.is_ended = True


@pytest.mark.parametrize("limit", ["idle_in_transaction_session_timeout", "transaction_timeout"])
@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("library", ["psycopg", "asyncpg", "SQLAlchemy"])
async def test_a_transaction_that_took_too_long_is_made_again(
    our_store: AsyncEventStore, database: Database, library: str, limit: str, count: int
) -> None:
    """In parts, if it has any. The policy is not asked, because its session was lost."""
    limit = known(database, limit)
    with database.connect() as admin:
        admin.execute("CREATE TABLE effects (data int)")
    await fill(our_store, count)
    engine = create_async_engine(
        database.url.replace("postgresql://", "postgresql+psycopg://"), connect_args={"options": f"-c {limit}=500ms"}
    )
    connects: dict[str, Any] = {
        "psycopg": lambda: psycopg.AsyncConnection.connect(limited(database, f"{limit}=500ms")),
        "asyncpg": lambda: asyncpg.connect(database.url, server_settings={limit: "500ms"}),
        "SQLAlchemy": engine,
    }
    slow = Slow(database)
    projection = our_store.projection("slow")(slow.handle)
    running = asyncio.create_task(our_store.run(projection, connect=connects[library]))
    applied = "SELECT array_agg(data) FROM effects"
    await eventually(lambda: running.done() or database.value(applied) == list(range(count)), "all are applied")
    assert not running.done(), running
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert slow.batches[0] == count
    if library != "asyncpg":  # which does not say why the session has ended
        assert slow.batches[1:] == [1] * count
    await engine.dispose()
