"""Durable subscriptions between two steps: handled and not acknowledged, rolled back, killed, cut off."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from psycopg_pool import AsyncConnectionPool
from sqlalchemy.ext.asyncio import create_async_engine

from socketio_postgres import (
    AsyncEventStore,
    DatabaseError,
    Event,
    EventStore,
    OptionsError,
    Park,
    SchemaMismatchError,
    Skip,
    StoredEvent,
    StoreRewoundError,
    SubscriptionFencedError,
)
from socketio_postgres.events import async_durable_subscription, async_event_feed
from socketio_postgres.events.failure_policy import FailurePolicy
from tests.fixtures.database import Database
from tests.fixtures.waiting import TIMEOUT_S, eventually

PARTITIONS = [1, 4]
HOUR_S = 3600.0


async def fill(store: AsyncEventStore, count: int, start: int = 0) -> None:
    """Store numbered events of three aggregates."""
    await store.store_batch(Event("T", f"a{i % 3}", i) for i in range(start, start + count))


@asynccontextmanager
async def connected(database: Database) -> AsyncIterator[psycopg.AsyncConnection]:
    async with await psycopg.AsyncConnection.connect(database.dsn) as connection:
        yield connection


# ------------------------------------------------------------------------------------------------------- leaving


@pytest.mark.parametrize("partitions", PARTITIONS)
@pytest.mark.parametrize("ends_with", ["error", "nothing"])
async def test_leaving_does_not_wait_for_the_users_own_transaction(
    our_store: AsyncEventStore, database: Database, monkeypatch: pytest.MonkeyPatch, partitions: int, ends_with: str
) -> None:
    """The row is locked by a transaction that the same task would have to end."""
    for limit in ("CLOSE_LIMIT", "ERROR_LIMIT"):
        monkeypatch.setattr(async_durable_subscription, limit, 10 * TIMEOUT_S)  # these limits are for other locks
    await fill(our_store, 3)

    async def leave(connection: psycopg.AsyncConnection) -> None:
        async with our_store.durable("d", partitions=partitions) as durable:
            await durable.ack_in(connection, await anext(durable))
            if ends_with == "error":
                raise ValueError("the user's")

    async with connected(database) as connection:
        if ends_with == "error":
            with pytest.raises(ValueError, match="the user's"):
                await asyncio.wait_for(leave(connection), TIMEOUT_S)
        else:
            await asyncio.wait_for(leave(connection), TIMEOUT_S)
        await connection.rollback()
    assert min(each.position for each in (await our_store.durable_subscriptions())[0].partitions) == 0


@pytest.mark.parametrize("partitions", PARTITIONS)
async def test_a_rolled_back_ack_in_is_retried_skipped_or_parked(
    our_store: AsyncEventStore, database: Database, partitions: int
) -> None:
    """What a handler does in a transaction composes with every policy."""
    await fill(our_store, 9)
    async with connected(database) as connection:
        await connection.execute("CREATE TABLE effects (data int)")
        await connection.commit()
        for name, policy, missing in (
            ("retry", Park(after=3, delay=0.001), set()),
            ("skip", Skip(), {4}),
            ("park", Park(), {4, 7}),
        ):
            await retry(our_store, connection, name, policy, partitions, missing)


async def retry(
    store: AsyncEventStore,
    connection: psycopg.AsyncConnection,
    name: str,
    policy: FailurePolicy,
    partitions: int,
    missing: set[int],
) -> None:
    """Let the transaction of one event fail twice, and check which effects there are in the end."""
    failed: list[int] = []
    done = asyncio.Event()
    last = max(set(range(9)) - missing)
    async with store.durable(name, partitions=partitions) as durable:

        async def handler(event: StoredEvent) -> None:
            async with connection.transaction():
                await connection.execute("INSERT INTO effects VALUES (%s)", [event.data])
                await durable.ack_in(connection, event)
                if event.data == 4 and len(failed) < 2:
                    failed.append(4)
                    raise psycopg.errors.SerializationFailure("at COMMIT")
            if event.data == last:
                done.set()

        running = asyncio.create_task(durable.run(handler, policy))
        await asyncio.wait_for(done.wait(), TIMEOUT_S)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    effects = await (await connection.execute("SELECT data FROM effects ORDER BY data")).fetchall()
    assert [data for (data,) in effects] == sorted(set(range(9)) - missing), name
    await connection.execute("TRUNCATE effects")
    await connection.commit()


# ------------------------------------------------------------------------------------------- the user's connection


async def test_ack_in_checks_the_connection(our_store: AsyncEventStore, database: Database) -> None:
    await fill(our_store, 2)
    async with our_store.durable("d") as durable, AsyncConnectionPool(database.dsn, open=False) as pool:
        event = await anext(durable)
        async with await psycopg.AsyncConnection.connect(database.dsn, autocommit=True) as connection:
            with pytest.raises(OptionsError, match="open a transaction"):
                await durable.ack_in(connection, event)
            async with connection.transaction():
                await durable.ack_in(connection, event)
        loose = await asyncpg.connect(database.url)
        try:
            with pytest.raises(OptionsError, match="open a transaction"):
                await durable.ack_in(loose, event)
        finally:
            await loose.close()
        async with asyncpg.create_pool(database.url, min_size=1) as asyncpg_pool:
            with pytest.raises(OptionsError, match="open a transaction"):
                await durable.ack_in(asyncpg_pool, event)
        with pytest.raises(OptionsError, match="give a connection"):
            await durable.ack_in(pool, event)
        url = database.url.replace("postgresql://", "postgresql+psycopg://")
        engine = create_async_engine(url, isolation_level="AUTOCOMMIT")
        async with engine.connect() as alchemy:
            with pytest.raises(OptionsError, match="open a transaction"):
                await durable.ack_in(alchemy, event)
        await engine.dispose()
        with database.connect() as admin:
            admin.execute("CREATE SCHEMA other")
            admin.execute("CREATE TABLE other.events_subscriptions (LIKE public.events_subscriptions INCLUDING ALL)")
            admin.execute("INSERT INTO other.events_subscriptions SELECT * FROM public.events_subscriptions")
        elsewhere = make_conninfo(database.dsn, options="-c search_path=other,public")
        event = await anext(durable)
        async with await psycopg.AsyncConnection.connect(elsewhere) as connection:
            with pytest.raises(SchemaMismatchError, match="another one on this connection"):
                await durable.ack_in(connection, event)


# ------------------------------------------------------------------------------------------------------- outages


@pytest.mark.parametrize("partitions", PARTITIONS)
async def test_a_consumer_survives_outages(database: Database, partitions: int) -> None:
    """Its sessions are ended again and again, for longer than a lease; nothing is lost, each aggregate in order."""
    async with AsyncEventStore(database.dsn) as store, AsyncEventStore(database.dsn) as writer:
        seen: list[int] = []
        # Entered before anything is ended: a database that is away at that time is an error.
        durable = await store.durable("d", partitions=partitions, lease=1.0, checkpoint_interval=0.05).__aenter__()
        consuming = asyncio.create_task(durable.run(lambda event: seen.append(event.data)))
        for number in range(40):
            await fill(writer, 3, number * 3)
            await asyncio.sleep(0.05)
            with database.connect() as admin:
                admin.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
                    " AND pid <> pg_backend_pid() AND query ~ 'events_(subscriptions|consumers)'"
                )
            assert not consuming.done(), consuming
        await eventually(lambda: set(range(120)) <= set(seen), "all have come")
        consuming.cancel()
        await asyncio.gather(consuming, return_exceptions=True)
        await durable.__aexit__(None, None, None)
        for aggregate in range(3):
            firsts = list(dict.fromkeys(data for data in seen if data % 3 == aggregate))
            assert firsts == sorted(firsts)


async def test_parking_survives_outages(database: Database) -> None:
    """A failure policy writes to the database, too: its sessions are ended while it does."""
    async with AsyncEventStore(database.dsn) as store, AsyncEventStore(database.dsn) as writer:
        await fill(writer, 100)
        async with store.durable("d", lease=5.0) as durable:
            durable._lock_limit = TIMEOUT_S
            consuming = asyncio.create_task(durable.run(refuse, Park(whole_aggregate=False)))
            for _ in range(100):
                with database.connect() as admin:
                    admin.execute(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
                        " AND pid <> pg_backend_pid() AND query ~ 'events_(subscriptions|parked)'"
                    )
                await asyncio.sleep(0.01)
            await eventually(lambda: durable.position >= 100 or consuming.done(), "all are set aside")
            assert not consuming.done(), consuming
            consuming.cancel()
            await asyncio.gather(consuming, return_exceptions=True)
            assert [each.version for each in await durable.parked()] == list(range(1, 101))


# ----------------------------------------------------------------------------------------------------- parked ones


def refuse(event: StoredEvent) -> None:
    raise ValueError(event.data)


async def park_all(store: AsyncEventStore, count: int) -> None:
    """Set all events aside."""
    async with store.durable("d") as durable:
        running = asyncio.create_task(durable.run(refuse, Park(whole_aggregate=False)))
        await eventually(lambda: durable.position >= count, "all are set aside")
        assert len(await durable.parked()) == count
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_two_replayers_handle_each_event_once(our_store: AsyncEventStore, database: Database) -> None:
    await fill(our_store, 30)
    await park_all(our_store, 30)
    seen: list[int] = []
    at_work: set[AsyncEventStore] = set()

    async def replay(store: AsyncEventStore) -> int:
        async def handler(event: StoredEvent) -> None:
            at_work.add(store)
            await eventually(lambda: len(at_work) == 2, "both are at work")
            seen.append(event.data)

        async with store.durable("d", partitions=1) if store is our_store else entered(store) as durable:
            return int(await durable.replay_parked(handler))

    @asynccontextmanager
    async def entered(store: AsyncEventStore) -> AsyncIterator[Any]:
        """A consumer that owns nothing may replay as well."""
        durable = store.durable("d")
        durable._is_entered = True
        yield durable

    async with AsyncEventStore(database.dsn) as other:
        counts = await asyncio.gather(replay(our_store), replay(other))
    assert sum(counts) == 30
    assert min(counts) > 0
    assert sorted(seen) == list(range(30))
    for aggregate in range(3):
        of_it = [data for data in seen if data % 3 == aggregate]
        assert of_it == sorted(of_it)


async def test_a_replay_with_ack_in_is_exactly_once(our_store: AsyncEventStore, database: Database) -> None:
    await fill(our_store, 3)
    await park_all(our_store, 3)
    async with connected(database) as connection, our_store.durable("d") as durable:
        await connection.execute("CREATE TABLE effects (data int)")
        await connection.commit()
        attempts = 0

        async def handler(event: StoredEvent) -> None:
            nonlocal attempts
            attempts += 1
            async with connection.transaction():
                await connection.execute("INSERT INTO effects VALUES (%s)", [event.data])
                await durable.ack_in(connection, event)
                if attempts == 2:
                    raise ValueError("rolled back with the effect")

        assert await durable.replay_parked(handler) == 2
        assert await durable.replay_parked(handler) == 1
        assert await durable.parked() == []
        effects = await (await connection.execute("SELECT data FROM effects ORDER BY data")).fetchall()
        assert effects == [(0,), (1,), (2,)]


async def test_a_replay_elsewhere_sets_the_aggregate_free(our_store: AsyncEventStore) -> None:
    await fill(our_store, 3)
    handled: list[int] = []
    is_broken = True

    def handler(event: StoredEvent) -> None:
        if is_broken and event.data == 1:
            raise ValueError("one")
        handled.append(event.data)

    async with our_store.durable("d") as durable:
        running = asyncio.create_task(durable.run(handler, Park()))
        await eventually(lambda: 2 in handled, "the others are handled")
        await fill(our_store, 3, 3)
        await eventually(lambda: 5 in handled, "what follows of a1 is parked")
        assert [each.version for each in await durable.parked()] == [2, 5]
        is_broken = False
        assert await durable.replay_parked(handler) == 2
        await fill(our_store, 3, 6)
        await eventually(lambda: 8 in handled, "the rest")
        assert handled == [0, 2, 3, 5, 1, 4, 6, 7, 8]
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_a_rewind_keeps_what_is_known_of_parked_events(our_store: AsyncEventStore) -> None:
    await fill(our_store, 1)
    await park_all(our_store, 1)
    await our_store.rewind_durable("d", 0)
    async with our_store.durable("d") as durable:
        running = asyncio.create_task(durable.run(refuse, Park()))
        await eventually(lambda: durable.position >= 1, "it is set aside again")
        (parked,) = await durable.parked()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert (parked.attempts, parked.last_error) == (1, "ValueError: 0")


async def test_deleting_takes_parked_events_along_or_nothing(our_store: AsyncEventStore, database: Database) -> None:
    await fill(our_store, 3)
    await park_all(our_store, 3)
    with database.connect() as admin:
        admin.execute(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION $$not now$$; END'"
        )
        admin.execute(
            "CREATE TRIGGER refuse BEFORE DELETE ON events_subscriptions FOR EACH ROW EXECUTE FUNCTION refuse()"
        )
        with pytest.raises(DatabaseError, match="not now"):
            await our_store.delete_durable("d")
        async with our_store.durable("d") as durable:
            assert [each.version for each in await durable.parked()] == [1, 2, 3]
        admin.execute("DROP TRIGGER refuse ON events_subscriptions")
    await our_store.delete_durable("d")
    async with our_store.durable("d") as durable:
        assert durable.position == 0
        assert await durable.parked() == []


# -------------------------------------------------------------------------------------------------------- poison


def die_at_two(dsn: str) -> None:
    """A consumer whose handler ends the process."""

    def handler(event: StoredEvent) -> None:
        if event.data == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        if event.data == 5:
            raise SystemExit(0)

    with EventStore(dsn) as store, store.durable("d", lease=0.3, checkpoint_interval=60) as durable:
        durable.run(handler, Park(after=2))


def test_poison_that_ends_the_process_is_parked(database: Database) -> None:
    with EventStore(database.dsn) as store:
        store.store_batch(Event("T", f"a{i}", i) for i in range(6))
        context = multiprocessing.get_context("spawn")
        codes = []
        for _ in range(10):
            process = context.Process(target=die_at_two, args=(database.dsn,))
            process.start()
            process.join(TIMEOUT_S)
            codes.append(process.exitcode)
            if process.exitcode == 0:
                break
        assert codes[-1] == 0, codes
        with store.durable("d") as durable:
            (parked,) = durable.parked()
        assert (parked.version, parked.attempts) == (3, 2)
        assert parked.last_error is not None
        assert "the process ended 2 times" in parked.last_error


# ----------------------------------------------------------------------------------------- how it is made, and kept


async def test_two_numbers_of_partitions_at_once(our_store: AsyncEventStore, database: Database) -> None:
    stores = [AsyncEventStore(database.dsn) for _ in range(6)]
    for attempt in range(5):
        made = await asyncio.gather(
            *(store.durable(f"d{attempt}", partitions=4 + 4 * (n % 2)).__aenter__() for n, store in enumerate(stores)),
            return_exceptions=True,
        )
        state = next(each for each in await our_store.durable_subscriptions() if each.name == f"d{attempt}")
        for entered in made:
            if isinstance(entered, BaseException):
                assert isinstance(entered, OptionsError), entered
            else:
                assert entered._count == len(state.partitions)
                await entered.__aexit__(None, None, None)
        assert len(state.partitions) in {4, 8}
    await asyncio.gather(*(store.close() for store in stores))


async def test_whoever_comes_second_makes_no_partitions(our_store: AsyncEventStore) -> None:
    """Both have found that there is no such subscription."""
    await our_store.durable_subscriptions()  # makes the tables
    for partitions in (4, 8):
        await our_store.durable("d", partitions=partitions)._positions.make(partitions, "[]", 0)
    (state,) = await our_store.durable_subscriptions()
    assert len(state.partitions) == 4


async def test_what_does_not_match_is_written_in_time(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within the checkpoint interval: everything else takes an hour."""
    monkeypatch.setattr(async_durable_subscription, "BALANCE_SECONDS", HOUR_S)
    monkeypatch.setattr(async_event_feed, "PATIENCE", HOUR_S)
    async with (
        AsyncEventStore(database.dsn, stall_warning=HOUR_S) as store,
        store.durable("d", types="rare", checkpoint_interval=0.05, lease=4 * HOUR_S) as durable,
    ):
        waiting = asyncio.create_task(anext(durable))
        await fill(store, 5)
        await store.wait_for(5, durable="d", timeout=TIMEOUT_S)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)


async def test_a_table_that_was_set_back_is_told(our_store: AsyncEventStore, database: Database) -> None:
    await fill(our_store, 3)
    async with our_store.durable("d") as durable:
        for _ in range(2):
            event = await anext(durable)
        await durable.ack(event)
    with database.connect() as admin:
        admin.execute("TRUNCATE events RESTART IDENTITY")
    await fill(our_store, 5)
    for _ in range(2):
        with pytest.raises(StoreRewoundError, match="rewind_durable"):
            await asyncio.wait_for(our_store.durable("d").__aenter__(), TIMEOUT_S)
    await our_store.rewind_durable("d", 0)
    async with our_store.durable("d", lease=1) as durable:
        assert (await asyncio.wait_for(anext(durable), TIMEOUT_S)).version == 1


# -------------------------------------------------------------------------------------------------------- batches


@pytest.mark.parametrize("partitions", PARTITIONS)
async def test_batches(our_store: AsyncEventStore, database: Database, partitions: int) -> None:
    await fill(our_store, 25)
    async with our_store.durable("d", partitions=partitions) as durable, connected(database) as connection:
        batches = durable.batches(max_count=10, max_wait=TIMEOUT_S)
        batch = await anext(batches)
        assert [event.data for event in batch] == list(range(10))
        await batch.ack()
        assert (await our_store.durable_subscriptions())[0].position == 10
        batch = await anext(batches)
        assert [event.data for event in batch] == list(range(10, 20))
        async with connection.transaction():
            await batch.ack_in(connection)
        batch = await anext(durable.batches(max_count=10, max_wait=0.05))  # is not filled, and not acknowledged
        assert [event.data for event in batch] == list(range(20, 20 + len(batch)))
        assert 1 <= len(batch) <= 5
    assert (await our_store.durable_subscriptions())[0].position == 20
    async with our_store.durable("d", partitions=partitions) as durable:
        batches = durable.batches(max_count=5, max_wait=TIMEOUT_S)
        assert [event.data for event in await anext(batches)] == list(range(20, 25)), "all of it comes again"
        with pytest.raises(OptionsError):
            await anext(durable.batches(0))
        await fill(our_store, 5, 25)
        assert [event.data for event in await anext(batches)] == list(range(25, 30)), "asking again acknowledges"


async def test_a_batch_that_was_rolled_back_comes_again(our_store: AsyncEventStore, database: Database) -> None:
    await fill(our_store, 6)
    async with our_store.durable("d", partitions=4) as durable, connected(database) as connection:
        batches = durable.batches(max_count=3, max_wait=TIMEOUT_S)
        first = await anext(batches)
        await first.ack_in(connection)
        await connection.rollback()
        await first.ack_in(connection)  # in another transaction
        await connection.commit()
        second = await anext(batches)
        await second.ack_in(connection)
        await connection.commit()
        assert [event.data for event in [*first, *second]] == list(range(6))
    assert min(each.position for each in (await our_store.durable_subscriptions())[0].partitions) >= 3
    with pytest.raises(SubscriptionFencedError):
        await second.ack()
