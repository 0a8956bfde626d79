"""Projections at their seams: repartitioned, deleted, locked, cancelled or misconfigured at the moment of a switch."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import psycopg
import pytest
from psycopg_pool import AsyncConnectionPool
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from socketio_postgres import (
    AsyncEventStore,
    EventStore,
    EventStoreError,
    OptionsError,
    Park,
    Projection,
    SchemaMismatchError,
    Skip,
    Stop,
    StoredEvent,
    SubscriptionRetiredError,
)
from tests.events.test_projections import connecting, running
from tests.events.test_switch import Effects, Served, connect, fill, filling, reached, retired, seen, served
from tests.fixtures.database import Database
from tests.fixtures.pgbouncer import PgBouncer, pgbouncer_program
from tests.fixtures.waiting import TIMEOUT_S, eventually, nothing_arrives

__all__ = ["connect", "pgbouncer_program", "served"]

WAITERS = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
OWNED = "SELECT count(*) FROM events_subscriptions WHERE owner IS NOT NULL"


async def waits(database: Database, count: int = 1) -> None:
    """Wait until sessions wait for locks."""
    await seen(lambda: int(str(database.value(WAITERS))) >= count, "it waits for a lock")


async def in_time(work: Any) -> Any:
    """The result, or a failure of the test."""
    return await asyncio.wait_for(asyncio.shield(work), TIMEOUT_S)


def told_of(store: AsyncEventStore) -> list[BaseException]:
    """What the store tells from now on."""
    told: list[BaseException] = []
    store._error_handler = told.append  # type: ignore[assignment]
    return told


class Gated(Effects):
    """Its switch waits, with everything locked."""

    def __init__(self, version: int = 2) -> None:
        super().__init__(version)
        self.is_switching = asyncio.Event()
        self.gate = asyncio.Event()

    async def switch(self, conn: Any) -> None:
        await super().switch(conn)
        self.is_switching.set()
        await self.gate.wait()


# ------------------------------------------------------------------------------------------------ repartitioned


async def test_consumers_of_another_number_of_partitions_end(
    our_store: AsyncEventStore, database: Database, served: Served, connect: Callable[[], Any]
) -> None:
    """Its one partition would be all events for one consumer, and a quarter of them for the others."""
    await fill(our_store, 40)
    async with running(our_store.run(Effects(1), connect=connect)) as before:
        await reached(our_store, 40)
        await our_store.pause_durable("effects")
        await our_store.repartition_durable("effects", 4)
        await our_store.resume_durable("effects")
        await seen(lambda: before.done() or database.value(OWNED), "it has noticed")
        async with running(our_store.run(Effects(1), connect=connect, partitions=4)):
            await fill(our_store, 40, 40)
            last = await our_store.latest_version()
            await eventually(lambda: database.value("SELECT min(position) FROM events_subscriptions") == last, "all")
            await nothing_arrives()
        assert sorted(served.data()) == list(range(80))
        with pytest.raises(OptionsError, match="made with 4"):
            await in_time(before)


@asynccontextmanager
async def repartitioning(store: AsyncEventStore, database: Database, name: str, count: int) -> AsyncIterator[None]:
    """`repartition_durable` in a transaction, which is committed at the end of the block."""
    sent: list[tuple[str, ...]] = []

    async def note(*statement: str) -> list[list[str]]:
        sent.append(statement)
        return [["done"]]

    query, store._query_durable = store._query_durable, note  # type: ignore[method-assign,assignment]
    await store.repartition_durable(name, count)
    store._query_durable = query  # type: ignore[method-assign]
    ((sql, *_),) = sent
    admin = await asyncpg.connect(database.url)
    async with admin.transaction():
        # Whoever had it was frozen for longer than the lease.
        await admin.execute("UPDATE events_subscriptions SET lease_until = NULL WHERE name = $1", name)
        assert len(await admin.fetch(sql, name, count)) == count
        yield
    await admin.close()


@pytest.mark.parametrize(("before", "after"), [(1, 4), (4, 1)])
async def test_the_served_version_is_repartitioned_at_the_switch(
    our_store: AsyncEventStore, database: Database, served: Served, connect: Callable[[], Any], before: int, after: int
) -> None:
    """All its new partitions are retired, whether the switch waits for them or they for the switch."""
    await fill(our_store, 20)
    async with running(our_store.run(Effects(1), connect=connect, partitions=before)):
        await eventually(lambda: len(served.data()) == 20, "the old one serves")
    await our_store.rewind_durable("effects", 20)
    new = Gated()
    async with repartitioning(our_store, database, "effects", after):
        switching = asyncio.create_task(our_store.run(new, connect=connect))
        await waits(database)
    await in_time(new.is_switching.wait())
    async with asyncpg.create_pool(database.url, min_size=1) as pool:
        late = asyncio.create_task(our_store.repartition_durable("effects", 2))
        await waits(database)
        new.gate.set()
        with pytest.raises(OptionsError, match="replaced by 'effects@2'"):
            await in_time(late)
        for partitions in (before, after):
            with pytest.raises(SubscriptionRetiredError):
                await in_time(our_store.run(Effects(1), connect=pool, partitions=partitions))
    rows = "SELECT count(*) FROM events_subscriptions WHERE name = 'effects' AND replaced_by = 'effects@2'"
    assert database.value(rows) == after
    await fill(our_store, 20, 20)
    await reached(our_store, 40)
    switching.cancel()
    await asyncio.gather(switching, return_exceptions=True)
    assert (served.switches(), served.data()) == ([2], list(range(40)))


@pytest.mark.parametrize(("before", "after"), [(1, 4), (4, 1)])
async def test_the_new_version_is_repartitioned_at_the_switch(
    our_store: AsyncEventStore, database: Database, served: Served, connect: Callable[[], Any], before: int, after: int
) -> None:
    """It takes over with what it has by then, and a consumer that knows another number of partitions ends."""
    await fill(our_store, 20)
    async with running(our_store.run(Effects(1), connect=connect)) as old:
        await reached(our_store, 20)
        async with our_store.durable("effects@2", partitions=before):
            await our_store.pause_durable("effects@2")
        async with running(our_store.run(Effects(2), connect=connect, partitions=before)) as new:
            await nothing_arrives()
            lock = await psycopg.AsyncConnection.connect(database.dsn)
            await lock.execute("SELECT FROM events_subscriptions WHERE name = 'effects' FOR UPDATE")
            await our_store.resume_durable("effects@2")
            done = "SELECT min(position) >= 20 FROM events_subscriptions WHERE name = 'effects@2'"
            await seen(lambda: database.value(done), "it has caught up")
            async with repartitioning(our_store, database, "effects@2", after):
                await lock.close()
                await waits(database)
            with pytest.raises(OptionsError, match=f"made with {after}"):
                await in_time(new)
            async with running(our_store.run(Effects(2), connect=connect, partitions=after)):
                await retired(old)
                await fill(our_store, 20, 20)
                await eventually(lambda: len(served.data()) >= 40, "the new one goes on")
                await nothing_arrives()
    assert served.switches() == [2]
    assert sorted(served.data()) == list(range(40))


@pytest.mark.parametrize("change", ["pause_durable", "delete_durable"])
async def test_changes_at_a_repartition(our_store: AsyncEventStore, database: Database, change: str) -> None:
    """They are made to the new partitions: the subscription was there all the time."""
    async with our_store.durable("effects"):
        pass
    async with repartitioning(our_store, database, "effects", 4):
        changing = asyncio.create_task(getattr(our_store, change)("effects"))
        await waits(database)
    await in_time(changing)
    states = await our_store.durable_subscriptions()
    assert [state.is_paused for state in states] == ([True] if change == "pause_durable" else [])


# ------------------------------------------------------------------------------------------------------ deleted


async def test_the_new_version_is_deleted_at_the_switch(
    our_store: AsyncEventStore, database: Database, served: Served, connect: Callable[[], Any]
) -> None:
    """Either before it or after it: no version is left that was replaced by one that does not exist."""
    await fill(our_store, 10)
    new = Gated()
    async with running(our_store.run(Effects(1), connect=connect)) as old:
        await reached(our_store, 10)
        async with running(our_store.run(new, connect=connect)) as task:
            await in_time(new.is_switching.wait())
            deleting = asyncio.create_task(our_store.delete_durable("effects@2"))
            await waits(database)
            new.gate.set()
            await in_time(deleting)
            await asyncio.wait([task, old], timeout=TIMEOUT_S)
    assert await our_store.durable_subscriptions() == []


async def test_a_version_is_deleted_while_the_next_one_takes_over(
    our_store: AsyncEventStore, database: Database, served: Served, connect: Callable[[], Any]
) -> None:
    """Both lock the rows of several versions: in the same order."""
    await fill(our_store, 10)
    async with running(our_store.run(Effects(2), connect=connect)):
        await seen(lambda: served.switches() == [2], "it takes over")
        await reached(our_store, 10)
    told = told_of(our_store)
    places = "SELECT (SELECT ctid FROM {0} WHERE name = 'effects') > (SELECT ctid FROM {0} WHERE name = 'effects@2')"
    with database.connect() as admin:
        # A plan that reads the table finds them in the order in which they lie there.
        for _ in range(1000):
            if database.value(places.format("events_subscriptions")):
                break
            admin.execute("UPDATE events_subscriptions SET updated_at = now() WHERE name = 'effects'")
        admin.execute("BEGIN")
        admin.execute("SELECT FROM events_subscriptions WHERE name = 'effects' FOR UPDATE")
        async with running(our_store.run(Effects(3), connect=connect)):
            await waits(database)
            deleting = asyncio.create_task(our_store.delete_durable("effects@2"))
            await waits(database, 2)
            admin.execute("COMMIT")
            await asyncio.gather(in_time(deleting), return_exceptions=True)
            await seen(lambda: served.switches() == [2, 3], "the next one takes over")
    assert [str(each) for each in told if "deadlock" in str(each)] == []
    error = deleting.exception()
    assert error is None or "replaced by" in str(error)


async def test_a_version_that_retires_itself_leaves_nothing_parked(
    our_store: AsyncEventStore, database: Database, served: Served, connect: Callable[[], Any]
) -> None:
    """Its parked events would be those of a later subscription of the same name."""
    await fill(our_store, 10)

    def before(event: StoredEvent) -> None:
        if event.data == 5:
            raise ValueError("five")

    async with running(our_store.run(Effects(3), connect=connect)):
        await seen(lambda: served.switches() == [3], "it takes over")
    # As if it had looked just before: version 1 is served, and far ahead.
    with database.connect() as admin:
        admin.execute("UPDATE events_subscriptions SET replaced_by = NULL, position = 1000 WHERE name = 'effects'")
        late = asyncio.create_task(our_store.run(Effects(2, before), connect=connect, on_error=Park()))
        await seen(lambda: admin.execute("SELECT FROM events_parked").fetchone() is not None, "it parks")
        admin.execute("UPDATE events_subscriptions SET replaced_by = 'effects@3' WHERE name = 'effects'")
    assert (await retired(late)).replaced_by == "effects@3"
    await eventually(lambda: database.value("SELECT count(*) FROM events_parked") == 0, "nothing is parked")


# ------------------------------------------------------------------------------- failures that are not the event's


@pytest.mark.parametrize("policy", [Stop(), Skip(), Park()])
async def test_another_table_on_the_connection_is_not_the_fault_of_events(
    our_store: AsyncEventStore, database: Database, served: Served, policy: Stop | Skip | Park
) -> None:
    """They are neither skipped nor parked, and the operator hears why."""
    await fill(our_store, 3)
    with database.connect() as admin:
        async with our_store.durable("effects"):
            admin.execute("CREATE SCHEMA other")
            admin.execute("CREATE TABLE other.events_subscriptions (LIKE public.events_subscriptions INCLUDING ALL)")

    def connect() -> Any:
        return psycopg.AsyncConnection.connect(database.dsn, options="-c search_path=other,public")

    with pytest.raises(SchemaMismatchError):
        await asyncio.wait_for(our_store.run(Effects(1), connect=connect, on_error=policy), TIMEOUT_S)
    (state,) = await our_store.durable_subscriptions()
    assert (state.position, state.parked) == (0, 0)


@pytest.mark.parametrize("error", ["timeout", "route", "pool", "engine"])
async def test_no_connection_for_a_while(
    our_store: AsyncEventStore, database: Database, served: Served, error: str
) -> None:
    """As during an outage: the events wait."""
    await fill(our_store, 3)
    told = told_of(our_store)
    connect: Any
    if error == "pool":
        async with AsyncConnectionPool(database.dsn, open=False, min_size=1, max_size=1, timeout=0.05) as pool:
            async with pool.connection(timeout=TIMEOUT_S):
                task = asyncio.create_task(our_store.run(Effects(1), connect=pool, on_error=Skip()))
                await eventually(lambda: told or task.done(), "there is none")
            await reached(our_store, 3)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
    elif error == "engine":
        engine = create_async_engine(
            database.url.replace("postgresql://", "postgresql+psycopg://"),
            pool_size=1,
            max_overflow=0,
            pool_timeout=0.05,
        )
        async with engine.connect() as held:
            await held.execute(text("SELECT 1"))
            task = asyncio.create_task(our_store.run(Effects(1), connect=engine, on_error=Skip()))
            await eventually(lambda: told or task.done(), "there is none")
        await reached(our_store, 3)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await engine.dispose()
    else:
        no_route, timeout = OSError(113, "no route"), psycopg.errors.ConnectionTimeout("slow")
        failures: list[Exception] = [no_route if error == "route" else timeout] * 3

        def connect() -> Any:
            if failures:
                raise failures.pop()
            return psycopg.AsyncConnection.connect(database.dsn)

        async with running(our_store.run(Effects(1), connect=connect, on_error=Skip())):
            await reached(our_store, 3)
    assert served.data() == [0, 1, 2]


# The latter counts for the statements of the handler, too, for which it is long.
@pytest.mark.parametrize(("limit", "value"), [("lock_timeout", "100ms"), ("statement_timeout", "3s")])
async def test_a_limit_of_the_connection_while_a_switch_holds_the_position(
    our_store: AsyncEventStore, database: Database, served: Served, limit: str, value: str
) -> None:
    """No event is skipped because the transaction of a switch took long, and was rolled back in the end."""
    await fill(our_store, 10)

    def connect() -> Any:
        return psycopg.AsyncConnection.connect(database.dsn, options=f"-c {limit}={value}")

    async with running(our_store.run(Effects(1), connect=connect, on_error=Skip())) as task:
        await reached(our_store, 10)
        told = told_of(our_store)
        with database.connect() as admin:  # as the switch does
            admin.execute("BEGIN")
            admin.execute("SELECT FROM events_subscriptions WHERE name = 'effects' FOR UPDATE")
            await fill(our_store, 10, 10)
            await eventually(lambda: len(told) > 1 or task.done(), "it cannot go on")
            admin.execute("ROLLBACK")
        await reached(our_store, 20)
    assert served.data() == list(range(20))


@pytest.mark.parametrize("version", [1, 2])
async def test_an_event_is_parked_while_a_switch_holds_the_position(
    our_store: AsyncEventStore, database: Database, served: Served, version: int
) -> None:
    """Of either version; it waits until the switch has ended, and nobody ends because of it."""
    await fill(our_store, 10)
    new, first = Gated(), Effects(1)

    def before(event: StoredEvent) -> None:
        if event.data >= 10:
            new.is_switching.set()
            raise ValueError("no")

    (first if version == 1 else new).before = before

    def connect() -> Any:
        return psycopg.AsyncConnection.connect(database.dsn)

    options: dict[str, Any] = {"connect": connect, "on_error": Park(after=1), "lease": 2.0}
    async with running(our_store.run(first, **options)) as old:
        await reached(our_store, 10)
        with database.connect() as admin:
            held = "effects" if version == 1 else "effects@2"
            task = old if version == 1 else asyncio.create_task(our_store.run(new, **options))
            if version == 2:
                await in_time(new.is_switching.wait())
                new.gate.set()
                await retired(old)
                new.is_switching.clear()
            admin.execute("BEGIN")
            reading = asyncio.Event()

            async def handle(conn: Any, events: Sequence[StoredEvent]) -> None:
                # Between its rollback and its parking nothing holds the position: a switch may take it then.
                if events[0].data >= 10:
                    reading.set()
                await Effects.handle(first if version == 1 else new, conn, events)

            (first if version == 1 else new).handle = handle  # type: ignore[method-assign]
            await fill(our_store, 1, 10)
            await in_time(reading.wait())
            locking = asyncio.create_task(
                asyncio.to_thread(
                    admin.execute, f"SELECT FROM events_subscriptions WHERE name = '{held}' FOR UPDATE".encode()
                )
            )
            await in_time(locking)
            await asyncio.sleep(4)  # two leases
            assert not task.done(), task
            admin.execute("ROLLBACK")
            state = "SELECT count(*) FROM events_parked"
            await eventually(lambda: database.value(state) == 1 or task.done(), "it is parked")
            assert not task.done(), task
            if version == 2:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
    assert served.data() == list(range(10))


# ------------------------------------------------------------------------------------------- the user's connections


async def test_an_engine_that_commits_each_statement(
    our_store: AsyncEventStore, database: Database, served: Served
) -> None:
    """Its transactions are none: what an event has done before it fails would stay, and come twice."""
    await fill(our_store, 3)
    url = database.url.replace("postgresql://", "postgresql+psycopg://")
    engine = create_async_engine(url, isolation_level="AUTOCOMMIT")

    def before(event: StoredEvent) -> None:
        if event.data == 2:
            raise ValueError("two")

    with pytest.raises(OptionsError, match="AUTOCOMMIT"):
        await asyncio.wait_for(our_store.run(Effects(1, before), connect=engine, on_error=Skip()), TIMEOUT_S)
    assert served.data() == []
    told = told_of(our_store)
    async with our_store.durable("effects@2"):
        pass
    await our_store.rewind_durable("effects@2", 3)
    async with running(our_store.run(Effects(2), connect=engine)):
        await eventually(lambda: any("AUTOCOMMIT" in str(each) for each in told), "it is told")
    assert served.switches() == []
    with pytest.raises(OptionsError, match="AUTOCOMMIT"):
        await our_store.rebuild(Effects(1), connect=engine)
    await engine.dispose()


async def test_psycopgs_rollback_is_no_success(
    our_store: AsyncEventStore, served: Served, connect: Callable[[], Any]
) -> None:
    """It ends the transaction without an error: the event would count as applied, and be lost."""
    await fill(our_store, 3)
    is_wrong = True

    def before(event: StoredEvent) -> None:
        if event.data == 1 and is_wrong:
            raise psycopg.Rollback

    with pytest.raises(EventStoreError, match="Rollback"):
        await asyncio.wait_for(our_store.run(Effects(1, before), connect=connect), TIMEOUT_S)
    is_wrong = False
    told = told_of(our_store)
    async with running(our_store.run(Effects(1, before), connect=connect)):
        await reached(our_store, 3)
        new = Effects(2)
        ends = [1]

        def end(_: Any) -> None:
            if ends:
                ends.pop()
                raise psycopg.Rollback

        new.switching = end
        async with running(our_store.run(new, connect=connect)):
            await seen(lambda: served.switches() == [2], "it takes over the second time")
    assert any("Rollback" in str(each) for each in told)
    assert served.data() == [0, 1, 2]
    ends.append(1)
    with pytest.raises(EventStoreError, match="Rollback"):
        await our_store.rebuild(new, connect=connect)
    assert served.data() == [0, 1, 2]


@pytest.mark.parametrize("how", ["COMMIT", "ROLLBACK"])
async def test_a_handler_that_ends_the_transaction(
    our_store: AsyncEventStore, served: Served, connect: Callable[[], Any], how: str
) -> None:
    """It is wrong, and is not taken for done: the position stays where it is."""

    class Ending(Effects):
        async def handle(self, conn: Any, events: Sequence[StoredEvent]) -> None:
            await super().handle(conn, events)
            await conn.execute(how)

    await fill(our_store, 1)
    with pytest.raises(EventStoreError, match="ended the transaction"):
        await asyncio.wait_for(our_store.run(Ending(1), connect=connect), TIMEOUT_S)
    (state,) = await our_store.durable_subscriptions()
    assert state.position == 0


async def test_connections_with_a_transaction_open(
    our_store: AsyncEventStore, database: Database, served: Served
) -> None:
    """As those are on which a setting was made; they commit when they are closed."""
    await fill(our_store, 10)

    async def connect() -> Any:
        conn = await psycopg.AsyncConnection.connect(database.dsn)
        await conn.execute("SET statement_timeout = '1min'")
        return conn

    async with running(our_store.run(Effects(1), connect=connect)) as old:
        await reached(our_store, 10)
        async with running(our_store.run(Effects(2), connect=connect)):
            await retired(old)
            await our_store.rebuild(Effects(2), connect=connect)
            await reached(our_store, 10)
    assert served.data() == list(range(10))


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
async def test_isolation_levels(our_store: AsyncEventStore, database: Database, served: Served, level: str) -> None:
    """Whatever the connections begin with: a switch and a rebuild see what was committed while they waited."""
    option = f"-c default_transaction_isolation={level}".replace(" r", r"\ r").replace(r"-c\ ", "-c ")

    def connect() -> Any:
        return psycopg.AsyncConnection.connect(database.dsn, options=option)

    projection = Effects(1)
    async with running(our_store.run(projection, connect=connect)) as old:
        await fill(our_store, 10)
        await reached(our_store, 10)
        with database.connect() as admin:
            admin.execute("BEGIN")
            admin.execute("UPDATE events_subscriptions SET updated_at = now() WHERE name = 'effects'")
            rebuilding = asyncio.create_task(our_store.rebuild(projection, connect=connect))
            await waits(database)
            admin.execute("COMMIT")
        await in_time(rebuilding)
        await reached(our_store, 10)
        assert served.data() == list(range(10))
        async with running(our_store.run(Effects(2), connect=connect)):
            await retired(old)
    assert served.data() == list(range(10))


async def test_behind_a_pooler(database: Database, served: Served, pgbouncer_program: str) -> None:
    """PgBouncer gives each transaction another session: nothing of a switch outlives its transaction."""
    with PgBouncer(pgbouncer_program, database, "transaction", pool_size=4) as pooler:

        def connect() -> Any:
            return psycopg.AsyncConnection.connect(pooler.dsn, prepare_threshold=None)

        options: dict[str, Any] = {"listen_dsn": database.dsn, "enable_prepared_stmts": False}
        async with AsyncEventStore(pooler.dsn, **options) as store, filling(store, served):
            with served.watched():
                async with running(store.run(Effects(1), connect=connect)) as old:
                    await seen(lambda: len(served.data()) > 50, "the old one serves")
                    async with running(store.run(Effects(2), connect=connect)):
                        await retired(old)
                        count = len(served.data())
                        await seen(lambda: len(served.data()) > count, "the new one goes on")
            async with await connect() as conn:
                for setting in ("lock_timeout", "idle_in_transaction_session_timeout"):
                    row = await (await conn.execute(f"SHOW {setting}")).fetchone()
                    assert row == ("0",), setting
    data = served.data()
    assert data == list(range(len(data)))


@pytest.mark.parametrize("kind", ["psycopg", "psycopg_pool", "asyncpg pool", "engine"])
async def test_cancelled_at_any_moment(
    our_store: AsyncEventStore, database: Database, served: Served, kind: str
) -> None:
    """Both versions, again and again, until the switch has happened: each event once, and no connection is lost."""
    chance = random.Random(kind)  # noqa: S311 - a schedule is no secret
    async with connecting(kind, database) as connect, filling(our_store, served):
        with served.watched():
            for _ in range(30):
                async with (
                    running(our_store.run(Effects(1), connect=connect, max_count=30)),
                    running(our_store.run(Effects(2), connect=connect, max_count=50)),
                ):
                    await asyncio.sleep(chance.random())
                if served.switches():
                    break
            async with running(our_store.run(Effects(2), connect=connect)):
                await seen(lambda: served.switches() == [2], "the new one takes over")
                count = len(served.data())
                await seen(lambda: len(served.data()) > count, "the new one goes on")
    for data in (served.of(1), served.of(2)):
        assert data == list(range(len(data)))


# --------------------------------------------------------------------------------------------------- the handler's


@pytest.mark.parametrize(
    "error",
    [FileNotFoundError(2, "no template", "x.html"), PermissionError("no"), TimeoutError(), psycopg.DataError("x")],
    ids=["file", "permission", "timeout", "data"],
)
async def test_errors_of_the_handler_are_no_outage(
    our_store: AsyncEventStore, served: Served, connect: Callable[[], Any], error: Exception
) -> None:
    """What the code itself raises is decided by the policy, instead of being tried for ever."""
    await fill(our_store, 5)

    def before(event: StoredEvent) -> None:
        if event.data == 2:
            raise error

    async with running(our_store.run(Effects(1, before), connect=connect, on_error=Park(after=2, delay=0.001))):
        await reached(our_store, 5)
    assert served.data() == [0, 1, 3, 4]


async def test_a_connection_that_breaks_in_the_handler_is_an_outage(
    our_store: AsyncEventStore, database: Database, served: Served
) -> None:
    """Of every library: the events come again, and none is skipped."""
    breaks: list[str] = []

    class Breaking(Effects):
        async def handle(self, conn: Any, events: Sequence[StoredEvent]) -> None:
            if breaks:
                breaks.pop()
                with database.connect() as admin:
                    admin.execute(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
                        " AND state = 'idle in transaction'"
                    )
            await super().handle(conn, events)

    for number, kind in enumerate(["psycopg", "asyncpg pool", "engine"]):
        breaks.append(kind)
        await fill(our_store, 10, number * 10)
        async with (
            connecting(kind, database) as connect,
            running(our_store.run(Breaking(1), connect=connect, on_error=Skip())),
        ):
            await reached(our_store, number * 10 + 10)
    assert served.data() == list(range(30))


async def test_a_rebuild_while_parked_events_are_replayed(
    our_store: AsyncEventStore, database: Database, served: Served
) -> None:
    """The replay has changed the table, which the rebuild empties, and is about to remove the parked event."""
    await fill(our_store, 10)

    def connect(deadlock_timeout: str = "1s") -> Any:
        return psycopg.AsyncConnection.connect(database.dsn, options=f"-c deadlock_timeout={deadlock_timeout}")

    is_wrong = True

    def before(event: StoredEvent) -> None:
        if event.data == 5 and is_wrong:
            raise ValueError("five")

    async with running(our_store.run(Effects(1, before), connect=connect, on_error=Park())):
        await reached(our_store, 10)
    is_wrong = False
    is_replaying, gate = asyncio.Event(), asyncio.Event()
    # It is the rebuild that finds out about the deadlock, if the replay has run into it by then.
    async with our_store.durable("effects") as durable, await connect("60s") as conn:

        async def handle(event: StoredEvent) -> None:
            async with conn.transaction():
                await Effects(1).handle(conn, [event])
                is_replaying.set()
                await gate.wait()
                await durable.ack_in(conn, event)

        replaying = asyncio.create_task(durable.replay_parked(handle))
        await in_time(is_replaying.wait())
        rebuilding = asyncio.create_task(our_store.rebuild(Effects(1), connect=lambda: connect("6s")))
        await waits(database)
        gate.set()
        await in_time(rebuilding)
        await in_time(replaying)
    async with running(our_store.run(Effects(1), connect=connect)):
        await reached(our_store, 10)
    assert served.data() == list(range(10))


# ----------------------------------------------------------------------------------------------------------- options


async def test_options_are_checked_before_anything_is_made(our_store: AsyncEventStore, database: Database) -> None:
    async with await psycopg.AsyncConnection.connect(database.dsn) as conn:
        good: dict[str, Any] = {"connect": lambda: psycopg.AsyncConnection.connect(database.dsn)}
        wrong: dict[str, list[Any]] = {
            "connect": [None, object(), 5, conn],
            "on_error": ["skip", Skip, Park],
            "max_count": [0, "1", None],
            "max_bytes": [0, True, None],
            "max_wait": [-1, "1", float("nan"), None],
            "partitions": [0],
            "lease": [0, "1"],
        }
        for option, values in wrong.items():
            for value in values:
                with pytest.raises(OptionsError, match=option):
                    await asyncio.wait_for(our_store.run(Effects(1), **{**good, option: value}), TIMEOUT_S)
        for value in wrong["connect"]:
            with pytest.raises(OptionsError, match="connect"):
                await our_store.rebuild(Effects(1), connect=value)
        for name in (5, "", "a\0b", "a\ud800", "totals@2", "totals@17"):
            projection = Effects(2)
            projection.name = name  # type: ignore[assignment]
            for work in (our_store.run(projection, **good), our_store.rebuild(projection, **good)):
                with pytest.raises(OptionsError, match=r"name|projection"):
                    await asyncio.wait_for(work, TIMEOUT_S)
    tables = "SELECT count(*) FROM pg_class WHERE relname = 'events_subscriptions'"
    assert database.value(tables) == 0, "nothing was made"
    async with our_store.durable("effects") as durable:
        for policy in ("skip", Skip):
            with pytest.raises(OptionsError, match="on_error"):
                await durable.run(lambda _: None, policy)  # type: ignore[arg-type]
        with pytest.raises(OptionsError, match="max_wait"):
            await anext(durable.batches(max_wait=-1))
    for options in ({"after": 0}, {"after": "3"}, {"delay": -1}, {"max_delay": "1"}):
        with pytest.raises(OptionsError, match=next(iter(options))):
            Park(**options)


def test_blocking_projections_are_no_coroutine_functions(database: Database) -> None:
    with EventStore(database.dsn) as store:
        for work in (store.run, store.rebuild):
            with pytest.raises(OptionsError, match="coroutine"):
                work(Effects(1), connect=lambda: psycopg.connect(database.dsn))


@pytest.mark.parametrize("name", ["ef'fe\"ct%s", "ünï:cödé $1", "x" * 300, "totals@", "a@b@1", "totals@02", r"a\%_"])
async def test_names(our_store: AsyncEventStore, served: Served, connect: Callable[[], Any], name: str) -> None:
    """Whatever a name looks like, its versions are its own."""
    await fill(our_store, 5)
    old, new, other = Effects(1), Effects(2), Effects(3)
    old.name = new.name = name
    other.name, other.version = f"{name}!", 1
    async with running(our_store.run(old, connect=connect)) as task:
        await eventually(lambda: len(served.data()) == 5, "the old one serves")
        async with our_store.durable(other.name):
            pass
        async with running(our_store.run(new, connect=connect)):
            assert (await retired(task)).replaced_by == f"{name}@2"
            await our_store.wait_for(5, durable=name, timeout=TIMEOUT_S)
    states = {state.name: state.replaced_by for state in await our_store.durable_subscriptions()}
    assert states == {name: f"{name}@2", f"{name}@2": None, f"{name}!": None}
    await our_store.delete_durable(f"{name}@2")
    assert [state.name for state in await our_store.durable_subscriptions()] == [f"{name}!"]
    assert served.data() == list(range(5))


class Named(Projection):
    """One with an attribute instead of a method."""

    name = "named"


async def test_a_projection_of_an_odd_name_and_a_version_are_two(our_store: AsyncEventStore) -> None:
    """`totals@2` would be version 2 of `totals`, and end with it."""
    projection = Named()
    projection.name = "totals@2"
    with pytest.raises(OptionsError, match="@2"):
        await our_store.run(projection, connect=lambda: None)
