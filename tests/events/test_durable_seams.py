"""Durable subscriptions at their seams: committed and not told, handed over halfway, deleted and made again.

Directly, and behind a pooler in transaction mode, where each transaction may run in another session.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest

from socketio_postgres import (
    AlreadyAcknowledgedError,
    AsyncDurableSubscription,
    AsyncEventStore,
    ConnectionLostError,
    Event,
    EventStoreError,
    OptionsError,
    Park,
    Skip,
    StoredEvent,
    StoreRewoundError,
    SubscriptionFencedError,
)
from socketio_postgres.events.failure_policy import FailurePolicy
from tests.fixtures.database import Database
from tests.fixtures.pgbouncer import PgBouncer, pgbouncer_program
from tests.fixtures.waiting import TIMEOUT_S, eventually

__all__ = ["pgbouncer_program"]

IN_FIRST, IN_SECOND = "a2", "a0"
"""Aggregates that fall into the first and the second of two partitions."""
STRANGER = "UPDATE events_subscriptions SET owner = 'stranger', lease_until = now() + interval '1 hour'"
STRANGER_ARRIVES = "INSERT INTO events_consumers VALUES ('d', 'stranger', now() + interval '1 hour')"
STRANGER_LEAVES = (
    "DELETE FROM events_consumers WHERE owner = 'stranger'",
    "UPDATE events_subscriptions SET owner = NULL, lease_until = NULL WHERE owner = 'stranger'",
)


@pytest.fixture(params=["direct", "pooler"])
def way(request: pytest.FixtureRequest, database: Database) -> Iterator[Database]:
    """The way to the database, of stores and of the user's transactions."""
    if request.param == "direct":
        yield database
        return
    program = request.getfixturevalue("pgbouncer_program")
    with PgBouncer(program, database, "transaction") as pooler:
        yield Database(pooler.dsn)


@pytest.fixture
async def our_store(way: Database, database: Database) -> AsyncIterator[AsyncEventStore]:
    """A store that is open on a table of its own."""
    async with AsyncEventStore(way.dsn, listen_dsn=database.dsn, enable_prepared_stmts=way is database) as store:
        yield store


async def fill(store: AsyncEventStore, count: int, start: int = 0) -> None:
    """Store numbered events of two aggregates, one of each partition."""
    aggregates = (IN_FIRST, IN_SECOND)
    await store.store_batch(Event("T", aggregates[i % 2], i) for i in range(start, start + count))


def execute(database: Database, *statements: str) -> None:
    """Run statements of an administrator."""
    with database.connect() as admin:
        for statement in statements:
            admin.execute(statement.encode())


@asynccontextmanager
async def effects_of(database: Database, way: Database) -> AsyncIterator[psycopg.AsyncConnection]:
    """A connection of the user's, and a table for effects without a key, so that nothing hides what came twice."""
    execute(database, "CREATE TABLE effects (id bigserial, data int)")
    async with await psycopg.AsyncConnection.connect(way.dsn, prepare_threshold=None) as connection:
        yield connection


def applied(database: Database) -> list[int]:
    """Effects, in order."""
    with database.connect() as admin:
        return [data for (data,) in admin.execute("SELECT data FROM effects ORDER BY id").fetchall()]


async def in_time(work: Any) -> Any:
    """The result, or a failure of the test."""
    return await asyncio.wait_for(work, TIMEOUT_S)


# ---------------------------------------------------------------------------------------------------- handing over


async def test_a_partition_that_comes_while_a_batch_is_filled(our_store: AsyncEventStore, database: Database) -> None:
    """Its events lie further back than those that the batch has. None is skipped, and none comes twice."""
    await fill(our_store, 6)
    async with our_store.durable("d", partitions=2):
        pass
    execute(database, f"{STRANGER} WHERE partition = 1", STRANGER_ARRIVES)
    is_done = False

    async def keep_filling() -> None:
        while not is_done:
            await our_store.store(Event("T", IN_FIRST))
            await asyncio.sleep(0.02)

    async with our_store.durable("d", partitions=2) as durable:
        assert durable.partitions == [0]
        batches = durable.batches(max_count=10_000, max_wait=4)
        seen: list[int] = []
        while len(seen) < 3:
            seen += [event.version for event in await in_time(anext(batches))]
        assert seen == [1, 3, 5]
        coming = asyncio.ensure_future(anext(batches))
        filling = asyncio.create_task(keep_filling())
        await asyncio.sleep(0.3)
        execute(database, *STRANGER_LEAVES)
        batch = await in_time(coming)
        is_done = True
        await filling
        last = await our_store.latest_version()
        while True:
            versions = [event.version for event in batch]
            assert versions == sorted(set(versions))
            seen += versions
            if len(seen) >= last:
                break
            batch = await in_time(anext(batches))
    assert sorted(seen) == list(range(1, last + 1))


async def test_a_partition_that_is_locked_is_handed_over_later(
    our_store: AsyncEventStore, database: Database, way: Database
) -> None:
    """A transaction of the user's has it; once that has ended, nobody waits for the lease to run out."""
    await fill(our_store, 4)
    async with effects_of(database, way) as connection, our_store.durable("d", partitions=2, lease=600) as durable:
        await anext(durable)
        event = await anext(durable)
        assert event.aggregate_id == IN_SECOND
        await durable.ack_in(connection, event)
        execute(database, STRANGER_ARRIVES)
        handled = asyncio.create_task(durable.run(lambda _: None))
        await eventually(lambda: our_store.stats()["subscriptions"] == 1, "it runs")
        await asyncio.sleep(1.5)  # it has looked at who takes part
        await connection.commit()
        owner = "SELECT owner FROM events_subscriptions WHERE partition = 1"
        await eventually(lambda: database.value(owner) is None, "it is handed over")
        await eventually(lambda: durable.partitions == [0], "it knows")
        handled.cancel()
        await asyncio.gather(handled, return_exceptions=True)


async def test_another_history_of_the_same_name(our_store: AsyncEventStore, database: Database, way: Database) -> None:
    """Deleted and made again, and by a failover with the same epoch as before; the old owner is no owner of it."""
    await fill(our_store, 4)
    async with (
        AsyncEventStore(database.dsn) as other_store,
        effects_of(database, way) as connection,
        our_store.durable("d") as old,
    ):
        event = await anext(old)
        await our_store.delete_durable("d")
        async with other_store.durable("d") as new:
            assert (await anext(new)).version == 1
            assert new.fencing_token(event) > old.fencing_token(event) > 0, "for systems that know the highest one"
            execute(database, f"UPDATE events_subscriptions SET epoch = {old.fencing_token(event)}")
            for call in (old.ack(event), old.park(event, None), old.ack_in(connection, event)):
                with pytest.raises(SubscriptionFencedError):
                    await in_time(call)
            await connection.rollback()
            (state,) = await our_store.durable_subscriptions()
            assert (state.position, state.is_owned) == (0, True)


async def test_a_claim_that_was_committed_and_not_told(our_store: AsyncEventStore) -> None:
    """Asked again, the database says that the partition is taken: by this very consumer."""
    await fill(our_store, 2)
    durable = our_store.durable("d", lease=600)
    ask = durable._query
    lost: list[Any] = []

    async def lossy(sql: str, *texts: str | None, timeout: float | None = None) -> list[list[str | None]]:
        rows = await ask(sql, *texts, timeout=timeout)
        if "epoch = epoch + 1" in sql and not lost:
            lost.append(rows)
            raise ConnectionLostError("the answer was lost")
        return rows

    durable._query = lossy
    await in_time(durable.__aenter__())
    assert lost
    assert (await in_time(anext(durable))).version == 1
    await durable.__aexit__(None, None, None)


async def test_repartitioning_does_not_overtake_an_open_transaction(
    our_store: AsyncEventStore, database: Database, way: Database
) -> None:
    """The lease is over, but its transaction will still commit. The position of one is not that of the others."""
    await fill(our_store, 4)
    async with effects_of(database, way) as connection:
        async with our_store.durable("d", partitions=2, lease=0.1) as durable:
            await durable.ack_in(connection, await anext(durable))
        execute(database, "UPDATE events_subscriptions SET position = 0 WHERE partition = 1")
        is_over = "SELECT lease_until < clock_timestamp() FROM events_subscriptions WHERE partition = 0"
        await eventually(lambda: database.value(is_over), "the lease is over")
        repartitioning = asyncio.create_task(our_store.repartition_durable("d", 4))
        waits = "SELECT count(*) FROM pg_locks WHERE NOT granted"
        await eventually(lambda: database.value(waits) or repartitioning.done(), "it waits")
        await connection.commit()
        with pytest.raises(OptionsError, match="different positions"):
            await in_time(repartitioning)
    (state,) = await our_store.durable_subscriptions()
    assert [each.position for each in state.partitions] == [1, 0]
    await our_store.rewind_durable("d", 4)
    await our_store.repartition_durable("d", 4)
    (state,) = await our_store.durable_subscriptions()
    assert [each.position for each in state.partitions] == [4] * 4


@pytest.mark.parametrize("call", ["fence_in", "ack_in"])
async def test_positions_are_locked_in_one_order(
    our_store: AsyncEventStore, database: Database, way: Database, call: str
) -> None:
    """A batch begins with the second partition, while somebody rewinds the subscription."""
    await fill(our_store, 3)
    async with effects_of(database, way) as connection, our_store.durable("d", partitions=2) as durable:
        await durable.ack(await anext(durable))
        batch = await in_time(anext(durable.batches(max_count=2, max_wait=TIMEOUT_S)))
        assert [event.aggregate_id for event in batch] == [IN_SECOND, IN_FIRST]
        waiting = (
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
        with database.connect() as holder:
            holder.execute("BEGIN")
            holder.execute("SELECT FROM events_subscriptions WHERE partition = 1 FOR UPDATE")
            work = durable.fence_in(connection, list(batch)) if call == "fence_in" else batch.ack_in(connection)
            working = asyncio.create_task(work)
            await eventually(lambda: database.value(waiting) == 1, "it waits")
            rewinding = asyncio.create_task(our_store.rewind_durable("d", 0))
            await eventually(lambda: database.value(waiting) == 2, "it waits, too")
            holder.execute("COMMIT")
        await in_time(working)
        await connection.commit()
        await in_time(rewinding)


# ----------------------------------------------------------------------------------------- committed, and not told


@pytest.mark.parametrize("policy", [Park(after=3, delay=0.001), Park(), Skip()], ids=["retry", "park", "skip"])
async def test_a_commit_in_doubt_is_not_applied_again(
    our_store: AsyncEventStore, database: Database, way: Database, policy: FailurePolicy
) -> None:
    """The connection breaks while it commits: the handler sees an error, and the database has its changes."""
    await fill(our_store, 4)
    lost: list[int] = []
    async with effects_of(database, way) as connection, our_store.durable("d") as durable:

        async def handler(event: StoredEvent) -> None:
            async with connection.transaction():
                await connection.execute("INSERT INTO effects (data) VALUES (%s)", [event.data])
                await durable.ack_in(connection, event)
            if event.data == 1 and not lost:
                lost.append(1)
                raise psycopg.OperationalError("the connection was lost")

        running = asyncio.create_task(durable.run(handler, policy))
        await eventually(lambda: running.done() or len(applied(database)) >= 4, "all are applied")
        assert not running.done(), running
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert await durable.parked() == []
    assert applied(database) == [0, 1, 2, 3]


async def test_an_event_is_acknowledged_in_one_transaction(
    our_store: AsyncEventStore, database: Database, way: Database
) -> None:
    """In another one the call says that it was acknowledged, instead of letting its changes happen twice."""
    await fill(our_store, 4)
    async with effects_of(database, way) as connection, our_store.durable("d") as durable:
        first = await anext(durable)
        await durable.ack_in(connection, first)
        second = await anext(durable)
        async with connection.transaction():  # a savepoint
            await durable.ack_in(connection, second)
        await durable.ack_in(connection, second)
        await durable.ack_in(connection, first)
        await connection.commit()
        for event in (first, second):
            with pytest.raises(AlreadyAcknowledgedError, match=f"event {event.version} .* was acknowledged before"):
                await durable.ack_in(connection, event)
            await connection.rollback()
        with pytest.raises(AlreadyAcknowledgedError):
            await durable.park(second, ValueError("too late"))
        assert await durable.parked() == []
        third = await anext(durable)
        await durable.ack_in(connection, third)
        await connection.rollback()
        await durable.ack_in(connection, third)
        await connection.commit()
        assert (await anext(durable)).version == 4


async def test_a_parking_that_was_committed_and_not_told(our_store: AsyncEventStore) -> None:
    await fill(our_store, 2)
    async with our_store.durable("d") as durable:
        ask = durable._query
        lost: list[Any] = []

        async def lossy(sql: str, *texts: str | None, timeout: float | None = None) -> list[list[str | None]]:
            rows = await ask(sql, *texts, timeout=timeout)
            if "last_error" in sql and not lost:
                lost.append(rows)
                raise ConnectionLostError("the answer was lost")
            return rows

        durable._query = lossy
        await durable.park(await anext(durable), ValueError("one"), attempts=3)
        assert lost
        (parked,) = await durable.parked()
        assert (parked.version, parked.attempts) == (1, 3)
        assert (await anext(durable)).version == 2


# ------------------------------------------------------------------------------------- the user's own transaction


@pytest.mark.parametrize("is_suspicious", [False, True])
async def test_parking_does_not_wait_for_the_users_own_transaction(
    our_store: AsyncEventStore, database: Database, way: Database, *, is_suspicious: bool
) -> None:
    """The handler fails after `ack_in`, or its beginning is to be counted, and its transaction is still open."""
    await fill(our_store, 3)
    async with our_store.durable("d"):
        pass
    if is_suspicious:
        crashed = "owner = 'dead', lease_until = now() - interval '1 s', unclean = 2"
        execute(database, f"UPDATE events_subscriptions SET {crashed}")
    async with effects_of(database, way) as connection, our_store.durable("d", lease=1) as durable:
        if is_suspicious:
            await connection.execute("SELECT FROM events_subscriptions FOR UPDATE")

        async def handler(event: StoredEvent) -> None:
            await durable.ack_in(connection, event)
            raise ValueError("zero")

        with pytest.raises(EventStoreError, match="end it first"):
            await in_time(durable.run(handler, Park()))
        await connection.rollback()
        durable._lock_limit = TIMEOUT_S

        async def come_again() -> None:
            async for event in durable:
                if event.version == 1:
                    await durable.park(event, ValueError("zero"))
                    return

        await in_time(come_again())
        assert [each.version for each in await durable.parked()] == [1]


async def test_a_handler_that_was_cancelled_has_acknowledged_nothing(our_store: AsyncEventStore) -> None:
    """Whoever runs the same subscription again gets the event again."""
    await fill(our_store, 3)
    seen: list[int] = []

    async def endless(event: StoredEvent) -> None:
        seen.append(event.data)
        if len(seen) == 2:
            await asyncio.Event().wait()

    async with our_store.durable("d") as durable:
        for count in (2, 4):
            running = asyncio.create_task(durable.run(endless))
            await eventually(lambda count=count: len(seen) == count, "it is at work")  # type: ignore[misc]
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
    assert seen == [0, 1, 1, 2]


async def test_an_ack_after_a_rolled_back_ack_in_is_refused(
    our_store: AsyncEventStore, database: Database, way: Database
) -> None:
    """It would acknowledge what was rolled back."""
    await fill(our_store, 3)
    async with effects_of(database, way) as connection, our_store.durable("d") as durable:
        await durable.ack_in(connection, await anext(durable))
        event = await anext(durable)
        await connection.rollback()
        with pytest.raises(EventStoreError, match="rolled back"):
            await durable.ack(event)
        assert (await in_time(anext(durable))).version == 1


async def test_a_loop_that_is_left_and_entered_again(our_store: AsyncEventStore) -> None:
    """Leaving it, by an error of the handler for example, acknowledges nothing."""
    await fill(our_store, 3)
    seen: list[int] = []
    async with our_store.durable("d") as durable:
        for _ in range(2):
            with contextlib.suppress(ValueError):
                async for event in durable:
                    seen.append(event.version)
                    if len(seen) == 2:
                        raise ValueError("two")
                    if len(seen) == 4:
                        break
        for _ in range(2):
            with contextlib.suppress(ValueError):
                async for batch in durable.batches(max_count=1):
                    seen += [event.version for event in batch]
                    if len(seen) == 5:
                        raise ValueError("five")
                    if len(seen) == 6:
                        break
    assert seen == [1, 2, 2, 3, 3, 3]


@pytest.mark.parametrize("is_repeated", [False, True])
@pytest.mark.parametrize("reason", ["fenced", "connection lost"])
async def test_a_batch_that_could_not_be_acknowledged_comes_again(
    our_store: AsyncEventStore, database: Database, way: Database, reason: str, *, is_repeated: bool
) -> None:
    """At least what is still ours of it, although the loop goes on."""
    await fill(our_store, 4)
    async with (
        effects_of(database, way) as connection,
        await psycopg.AsyncConnection.connect(database.dsn) as other,
        our_store.durable("d", partitions=2, checkpoint_interval=0) as durable,
    ):
        batches = durable.batches(max_count=4, max_wait=TIMEOUT_S)
        batch = await in_time(anext(batches))
        assert [event.version for event in batch] == [1, 2, 3, 4]
        if reason == "fenced":
            execute(database, f"{STRANGER} WHERE partition = 0", STRANGER_ARRIVES)
            with pytest.raises(SubscriptionFencedError):
                await in_time(batch.ack_in(connection))
        else:
            cursor = await connection.execute("SELECT pg_backend_pid()")
            execute(database, "SELECT pg_terminate_backend({}, 10000)".format(*await cursor.fetchone() or ()))
            with pytest.raises(psycopg.OperationalError):
                await in_time(batch.ack_in(connection))
        expected = [1, 2, 3, 4]
        if reason == "fenced":
            await fill(our_store, 4, 4)
            expected = [2, 4, 6, 8]
        elif is_repeated:
            await batch.ack_in(other)
            await other.commit()
            await fill(our_store, 4, 4)
            expected = [5, 6, 7, 8]
        seen: list[int] = []
        while len(seen) < len(expected):
            seen += [event.version for event in await in_time(anext(batches))]
        assert seen == expected


async def test_an_event_that_could_not_be_parked_comes_again(
    our_store: AsyncEventStore, database: Database, way: Database
) -> None:
    await fill(our_store, 2)
    async with our_store.durable("d", lease=1) as durable, effects_of(database, way) as connection:
        event = await anext(durable)
        await connection.execute("SELECT FROM events_subscriptions FOR UPDATE")
        with pytest.raises(EventStoreError, match="end it first"):
            await durable.park(event, None)
        await connection.rollback()
        assert (await in_time(anext(durable))).version == event.version


# --------------------------------------------------------------------------------------------------------- parked


async def parked_one(store: AsyncEventStore, partitions: int) -> None:
    """Store an event and set it aside."""
    await store.store(Event("T", IN_FIRST, 0))
    async with store.durable("d", partitions=partitions) as durable:
        await durable.park(await anext(durable), ValueError("zero"))


async def test_a_consumer_without_partitions_keeps_what_it_replays(
    our_store: AsyncEventStore, database: Database
) -> None:
    """Its handler takes longer than the lease, and nobody else replays the event meanwhile."""
    await parked_one(our_store, 2)
    execute(database, STRANGER, STRANGER_ARRIVES)
    release = asyncio.Event()
    seen: list[str] = []

    async def slow(_: StoredEvent) -> None:
        seen.append("slow")
        await release.wait()

    async with (
        our_store.durable("d", partitions=2, lease=12) as one,
        our_store.durable("d", partitions=2, lease=12) as two,
    ):
        assert (one.partitions, two.partitions) == ([], [])
        replaying = asyncio.create_task(one.replay_parked(slow))
        await eventually(lambda: seen, "it is at work")
        claimed_until = database.value("SELECT claimed_until FROM events_parked")
        renewed = "SELECT claimed_until > %s FROM events_parked"
        await eventually(lambda: database.value(renewed, claimed_until), "the claim is renewed")
        assert await two.replay_parked(lambda _: seen.append("two")) == 0
        release.set()
        assert await in_time(replaying) == 1
    assert seen == ["slow"]


async def test_a_replay_that_is_cancelled_lets_go(our_store: AsyncEventStore, database: Database) -> None:
    await parked_one(our_store, 1)
    seen: list[str] = []

    async def endless(_: StoredEvent) -> None:
        seen.append("endless")
        await asyncio.Event().wait()

    async with our_store.durable("d", lease=600) as durable:
        replaying = asyncio.create_task(durable.replay_parked(endless))
        await eventually(lambda: seen, "it is at work")
        replaying.cancel()
        await asyncio.gather(replaying, return_exceptions=True)
        assert await durable.replay_parked(lambda _: seen.append("again")) == 1
    assert seen == ["endless", "again"]


async def test_a_rewind_forgets_how_often_an_event_was_begun(our_store: AsyncEventStore, database: Database) -> None:
    """Another event comes next, and has ended no process."""
    await fill(our_store, 3)
    async with our_store.durable("d") as durable:
        await durable.ack(await anext(durable))
    crashed = "owner = 'dead', lease_until = now() - interval '1 s', unclean = 2"
    execute(database, "UPDATE events_subscriptions SET attempts = 5")
    await our_store.rewind_durable("d", 0)
    execute(database, f"UPDATE events_subscriptions SET {crashed}")
    seen: list[int] = []
    async with our_store.durable("d") as durable:
        running = asyncio.create_task(durable.run(lambda event: seen.append(event.data), Park(after=2)))
        await eventually(lambda: len(seen) == 3 or durable.position == 3, "all have come")
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert await durable.parked() == []
    assert seen == [0, 1, 2]


# -------------------------------------------------------------------------------------------- a table that is set back


@pytest.mark.parametrize("how", ["idle", "ack_in", "other partition", "repartitioned", "rewound"])
async def test_every_position_knows_its_event(
    our_store: AsyncEventStore, database: Database, way: Database, how: str
) -> None:
    """Whichever way it got there: otherwise nobody notices that the table was set back."""
    await fill(our_store, 3)
    options: dict[str, Any] = {"partitions": 2} if how in {"other partition", "repartitioned"} else {}
    if how == "idle":
        options["types"] = "rare"
    async with effects_of(database, way) as connection, our_store.durable("d", **options) as durable:
        if how == "idle":
            await idle_until(durable, 3)
        elif how in {"ack_in", "other partition"}:
            for _ in range(3):
                await durable.ack_in(connection, await anext(durable))
            await connection.commit()
        else:
            for _ in range(3):
                await durable.ack(await anext(durable))
    if how == "repartitioned":
        await our_store.repartition_durable("d", 4)
        options["partitions"] = 4
    elif how == "rewound":
        await our_store.rewind_durable("d", 2)
    expected = 2 if how == "rewound" else 3
    (state,) = await our_store.durable_subscriptions()
    assert {each.position for each in state.partitions} == {expected}
    execute(database, "TRUNCATE events RESTART IDENTITY")
    await fill(our_store, 5)
    with pytest.raises(StoreRewoundError, match="rewind_durable"):
        await in_time(our_store.durable("d", **options).__aenter__())


@pytest.mark.parametrize("call", ["ack", "ack_in", "loop"])
async def test_a_position_that_is_set_back(
    our_store: AsyncEventStore, database: Database, way: Database, call: str
) -> None:
    """By a failover that loses commits; owner and epoch are the same, and no transaction was rolled back."""
    await fill(our_store, 5)
    async with effects_of(database, way) as connection, our_store.durable("d", checkpoint_interval=0) as durable:
        for _ in range(3):
            event = await anext(durable)
        await durable.ack(event)
        event = await anext(durable)
        execute(database, "UPDATE events_subscriptions SET position = 1")
        work = {
            "ack": lambda: durable.ack(event),
            "ack_in": lambda: durable.ack_in(connection, event),
            "loop": lambda: durable.run(lambda _: None),
        }
        with pytest.raises(StoreRewoundError, match="was at version 3; now the database has it at version 1"):
            await in_time(work[call]())


async def idle_until(durable: AsyncDurableSubscription, version: int) -> None:
    """Wait for an event that does not come until the position has passed what does not match."""
    waiting = asyncio.ensure_future(anext(durable))
    await eventually(lambda: durable.position == version, "it has passed them")
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
