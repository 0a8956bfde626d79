"""Durable subscriptions: the position outlives the process, one consumer at a time, failures are set aside."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import signal
import time
from typing import Any

import asyncpg
import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from socketio_postgres import (
    END,
    AsyncDurableSubscription,
    AsyncEventStore,
    Event,
    EventStore,
    EventStoreError,
    OptionsError,
    Park,
    Skip,
    Stop,
    StoredEvent,
    SubscriptionFencedError,
)
from socketio_postgres.events._sync import durable_subscription
from tests.fixtures.database import Database
from tests.fixtures.waiting import TIMEOUT_S, eventually, nothing_arrives


async def fill(store: AsyncEventStore, count: int, start: int = 0) -> None:
    """Store numbered events of three aggregates."""
    await store.store_batch(Event("T", f"a{i % 3}", i) for i in range(start, start + count))


async def test_it_goes_on_where_it_was(store: AsyncEventStore) -> None:
    await fill(store, 10)
    seen: list[int] = []
    for stop in (3, 7, 10):
        async with store.durable("billing") as durable:
            async for event in durable:
                if len(seen) == stop:
                    break  # the event at hand is not handled, and nothing acknowledges it
                seen.append(event.data)
                if event.data == 9:
                    await durable.ack(event)
                    break
    assert seen == list(range(10)), "each once"
    (state,) = await store.durable_subscriptions()
    assert (state.name, state.position, state.lag, state.is_owned) == ("billing", 10, 0, False)


async def test_leaving_acknowledges_only_what_was_asked_past(store: AsyncEventStore) -> None:
    await fill(store, 3)
    for _ in range(2):
        async with store.durable("d") as durable:
            assert [(await anext(durable)).data for _ in range(2)] in ([0, 1], [1, 2])
        assert (await store.durable_subscriptions())[0].position in {1, 2}
    assert (await store.durable_subscriptions())[0].position == 2


async def test_what_failed_comes_again(store: AsyncEventStore) -> None:
    await fill(store, 5)
    seen: list[int] = []

    async def fail_at_two() -> None:
        async with store.durable("d") as durable:
            async for event in durable:
                seen.append(event.data)
                if event.data == 2:
                    raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await fail_at_two()
    async with store.durable("d") as durable:
        async for event in durable:
            seen.append(event.data)
            if event.data == 4:
                break
    assert seen == [0, 1, 2, 2, 3, 4]


async def test_starts(store: AsyncEventStore) -> None:
    await fill(store, 5)
    async with store.durable("end", start=END) as end, store.durable("three", start=3) as three:
        await fill(store, 1, 5)
        assert (await anext(end)).data == 5
        assert (await anext(three)).data == 3


async def test_one_consumer_at_a_time(store: AsyncEventStore, database: Database) -> None:
    await fill(store, 4)
    other = AsyncEventStore(database.dsn)
    async with store.durable("d", lease=60) as durable:
        assert (await anext(durable)).data == 0
        waiting = asyncio.create_task(other.durable("d").__aenter__())
        await nothing_arrives()
        assert not waiting.done()
        assert (await anext(durable)).data == 1
    second = await asyncio.wait_for(waiting, TIMEOUT_S)
    assert (await anext(second)).data == 1, "nobody has acknowledged it"
    await second.__aexit__(None, None, None)
    await other.close()


async def freeze(durable: AsyncDurableSubscription) -> None:
    """Nothing renews its lease any more, as if its process were stopped."""
    assert durable._renewing is not None
    await durable._renewing.stop()


async def test_a_slow_handler_keeps_the_lease(store: AsyncEventStore, database: Database) -> None:
    await fill(store, 3)
    async with store.durable("d", lease=15) as durable, AsyncEventStore(database.dsn) as other:
        event = await anext(durable)
        until = database.value("SELECT lease_until FROM events_subscriptions")
        waiting = asyncio.create_task(other.durable("d").__aenter__())
        is_over = "SELECT now() > %s::timestamptz + interval '1 s'"
        await eventually(lambda: database.value(is_over, until), "it has taken longer than the lease", poll=0.1)
        await nothing_arrives()  # the other one looks each second
        assert not waiting.done()
        await durable.ack(event)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)


async def test_who_was_frozen_is_fenced_off(store: AsyncEventStore, database: Database) -> None:
    """A zombie that wakes up can neither move the position nor commit effects with `ack_in`."""
    await fill(store, 5)
    other = AsyncEventStore(database.dsn)
    zombie = await store.durable("d", lease=0.2).__aenter__()
    event = await anext(zombie)
    token = zombie.fencing_token(event)
    await freeze(zombie)
    await asyncio.sleep(0.3)
    async with other.durable("d") as fresh:
        assert [(await anext(fresh)).data for _ in range(3)] == [0, 1, 2]
        assert fresh.fencing_token(event) > token
        with pytest.raises(SubscriptionFencedError) as fenced:
            await zombie.ack(event)
        assert fenced.value.name == "d"
        async with await psycopg.AsyncConnection.connect(database.dsn) as connection:
            with pytest.raises(SubscriptionFencedError):
                await zombie.ack_in(connection, event)
        with pytest.raises(SubscriptionFencedError):
            await zombie.park(event, None)
        with pytest.raises(SubscriptionFencedError):
            zombie.fencing_token(event)
        waiting = asyncio.create_task(anext(zombie))
        await nothing_arrives()
        assert not waiting.done()
    assert (await asyncio.wait_for(waiting, 20)).data == 2, "it takes part again, once it may"
    await zombie.__aexit__(None, None, None)
    (state,) = await store.durable_subscriptions()
    assert (state.position, state.parked) == (2, 0)
    await other.close()


@pytest.mark.parametrize("library", ["psycopg", "asyncpg", "sqlalchemy"])
async def test_effect_and_position_commit_together(store: AsyncEventStore, database: Database, library: str) -> None:
    await fill(store, 6)
    with database.connect() as admin:
        admin.execute("CREATE TABLE charged (version bigint PRIMARY KEY)")
    insert = "INSERT INTO charged VALUES ({})"

    async def charge(durable: Any, event: StoredEvent, *, fails: bool) -> None:
        if library == "psycopg":
            async with await psycopg.AsyncConnection.connect(database.dsn) as psycopg_connection:
                await psycopg_connection.execute(insert.format(event.version).encode())
                await durable.ack_in(psycopg_connection, event)
                assert not fails
        elif library == "asyncpg":
            connection = await asyncpg.connect(database.url)
            async with contextlib.AsyncExitStack() as stack:
                stack.push_async_callback(connection.close)
                await stack.enter_async_context(connection.transaction())
                await connection.execute(insert.format(event.version))
                await durable.ack_in(connection, event)
                assert not fails
        else:
            engine = create_async_engine(database.url.replace("postgresql://", "postgresql+psycopg://"))
            async with contextlib.AsyncExitStack() as stack:
                stack.push_async_callback(engine.dispose)
                alchemy = await stack.enter_async_context(engine.begin())
                await alchemy.execute(text(insert.format(event.version)))
                await durable.ack_in(alchemy, event)
                assert not fails

    for fails_at in (2, 4, None):
        try:
            async with store.durable("d") as durable:
                async for event in durable:
                    await charge(durable, event, fails=event.data == fails_at)
                    if event.data == 5:
                        break
        except AssertionError:
            assert fails_at is not None
    with database.connect() as admin:
        assert admin.execute("SELECT count(*), max(version) FROM charged").fetchone() == (6, 6)
    assert (await store.durable_subscriptions())[0].position == 6


async def test_a_rollback_that_the_loop_ignores_is_told(store: AsyncEventStore, database: Database) -> None:
    await fill(store, 3)
    async with store.durable("d") as durable, await psycopg.AsyncConnection.connect(database.dsn) as connection:
        event = await anext(durable)
        await durable.ack_in(connection, event)
        await connection.rollback()
        event = await anext(durable)
        with pytest.raises(EventStoreError, match="rolled back"):
            await durable.ack_in(connection, event)
        assert (await anext(durable)).data == 0, "it comes again"
    with pytest.raises(OptionsError):
        async with store.durable("other") as other:
            await other.ack_in(object(), event)


async def test_effects_of_several_events_in_one_transaction(store: AsyncEventStore, database: Database) -> None:
    """The loop does not wait for the row that its own transaction has locked, whenever its lease is due."""
    await fill(store, 8)
    async with store.durable("d", lease=0.3) as durable:
        async with await psycopg.AsyncConnection.connect(database.dsn) as connection:
            for _ in range(6):
                await durable.ack_in(connection, await asyncio.wait_for(anext(durable), 20))
                await asyncio.sleep(0.11)
        assert (await anext(durable)).data == 6
    assert (await store.durable_subscriptions())[0].position == 6


async def test_stop_skip_and_park(store: AsyncEventStore) -> None:
    await fill(store, 9)
    calls: list[int] = []

    async def handler(event: StoredEvent) -> None:
        calls.append(event.data)
        if event.data == 1:
            raise ValueError("one")
        if event.data == 8:
            raise asyncio.CancelledError

    async def run(name: str, policy: Any) -> list[int]:
        calls.clear()
        with pytest.raises((ValueError, asyncio.CancelledError)):
            async with store.durable(name) as durable:
                await durable.run(handler, policy)
        return list(calls)

    assert await run("stop", Stop(after=3, delay=0.001)) == [0, 1, 1, 1]
    assert await run("stop", None) == [1]
    assert await run("skip", Skip()) == list(range(9))
    assert await run("park", Park(after=2, delay=0.001)) == [0, 1, 1, 2, 3, 5, 6, 8], (
        "what follows of a1 is parked, too"
    )
    assert await run("park one", Park(whole_aggregate=False)) == list(range(9))
    async with store.durable("park") as durable:
        parked = await durable.parked()
        assert [(each.version, each.aggregate_id, each.attempts) for each in parked] == [
            (2, "a1", 2),
            (5, "a1", 0),
            (8, "a1", 0),
        ]
        assert parked[0].last_error == "ValueError: one"
        assert await durable.replay_parked(handler) == 0
        calls.clear()
        assert await durable.replay_parked(lambda event: calls.append(event.data)) == 3
        assert calls == [1, 4, 7]
        assert await durable.parked() == []
    states = {state.name: (state.position, state.parked) for state in await store.durable_subscriptions()}
    assert states == {"stop": (1, 0), "skip": (8, 0), "park": (8, 0), "park one": (8, 1)}


async def test_filters_belong_to_the_name(store: AsyncEventStore) -> None:
    await store.store_batch([Event("A", "a"), Event("B", "a"), Event("A", "a")])
    async with store.durable("d", types="A") as durable:
        assert [(await anext(durable)).version for _ in range(2)] == [1, 3]
        await durable._next(0.0)
        durable._acknowledge_given()
    with pytest.raises(OptionsError, match="reset=True"):
        await store.durable("d", types="B").__aenter__()
    async with store.durable("d", types="B", reset=True) as durable:
        assert durable.position == 3
    async with store.durable("d", types="B") as durable:
        assert durable.position == 3


async def test_what_does_not_match_is_progress(database: Database) -> None:
    async with AsyncEventStore(database.dsn) as store:
        await fill(store, 5)
        async with store.durable("d", types="none", lease=0.3) as durable:
            waiting = asyncio.create_task(anext(durable))
            await eventually(lambda: durable.position == 5, "it has moved")
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        assert (await store.durable_subscriptions())[0].position == 5


async def test_rewind_pause_delete(store: AsyncEventStore) -> None:
    """The consumer sees each of them, and goes on as well as it can."""
    await fill(store, 5)
    async with store.durable("d", lease=1.0) as durable:
        events = [await anext(durable) for _ in range(5)]
        await durable.ack(events[-1])
        await store.rewind_durable("d", 2)
        with pytest.raises(SubscriptionFencedError):
            await durable.ack(events[-1])
        event = await asyncio.wait_for(anext(durable), 20)
        assert event.data == 2
        await store.pause_durable("d")
        with pytest.raises(SubscriptionFencedError):
            await durable.ack(event)
        waiting = asyncio.create_task(anext(durable))
        await nothing_arrives()
        assert not waiting.done()
        await store.resume_durable("d")
        event = await asyncio.wait_for(waiting, 20)
        assert event.data == 2
        await store.delete_durable("d")
        with pytest.raises(SubscriptionFencedError, match="deleted"):
            await durable.ack(event)
        with pytest.raises(SubscriptionFencedError, match="deleted"):
            await asyncio.wait_for(durable.run(lambda _: None), 20)  # what it has fetched already may come
    assert await store.durable_subscriptions() == []
    with pytest.raises(OptionsError):
        await store.rewind_durable("d", 0)


def consume(dsn: str, kill_at: int) -> None:
    """A consumer that dies between effect and checkpoint."""
    durable_subscription.CLOSE_LIMIT = TIMEOUT_S  # type: ignore[misc]
    with EventStore(dsn) as store, psycopg.connect(dsn) as connection, store.durable("d", lease=0.3) as durable:
        for event in durable:
            connection.execute("INSERT INTO charged VALUES (%s)", (event.version,))
            durable.ack_in(connection, event)
            if event.version == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            connection.commit()
            if event.version == 20:
                return


def test_killed_between_effect_and_checkpoint(database: Database) -> None:
    with EventStore(database.dsn) as store, database.connect() as admin:
        admin.execute("CREATE TABLE charged (version bigint PRIMARY KEY)")
        store.store_batch(Event("T", "a", i) for i in range(20))
        context = multiprocessing.get_context("spawn")
        for kill_at in (3, 7, 8, 0):
            process = context.Process(target=consume, args=(database.dsn, kill_at))
            process.start()
            process.join(40)
            assert process.exitcode == (-signal.SIGKILL if kill_at else 0)
        assert admin.execute("SELECT array_agg(version ORDER BY version) FROM charged").fetchone() == (
            list(range(1, 21)),
        )
        assert store.durable_subscriptions()[0].position == 20


def test_from_threads(database: Database) -> None:
    with EventStore(database.dsn) as store:
        store.store_batch(Event("T", "a", i) for i in range(3))
        seen: list[int] = []
        started = time.monotonic()
        with store.durable("d", lease=3600) as durable:
            for event in durable:
                seen.append(event.data)
                if len(seen) == 3:
                    break
        assert seen == [0, 1, 2]
        assert store.durable_subscriptions()[0].position == 2
        assert time.monotonic() - started < TIMEOUT_S, "leaving does not wait for the next renewal"


@pytest.mark.parametrize("change", [{"name": ""}, {"name": "a\0"}, {"lease": 0.0}, {"checkpoint_interval": -1.0}])
async def test_bad_arguments(store: AsyncEventStore, change: dict[str, Any]) -> None:
    with pytest.raises(OptionsError):
        store.durable(**{"name": "d", **change})
    with pytest.raises(OptionsError):
        Park(after=0)
