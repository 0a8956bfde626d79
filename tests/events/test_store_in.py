"""Storing in the user's own transaction: with it or not at all, heard when it commits, in the order of versions."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeAlias

import asyncpg
import psycopg
import pytest
from psycopg.rows import dict_row
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from socketio_postgres import (
    EXISTS,
    NO_STREAM,
    AsyncEventStore,
    DuplicateEventError,
    EncodeError,
    Event,
    EventStore,
    OptionsError,
    SchemaMismatchError,
    WrongExpectedVersionError,
)
from tests.fixtures.database import Database
from tests.fixtures.user_transactions import SYNC, GivenUpError
from tests.fixtures.waiting import TIMEOUT_S, eventually, nothing_arrives

Transaction: TypeAlias = "Callable[[], AbstractAsyncContextManager[Any]]"


@pytest.fixture(params=["psycopg", "psycopg raw", "asyncpg", "sqlalchemy", "sqlalchemy session"])
def transaction(request: pytest.FixtureRequest, database: Database) -> Transaction:
    """Opens a transaction of the user's; leaving it with an error rolls it back."""

    @contextlib.asynccontextmanager
    async def of_psycopg() -> AsyncIterator[Any]:
        # Rows as the user likes them are no concern of ours.
        async with await psycopg.AsyncConnection.connect(database.dsn, row_factory=dict_row) as connection:
            yield connection

    @contextlib.asynccontextmanager
    async def of_psycopg_raw() -> AsyncIterator[Any]:
        factory = psycopg.AsyncRawCursor
        async with await psycopg.AsyncConnection.connect(database.dsn, cursor_factory=factory) as connection:
            yield connection

    @contextlib.asynccontextmanager
    async def of_asyncpg() -> AsyncIterator[Any]:
        connection = await asyncpg.connect(database.url)
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(connection.close)
            await connection.set_type_codec("json", encoder=repr, decoder=repr, schema="pg_catalog")
            await stack.enter_async_context(connection.transaction())
            yield connection

    @contextlib.asynccontextmanager
    async def of_sqlalchemy() -> AsyncIterator[Any]:
        engine = create_async_engine(database.url.replace("postgresql://", "postgresql+psycopg://"))
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(engine.dispose)
            yield await stack.enter_async_context(engine.begin())

    @contextlib.asynccontextmanager
    async def of_session() -> AsyncIterator[Any]:
        engine = create_async_engine(database.url.replace("postgresql://", "postgresql+asyncpg://"))
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(engine.dispose)
            session = await stack.enter_async_context(AsyncSession(engine))
            await stack.enter_async_context(session.begin())
            yield session

    kinds: dict[str, Transaction] = {
        "psycopg": of_psycopg,
        "psycopg raw": of_psycopg_raw,
        "asyncpg": of_asyncpg,
        "sqlalchemy": of_sqlalchemy,
        "sqlalchemy session": of_session,
    }
    return kinds[request.param]


async def test_events_come_with_the_commit(store: AsyncEventStore, transaction: Transaction) -> None:
    data = {"percent": "100 %s", "colon": ":name ::x", "quote": "'\"\\", "n": 2**70, "ü": [None, True, 1.5]}
    async with store.subscribe() as live:
        async with transaction() as conn:
            placed = await store.store_in(conn, Event("T", "a:1 %s", data, metadata={"m": 1}), expected=NO_STREAM)
            batch = await store.store_batch_in(conn, [Event("T", "b", 1), Event("T", "a:1 %s", None)])
            waiting = asyncio.create_task(live.next(20))
            await nothing_arrives()
            assert not waiting.done()
            assert len(await store.load()) == 0
        first = await waiting
        assert (first.version, first.id, first.created_at) == (placed.version, placed.id, placed.created_at)
        assert (first.aggregate_id, first.data, first.metadata) == ("a:1 %s", data, {"m": 1})
        assert [(await live.next(20)).version for _ in batch] == [each.version for each in batch]


@pytest.mark.parametrize("table", ['"100 %s"', '"a%"', '":a $1"'])
async def test_a_table_of_any_name(database: Database, transaction: Transaction, table: str) -> None:
    """A name is never taken for a parameter."""
    async with AsyncEventStore(database.dsn, table_name=table) as store:
        async with transaction() as conn:
            await store.store_in(conn, Event("T", "a", 1))
        async with store.durable("reader") as durable:
            event = await asyncio.wait_for(anext(aiter(durable)), TIMEOUT_S)
            async with transaction() as conn:
                await durable.ack_in(conn, event)
        assert event.data == 1


async def test_a_rollback_leaves_nothing(store: AsyncEventStore, transaction: Transaction) -> None:
    async with store.subscribe() as live:
        with contextlib.suppress(GivenUpError):
            async with transaction() as conn:
                lost = await store.store_in(conn, Event("T", "a", "lost"))
                raise GivenUpError
        kept = await store.store(Event("T", "a", "kept"), expected=NO_STREAM)
        assert kept.version > lost.version
        assert (await live.next(20)).data == "kept"
    assert [event.data for event in await store.load()] == ["kept"]


async def test_expectations_and_ids(store: AsyncEventStore, transaction: Transaction) -> None:
    """What is wrong is told before anything is inserted, so the transaction can go on."""
    taken = await store.store(Event("T", "a", id="taken"))
    async with transaction() as conn:
        with pytest.raises(WrongExpectedVersionError) as wrong:
            await store.store_in(conn, [Event("T", "a"), Event("T", "a")], expected=NO_STREAM)
        assert (wrong.value.aggregate_id, wrong.value.expected, wrong.value.actual) == ("a", 0, taken.version)
        with pytest.raises(WrongExpectedVersionError):
            await store.store_batch_in(conn, [Event("T", "x")], expected={"none": EXISTS})
        with pytest.raises(DuplicateEventError) as other:
            await store.store_batch_in(conn, [Event("T", "x"), Event("T", "other", id="taken")])
        assert (other.value.event_id, other.value.version) == ("taken", taken.version)
        again = await store.store_in(conn, Event("T", "a", id="taken"), expected=NO_STREAM)
        assert (again.version, again.is_duplicate, again.created_at) == (taken.version, True, taken.created_at)
        second = await store.store_in(conn, Event("T", "a", 2), expected=taken.version)
        third = await store.store_in(conn, Event("T", "a", 3), expected=second.version)
        assert (await store.store_in(conn, Event("T", "a", 4), expected=EXISTS)).version > third.version
        with pytest.raises(EncodeError):
            await store.store_in(conn, Event("T", "a", float("nan")))
    assert [event.data for event in await store.load_by_aggregate("a")] == [None, 2, 3, 4]


async def test_writers_that_expect_something_wait_for_it(store: AsyncEventStore, transaction: Transaction) -> None:
    async with transaction() as conn:
        placed = await store.store_in(conn, Event("T", "a"))
        waiting = asyncio.create_task(store.store(Event("T", "a"), expected=NO_STREAM))
        await eventually(lambda: store.stats()["store_alone"] > 0, "it waits")
        assert (await asyncio.wait_for(store.store(Event("T", "free"), expected=NO_STREAM), 20)).version > 0
    with pytest.raises(WrongExpectedVersionError) as wrong:
        await asyncio.wait_for(waiting, 20)
    assert wrong.value.actual == placed.version


async def test_the_same_id_at_the_same_moment(store: AsyncEventStore, database: Database) -> None:
    async with (
        await psycopg.AsyncConnection.connect(database.dsn) as one,
        await psycopg.AsyncConnection.connect(database.dsn) as two,
    ):
        event = Event("T", "a", id="same")
        await store.store_in(one, event)
        storing = asyncio.create_task(store.store_in(two, event))
        waits = (
            "SELECT count(*) > 0 FROM pg_stat_activity"
            " WHERE datname = current_database() AND wait_event = 'transactionid'"
        )
        await eventually(lambda: database.value(waits), "it waits for the other transaction")
        assert not storing.done()
        await one.commit()
        with pytest.raises(DuplicateEventError, match="roll back") as meanwhile:
            await storing
        assert meanwhile.value.version == 0
        await two.rollback()
        assert (await store.store_in(two, event)).is_duplicate


async def test_a_savepoint_takes_it_back(store: AsyncEventStore, database: Database) -> None:
    async with await psycopg.AsyncConnection.connect(database.dsn) as conn:
        await store.store_in(conn, Event("T", "a", 1))
        with contextlib.suppress(GivenUpError):
            async with conn.transaction():
                await store.store_in(conn, Event("T", "a", 2))
                raise GivenUpError
        await store.store_in(conn, Event("T", "a", 3))
    assert [event.data for event in await store.load()] == [1, 3]


@pytest.mark.parametrize("level", [psycopg.IsolationLevel.REPEATABLE_READ, psycopg.IsolationLevel.SERIALIZABLE])
async def test_an_old_snapshot_cannot_check(
    store: AsyncEventStore, database: Database, level: psycopg.IsolationLevel
) -> None:
    async with await psycopg.AsyncConnection.connect(database.dsn) as conn:
        await conn.set_isolation_level(level)
        with pytest.raises(OptionsError, match="READ COMMITTED"):
            await store.store_in(conn, Event("T", "a"), expected=NO_STREAM)
        await store.store_in(conn, Event("T", "a"))
    assert len(await store.load()) == 1


async def test_connections_that_will_not_do(store: AsyncEventStore, database: Database) -> None:
    async with await psycopg.AsyncConnection.connect(database.dsn, autocommit=True) as conn:
        with pytest.raises(OptionsError, match="open a transaction"):
            await store.store_in(conn, Event("T", "a"))
        async with conn.transaction():
            await store.store_in(conn, Event("T", "a"))
        await conn.execute("CREATE SCHEMA other; SET search_path = other")
        with pytest.raises(SchemaMismatchError, match="another one"):
            await store.store_in(conn, Event("T", "a"))
    raw = await asyncpg.connect(database.url)
    with pytest.raises(OptionsError, match="open a transaction"):
        await store.store_in(raw, Event("T", "a"))
    await raw.close()
    with pytest.raises(OptionsError, match="psycopg, asyncpg, SQLAlchemy or Django"):
        await store.store_in(object(), Event("T", "a"))
    with pytest.raises(OptionsError):
        await store.store_in(raw, [])
    assert len(await store.load()) == 1


@pytest.mark.parametrize("kind", SYNC)
def test_every_library_for_threads(database: Database, kind: str) -> None:
    opened = SYNC[kind]
    with EventStore(database.dsn) as store:
        with opened(database) as conn:
            first = store.store_in(conn, Event("T", "a", {"percent": "100 %s :x"}, id="1"), expected=NO_STREAM)
        with contextlib.suppress(GivenUpError), opened(database) as conn:
            store.store_in(conn, Event("T", "a", "lost"), expected=first.version)
            raise GivenUpError
        with opened(database) as conn:
            assert store.store_in(conn, Event("T", "a", {"percent": "100 %s :x"}, id="1")).is_duplicate
            with pytest.raises(WrongExpectedVersionError):
                store.store_in(conn, Event("T", "a"), expected=NO_STREAM)
        assert [event.data for event in store.load()] == [{"percent": "100 %s :x"}]


@pytest.mark.parametrize("kind", ["psycopg2", "Connection psycopg2", "Django"])
def test_the_same_id_meanwhile_in_every_library(database: Database, kind: str) -> None:
    """The libraries tell differently which error it was."""
    event = Event("T", "a", id="same")
    with EventStore(database.dsn) as store, database.connect() as admin, ThreadPoolExecutor(1) as pool:

        def second() -> None:
            with pytest.raises(DuplicateEventError, match="roll back"), SYNC[kind](database) as conn:
                store.store_in(conn, event)

        with psycopg.connect(database.dsn) as conn:
            store.store_in(conn, event)
            storing = pool.submit(second)
            waits = (
                "SELECT count(*) > 0 FROM pg_stat_activity"
                " WHERE datname = current_database() AND wait_event = 'transactionid'"
            )
            deadline = time.monotonic() + TIMEOUT_S
            while not storing.done() and admin.execute(waits).fetchone() == (False,):
                assert time.monotonic() < deadline
                time.sleep(0.01)
        storing.result(TIMEOUT_S)


def test_from_threads(database: Database) -> None:
    engine = create_engine(database.url.replace("postgresql://", "postgresql+psycopg://"))
    of_asyncpg = type("Connection", (), {"__module__": "asyncpg.connection", "is_in_transaction": lambda _: True})()
    with EventStore(database.dsn) as store:
        with psycopg.connect(database.dsn) as conn:
            first = store.store_in(conn, Event("T", "a"), expected=NO_STREAM)
        with engine.begin() as alchemy:
            store.store_in(alchemy, Event("T", "a"), expected=first.version)
        assert len(store.load()) == 2
        with pytest.raises(OptionsError, match="asyncio"):
            store.store_in(of_asyncpg, Event("T", "a"))
    engine.dispose()
