"""Durable subscriptions whose sessions and statements the server ends, at any moment and for any reason."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import asyncpg
import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from socketio_postgres import AsyncDurableSubscription, AsyncEventStore, DatabaseError, Event, Park, StoredEvent
from socketio_postgres.events import async_durable_subscription
from tests.fixtures.database import Database
from tests.fixtures.proxy import Direction, Link, Proxy, Shape
from tests.fixtures.waiting import TIMEOUT_S, eventually

PARTITIONS = [1, 4]
SQLSTATES = {"statement_timeout": "57014", "lock_timeout": "55P03", "transaction_timeout": "25P04"}


async def fill(store: AsyncEventStore, count: int, start: int = 0) -> None:
    """Store numbered events of three aggregates."""
    await store.store_batch(Event("T", f"a{i % 3}", i) for i in range(start, start + count))


LIMIT_S = 8
"""Which nothing needs but what waits for a lock."""


def limited(database: Database, limit: str) -> str:
    """The same database for a role with a limit."""
    return make_conninfo(database.dsn, options=f"-c {limit}")


def patient(proxy: Proxy) -> str:
    """The way through the proxy for a store that has time to connect."""
    return make_conninfo(proxy.dsn, connect_timeout=int(TIMEOUT_S))


def known(database: Database, limit: str) -> str:
    """The limit, or, before PostgreSQL 17, another one."""
    is_known = limit != "transaction_timeout" or int(str(database.value("SHOW server_version_num"))) >= 170000
    return limit if is_known else "idle_in_transaction_session_timeout"


# ---------------------------------------------------------------------------------------------------- our sessions


@contextlib.contextmanager
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
            with database.connect() as admin:  # or none might live long enough, where others have the processor
                admin.execute(f"ALTER ROLE {role} RESET idle_session_timeout".encode())
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
    await our_store.durable_subscriptions()  # makes the tables, under no limit
    async with AsyncEventStore(limited(database, f"{limit}={LIMIT_S}s"), error_handler=errors.append) as store:

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
    """Applies events, and waits in its first transaction until the server has ended it."""

    def __init__(self, database: Database, limit: str) -> None:
        self.database = database
        self.limit = limit
        self.batches: list[int] = []
        self.is_ended = False

    async def handle(self, conn: Any, events: Sequence[StoredEvent]) -> None:
        self.batches.append(len(events))
        is_alchemy = "sqlalchemy" in type(conn).__module__
        for event in events:
            statement = f"INSERT INTO effects VALUES ({event.data})"
            await conn.execute(text(statement) if is_alchemy else statement)
        if not self.is_ended:
            # For this transaction alone: the others take as long as they need.
            statement = f"SET LOCAL {self.limit} = '500ms'"
            await conn.execute(text(statement) if is_alchemy else statement)
            in_transaction = (
                "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction'"
                " AND datname = current_database()"
            )
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
    engine = create_async_engine(database.url.replace("postgresql://", "postgresql+psycopg://"))
    connects: dict[str, Any] = {
        "psycopg": lambda: psycopg.AsyncConnection.connect(database.dsn),
        "asyncpg": lambda: asyncpg.connect(database.url),
        "SQLAlchemy": engine,
    }
    slow = Slow(database, limit)
    projection = our_store.projection("slow")(slow.handle)
    running = asyncio.create_task(
        our_store.run(projection, connect=connects[library], max_count=count, max_wait=TIMEOUT_S)
    )
    applied = "SELECT array_agg(data) FROM effects"
    await eventually(lambda: running.done() or database.value(applied) == list(range(count)), "all are applied")
    assert not running.done(), running
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert slow.batches[0] == count
    if library != "asyncpg":  # which does not say why the session has ended
        assert slow.batches[1:] == [1] * count
    await engine.dispose()


# --------------------------------------------------------------------------------------- at each of the statements


STATEMENT = re.compile(rb"events_(subscriptions|consumers|parked)")


class Kill:
    """Ends the link on which the n-th statement about a durable subscription is sent, before or after that arrives."""

    def __init__(self, proxy: Proxy, number: int, *, arrives: bool) -> None:
        self.number = number
        self.count = 0
        self.arrives = arrives
        proxy.observe = self.see

    def see(self, link: Link, direction: Direction, data: bytes) -> None:
        """Called in the proxy's thread, before the data is passed on."""
        if direction == "to_client" or not STATEMENT.search(data):
            return
        self.count += 1
        if self.count == self.number:
            if self.arrives:
                asyncio.get_running_loop().call_soon(link.abort)
            else:
                link.abort()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("arrives", [False, True], ids=["lost", "answer lost"])
async def test_a_connection_that_is_lost_at_the_nth_statement(
    our_store: AsyncEventStore, database: Database, monkeypatch: pytest.MonkeyPatch, *, arrives: bool
) -> None:
    """Of entering, claiming, counting, writing, parking, replaying and leaving; before it arrives, or after."""
    # The number of statements does not depend on how long they take.
    monkeypatch.setattr(async_durable_subscription, "BALANCE_SECONDS", 10 * TIMEOUT_S)
    with database.connect() as admin:
        admin.execute("CREATE TABLE effects (id bigserial, name text, data int)")
    await fill(our_store, 9)
    async with our_store.durable("makes the tables"):
        pass
    number = 0
    with Proxy(database) as proxy:
        while True:
            number += 1
            kill = Kill(proxy, number, arrives=arrives)
            # Unprepared: then each statement is sent with its text.
            async with AsyncEventStore(patient(proxy), enable_prepared_stmts=False) as store:
                await consume_all(store, our_store, database, f"d{number}")
            if kill.count < number:
                break
    assert number > 15, "there are as many at least"


@contextlib.asynccontextmanager
async def entered(store: AsyncEventStore, name: str) -> AsyncIterator[AsyncDurableSubscription]:
    """A durable subscription, entered again if the connection was lost meanwhile."""
    while True:
        durable = store.durable(name, partitions=2, lease=600, checkpoint_interval=0)
        try:
            await durable.__aenter__()
            break
        except DatabaseError:
            continue
    yield durable
    await durable.__aexit__(None, None, None)


async def consume_all(store: AsyncEventStore, direct: AsyncEventStore, database: Database, name: str) -> None:
    """Handle events of three aggregates. One event fails, so that its aggregate is parked; another one is not exact."""
    async with entered(store, name):
        pass
    with database.connect() as admin:  # each event is counted before it is handled
        admin.execute("UPDATE events_subscriptions SET owner = 'dead', unclean = 2 WHERE name = %s", (name,))
    handled: list[int] = []
    async with (
        await psycopg.AsyncConnection.connect(database.dsn, autocommit=True) as connection,
        entered(store, name) as durable,
    ):

        async def handler(event: StoredEvent) -> None:
            handled.append(event.data)
            if event.data == 1 and handled.count(1) == 1:
                raise ValueError("one")
            if event.data % 3 != 2:
                async with connection.transaction():
                    await connection.execute("INSERT INTO effects (name, data) VALUES (%s, %s)", (name, event.data))
                    await durable.ack_in(connection, event)

        running = asyncio.create_task(durable.run(handler, Park()))
        parked = "SELECT count(*) FROM events_parked WHERE name = %s"
        await eventually(
            lambda: running.done() or ({8, 6} <= set(handled) and database.value(parked, name) == 3),
            f"{name} is through",
        )
        assert not running.done(), running
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await durable.replay_parked(handler)
    effects = database.value("SELECT array_agg(data ORDER BY id) FROM effects WHERE name = %s", name)
    assert effects == [0, 3, 6, 1, 4, 7], name
    assert [data for data in handled if data % 3 == 2] == [2, 5, 8], name
    (state,) = [each for each in await direct.durable_subscriptions() if each.name == name]
    assert (state.position, state.parked) == (9, 0)
    assert [each.owner for each in state.partitions] == [None, None], "nobody waits for a lease"


# ---------------------------------------------------------------------------------------------- leaving, and reading


@pytest.mark.parametrize("partitions", PARTITIONS)
@pytest.mark.parametrize("is_silent", [False, True], ids=["refused", "silent"])
async def test_leaving_while_the_database_is_away(
    database: Database, monkeypatch: pytest.MonkeyPatch, partitions: int, *, is_silent: bool
) -> None:
    """D6: the user's error is not hidden, and not kept waiting until a statement is given up."""
    monkeypatch.setattr(async_durable_subscription, "ERROR_LIMIT", 1.0)  # as it is outside of tests
    with Proxy(database) as proxy:
        async with AsyncEventStore(patient(proxy), answer_timeout=10 * TIMEOUT_S) as store:
            await fill(store, 3)

            async def leave() -> None:
                async with store.durable("d", partitions=partitions) as durable:
                    for _ in range(2):
                        await anext(durable)
                    if is_silent:
                        proxy.swallow_from(b"", count=float("inf"))
                        for link in proxy.links:
                            link.swallow()
                    else:
                        proxy.refuse()
                        proxy.reset()
                    raise ValueError("the user's")

            with pytest.raises(ValueError, match="the user's"):
                await asyncio.wait_for(leave(), TIMEOUT_S)
            proxy.traps.clear()
            proxy.accept()
            proxy.reset()


async def test_a_read_that_takes_longer_than_the_lease(our_store: AsyncEventStore, database: Database) -> None:
    """D7: it is renewed meanwhile. Otherwise whoever stands by would take over, and read for as long, and so on."""
    lease = 15.0
    await our_store.store_batch(Event("T", "a", os.urandom(10_000).hex()) for _ in range(100))
    with Proxy(database) as proxy:
        async with (
            AsyncEventStore(patient(proxy)) as far,
            far.durable("d", lease=lease, checkpoint_interval=0) as durable,
        ):
            standing_by = asyncio.create_task(our_store.durable("d", lease=lease).__aenter__())
            proxy.shape = Shape(bytes_per_second=80_000)
            began = time.monotonic()
            event = await anext(durable)
            assert time.monotonic() - began > 1.5 * lease
            assert not standing_by.done(), standing_by
            proxy.shape = Shape()
            await durable.ack(event)
            standing_by.cancel()
            await asyncio.gather(standing_by, return_exceptions=True)
