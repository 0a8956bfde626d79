"""Consumers that share a durable subscription: each aggregate in order, whoever dies, sleeps or joins."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psycopg
import pytest

from socketio_postgres import (
    END,
    AsyncCompetingSubscription,
    AsyncDurableSubscription,
    AsyncEventStore,
    AsyncSubscription,
    DurableSubscription,
    Event,
    EventStore,
    EventStoreError,
    OptionsError,
    Park,
    StoredEvent,
    SubscriptionFencedError,
)
from socketio_postgres.events._sync import durable_subscription
from socketio_postgres.events.partition import partition_of
from tests.fixtures.database import Database
from tests.fixtures.waiting import TIMEOUT_S, eventually

PARTITIONS = 6
AGGREGATES = 12
LEASE_S = 6.0
"""Lease of processes. It runs out when they die or are frozen, and not because others have the processor."""


def competing(subscription: AsyncDurableSubscription) -> AsyncCompetingSubscription:
    """The same object, by its full type."""
    assert isinstance(subscription, AsyncCompetingSubscription)
    return subscription


async def fill(store: AsyncEventStore, count: int, start: int = 0) -> None:
    """Store numbered events of a dozen aggregates."""
    await store.store_batch(Event("T", f"a{i % AGGREGATES}", i) for i in range(start, start + count))


async def test_whoever_owns_all_partitions_needs_no_filter(
    store: AsyncEventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To compute the partition of each event would cost time for nothing."""
    asked: list[list[Any]] = []
    make = store._subscription

    def subscription(conditions: list[Any], *rest: Any) -> AsyncSubscription:
        asked.append(conditions)
        return make(conditions, *rest)

    monkeypatch.setattr(store, "_subscription", subscription)
    await fill(store, 20)
    async with store.durable("all", partitions=PARTITIONS) as durable:
        events = aiter(durable)
        assert [(await anext(events)).data for _ in range(20)] == list(range(20))
    assert asked == [[]]


class Consumer:
    """Iterates in a task, and notes what it was given."""

    def __init__(self, subscription: AsyncDurableSubscription, seen: list[tuple[int, str, int]], number: int) -> None:
        self.subscription = competing(subscription)
        self.task = asyncio.create_task(self._run(seen, number))

    async def _run(self, seen: list[tuple[int, str, int]], number: int) -> None:
        async for event in self.subscription:
            seen.append((number, event.aggregate_id, event.data))
            await asyncio.sleep(0)

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        await self.subscription.__aexit__(None, None, None)


async def test_the_same_partition_everywhere(store: AsyncEventStore) -> None:
    """In SQL, in the core and in Python."""
    ids = [f"order-{i}" for i in range(200)] + ["", "ü" * 20, "日本", "a:b%s"]
    ids.remove("")
    async with contextlib.AsyncExitStack() as stack:
        conditions = [("partitions", "7", ["2", "5"])]
        live = store._subscription(conditions, END, 1000, 5.0)
        await stack.enter_async_context(live)
        # Otherwise it may begin after the events, and the subscription reads them from the table.
        await eventually(lambda: store.stats()["reads"] > 0, "the shared reader has begun")
        await store.store_batch(Event("T", each) for each in ids)
        wanted = [each for each in ids if partition_of(each, 7) in {2, 5}]
        from_sql, _ = await store._load(0, conditions, None, False)
        assert [event.aggregate_id for event in from_sql] == wanted
        assert [(await live.next(TIMEOUT_S)).aggregate_id for _ in wanted] == wanted
        assert store.stats()["pages"] == 0
    assert 20 < len(wanted) < 120


async def test_consumers_share_evenly_and_hand_over(store: AsyncEventStore, database: Database) -> None:
    seen: list[tuple[int, str, int]] = []
    others = [AsyncEventStore(database.dsn) for _ in range(2)]
    consumers = [Consumer(await store.durable("d", partitions=PARTITIONS).__aenter__(), seen, 0)]
    await fill(store, 60)
    await eventually(lambda: len(seen) == 60, "one alone has all")
    assert consumers[0].subscription.partitions == list(range(PARTITIONS))
    for number, other in enumerate(others, 1):
        entered = await other.durable("d", partitions=PARTITIONS).__aenter__()
        consumers.append(Consumer(entered, seen, number))
    await eventually(
        lambda: all(len(consumer.subscription.partitions) == 2 for consumer in consumers), "each has its share"
    )
    await fill(store, 120, 60)
    await eventually(lambda: len(seen) >= 180, "all were handled")
    assert sorted(data for _, _, data in seen) == list(range(180)), "handing over repeats nothing"
    by_whom: dict[str, set[int]] = {}
    for number, aggregate, data in seen:
        if data >= 60:
            by_whom.setdefault(aggregate, set()).add(number)
    assert all(len(numbers) == 1 for numbers in by_whom.values())
    assert len(set.union(*by_whom.values())) > 1
    (state,) = await store.durable_subscriptions()
    assert len({each.owner for each in state.partitions}) == 3
    assert state.is_owned
    await eventually(lambda: all(c.subscription.position == 180 for c in consumers), "each has passed the last event")
    await consumers.pop(0).stop()
    await eventually(lambda: sum(len(c.subscription.partitions) for c in consumers) == PARTITIONS, "the rest has all")
    for consumer in consumers:
        await consumer.stop()
    (state,) = await store.durable_subscriptions()
    assert (state.position, state.is_owned, state.lag) == (180, False, 0)
    for other in others:
        await other.close()
    check_order(seen)


def check_order(seen: list[tuple[int, str, int]]) -> None:
    """Each aggregate's events came in order, the first time each."""
    last: dict[str, int] = {}
    for _, aggregate, data in seen:
        if data > last.get(aggregate, -1):
            assert data == last.get(aggregate, int(aggregate[1:]) - AGGREGATES) + AGGREGATES
            last[aggregate] = data


async def test_who_slept_can_acknowledge_nothing_and_goes_on(store: AsyncEventStore, database: Database) -> None:
    await fill(store, 24)
    zombie = competing(await store.durable("d", partitions=4).__aenter__())
    event = await anext(zombie)
    assert zombie._renewing is not None
    await zombie._renewing.stop()  # as if its process were stopped, for longer than the lease
    with database.connect() as admin:
        for table in ("subscriptions", "consumers"):
            admin.execute(f"UPDATE events_{table} SET lease_until = now() - interval '1 s'".encode())
    async with AsyncEventStore(database.dsn) as other, other.durable("d", partitions=4) as fresh:
        taken = [(await anext(fresh)).data for _ in range(3)]
        assert taken == [0, 1, 2]
        assert competing(fresh).partitions == [0, 1, 2, 3], "nobody else has given a sign of life"
        async with await psycopg.AsyncConnection.connect(database.dsn) as connection:
            with pytest.raises(SubscriptionFencedError):
                await zombie.ack_in(connection, event)
        with pytest.raises(SubscriptionFencedError):
            await zombie.ack(event)
        with pytest.raises(SubscriptionFencedError):
            await zombie.park(event, None)
    assert (await store.durable_subscriptions())[0].position == 2
    assert (await asyncio.wait_for(anext(zombie), 20)).data == 2, "it takes part again"
    await zombie.__aexit__(None, None, None)


async def test_effects_of_several_events_in_one_transaction(store: AsyncEventStore, database: Database) -> None:
    """The loop does not wait for the rows that its own transaction has locked."""
    await fill(store, 24)
    async with store.durable("d", partitions=4, lease=0.5, checkpoint_interval=0.0) as durable:
        async with await psycopg.AsyncConnection.connect(database.dsn) as connection:
            for _ in range(12):
                event = await asyncio.wait_for(anext(durable), 20)
                await durable.ack_in(connection, event)
                await asyncio.sleep(0.05)
        assert (await anext(durable)).data == 12
    assert (await store.durable_subscriptions())[0].position == 12


async def test_a_rollback_brings_the_event_again(store: AsyncEventStore, database: Database) -> None:
    await store.store_batch(Event("T", "a", i) for i in range(3))
    async with (
        store.durable("d", partitions=2, checkpoint_interval=0.0) as durable,
        await psycopg.AsyncConnection.connect(database.dsn) as connection,
    ):
        await durable.ack_in(connection, await anext(durable))
        await connection.rollback()
        seen: list[int] = []
        while len(seen) < 3:  # whether the loop notices before it has handed out the next one, or after
            event = await anext(durable)
            try:
                await durable.ack_in(connection, event)
            except EventStoreError:
                await connection.rollback()
            else:
                await connection.commit()
                seen.append(event.data)
        assert seen == [0, 1, 2]


async def test_rewind_pause_repartition_delete(store: AsyncEventStore) -> None:
    await fill(store, 24)
    durable = competing(await store.durable("d", partitions=4).__aenter__())
    assert [(await anext(durable)).data for _ in range(24)] == list(range(24))
    await store.rewind_durable("d", 5)
    assert [(await asyncio.wait_for(anext(durable), 20)).data for _ in range(19)] == list(range(5, 24))
    with pytest.raises(OptionsError, match="somebody has it"):
        await store.repartition_durable("d", 3)
    await store.pause_durable("d")
    waiting = asyncio.create_task(anext(durable))
    await eventually(lambda: durable.partitions == [], "it has lost all")
    await store.rewind_durable("d", 24)
    await store.resume_durable("d")
    await eventually(lambda: len(durable.partitions) == 4, "and has them again")
    await fill(store, 1, 24)
    assert (await asyncio.wait_for(waiting, 20)).data == 24
    await durable.__aexit__(None, None, None)
    for wrong in (1, 3):
        with pytest.raises(OptionsError, match="made with 4"):
            await store.durable("d", partitions=wrong).__aenter__()
    await store.repartition_durable("d", 3)
    async with store.durable("d", partitions=3) as three:
        await fill(store, 1, 25)
        assert [(await anext(three)).data for _ in range(2)] == [24, 25]
        await store.delete_durable("d")
        with pytest.raises(SubscriptionFencedError, match="deleted"):
            await asyncio.wait_for(anext(three), 20)
    async with store.durable("one"):
        with pytest.raises(OptionsError, match="made with 1"):
            await store.durable("one", partitions=2).__aenter__()
    with pytest.raises(OptionsError, match="no durable"):
        await store.repartition_durable("nobody", 3)
    for wrong_count in (0, 1025, True, "3"):
        with pytest.raises(OptionsError, match="partitions"):
            store.durable("d", partitions=wrong_count)  # type: ignore[arg-type]


async def test_parking_keeps_order_across_consumers(store: AsyncEventStore, database: Database) -> None:
    """What one has parked of an aggregate, the next consumer of its partition does not overtake."""
    await fill(store, 24)
    handled: list[int] = []

    def handler(event: StoredEvent) -> None:
        if event.data == 3:
            raise ValueError("three")
        handled.append(event.data)
        if event.data == 11 and handled.count(11) == 1:
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        async with store.durable("d", partitions=4) as durable:
            await durable.run(handler, Park())
    async with AsyncEventStore(database.dsn) as other, other.durable("d", partitions=4) as durable:
        running = asyncio.create_task(durable.run(handler, Park()))
        await eventually(lambda: 23 in handled, "the rest was handled")
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert [(each.version, each.attempts) for each in await durable.parked()] == [(4, 1), (16, 0)]
        assert 15 not in handled
        assert await durable.replay_parked(lambda _: None) == 2


# ------------------------------------------------------------------------------------------------- real processes


def consume(dsn: str, *, is_exact: bool) -> None:
    """Consume for ever; each effect with its position in one transaction, or before the position."""
    with (
        EventStore(dsn) as store,
        store.durable("d", partitions=PARTITIONS, lease=LEASE_S, checkpoint_interval=0.1) as durable,
    ):
        while True:
            # Who is frozen in a transaction holds its partition until the server ends that transaction.
            with psycopg.connect(
                dsn, autocommit=True, options="-c idle_in_transaction_session_timeout=2s"
            ) as connection:
                try:
                    consume_with(connection, durable, is_exact=is_exact)
                except (EventStoreError, psycopg.Error):
                    continue  # fenced off, or, on a busy machine, the server has ended a transaction with an `ack_in`


def consume_with(connection: psycopg.Connection, durable: DurableSubscription, *, is_exact: bool) -> None:
    """Consume until the partition or the connection is lost."""
    for event in durable:
        time.sleep(0.002)
        values = (event.version, event.aggregate_id, event.data, os.getpid())
        if is_exact:
            with connection.transaction():
                connection.execute("INSERT INTO effects (v, a, n, pid) VALUES (%s, %s, %s, %s)", values)
                durable.ack_in(connection, event)
        else:
            connection.execute("INSERT INTO effects (v, a, n, pid) VALUES (%s, %s, %s, %s)", values)


@pytest.fixture
def start(database: Database) -> Iterator[Callable[[bool], BaseProcess]]:
    """Starts consumers; ends them all."""
    context = multiprocessing.get_context("spawn")
    processes: list[BaseProcess] = []

    def start(is_exact: bool) -> BaseProcess:
        process = context.Process(target=consume, args=(database.dsn,), kwargs={"is_exact": is_exact}, daemon=True)
        process.start()
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.join(20)


def pids(database: Database) -> set[int]:
    """Who has effects."""
    with database.connect() as admin:
        return {int(row[0]) for row in admin.execute("SELECT DISTINCT pid FROM effects").fetchall()}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("is_exact", [True, False], ids=["ack_in", "at least once"])
async def test_processes_come_die_and_sleep(
    store: AsyncEventStore, database: Database, start: Callable[[bool], BaseProcess], is_exact: bool
) -> None:
    with database.connect() as admin:
        admin.execute("CREATE TABLE effects (id bigserial PRIMARY KEY, v bigint, a text, n int, pid int)")
    count = 0

    async def until(what: str, condition: Callable[[], bool]) -> None:
        """Store on, and wait for something."""
        nonlocal count
        deadline = time.monotonic() + 150
        while not condition():
            # Bounded, so that a slow machine has not too much left to do.
            if count < int(str(database.value("SELECT count(*) FROM effects"))) + 50 * AGGREGATES:
                await fill(store, AGGREGATES, count)
                count += AGGREGATES
            await asyncio.sleep(0.05)
            assert time.monotonic() < deadline, what

    def works(process: BaseProcess) -> bool:
        return process.pid in pids(database)

    def effects_after(begin: int) -> int:
        return int(str(database.value(f"SELECT count(DISTINCT a) FROM effects WHERE n >= {begin}")))

    one, two = start(is_exact), start(is_exact)
    await until("both have a share", lambda: works(one) and works(two))
    one.kill()  # SIGKILL, most likely in the middle of something
    one.join(20)
    begin = count
    await until("the other has all of it", lambda: effects_after(begin) == AGGREGATES)
    three = start(is_exact)
    await until("a third one joins", lambda: works(three))
    if is_exact:
        os.kill(two.pid or 0, signal.SIGSTOP)
        begin = count
        await until("the third one has all of it", lambda: effects_after(begin) == AGGREGATES)
        os.kill(two.pid or 0, signal.SIGCONT)
        begin = count
        await until("the zombie takes part again", lambda: bool(effects_of(database, two.pid or 0, begin)))
    done = "SELECT count(DISTINCT v) FROM effects"
    await eventually(lambda: database.value(done) == count, "all were handled", timeout=60)
    with database.connect() as admin:
        rows = admin.execute("SELECT pid, a, n FROM effects ORDER BY id").fetchall()
    check_order([(int(pid), str(a), int(n)) for pid, a, n in rows])
    if is_exact:
        assert len(rows) == count, "each effect exactly once"
    for aggregate in {a for _, a, _ in rows}:
        owners = [pid for pid, a, _ in rows if a == aggregate]
        changes = sum(one != other for one, other in itertools.pairwise(owners))
        assert changes <= 10, "an aggregate belongs to somebody until that one dies or shares"


def effects_of(database: Database, pid: int, begin: int) -> int:
    """How many effects a process has of events from a number on."""
    return int(str(database.value(f"SELECT count(*) FROM effects WHERE n >= {begin} AND pid = {pid}")))


def freeze(dsn: str) -> None:
    """Freeze between `ack_in` and commit; the commit must fail."""
    durable_subscription.CLOSE_LIMIT = TIMEOUT_S  # type: ignore[misc]
    options = "-c idle_in_transaction_session_timeout=1s"
    with (
        EventStore(dsn) as store,
        psycopg.connect(dsn, options=options) as connection,
        store.durable("d", partitions=PARTITIONS, lease=1.0) as durable,
    ):
        durable.ack_in(connection, next(iter(durable)))
        os.kill(os.getpid(), signal.SIGSTOP)
        with pytest.raises(psycopg.Error):
            connection.commit()


def stopped(process: BaseProcess) -> bool:
    """Whether a process has stopped itself."""
    return Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T"


async def test_who_freezes_in_a_transaction_loses_its_partition_with_it(
    store: AsyncEventStore, database: Database
) -> None:
    """The server ends the transaction that has the position locked; then another consumer takes over."""
    await store.store(Event("T", "a0", 0))
    process = multiprocessing.get_context("spawn").Process(target=freeze, args=(database.dsn,), daemon=True)
    process.start()
    try:
        await eventually(lambda: stopped(process), "it is frozen", timeout=60)
        async with store.durable("d", partitions=PARTITIONS) as durable:
            event = await asyncio.wait_for(anext(aiter(durable)), 60)
            assert event.data == 0
            os.kill(process.pid or 0, signal.SIGCONT)
            process.join(60)
            assert process.exitcode == 0
            await durable.ack(event)
    finally:
        process.kill()
        process.join(20)


async def test_a_row_that_was_locked_for_a_moment_is_no_rollback(store: AsyncEventStore) -> None:
    """Consumers write at the same time; who found a row locked goes on, and writes it the next time."""
    async with store.durable("d", partitions=PARTITIONS) as durable:
        subscription = competing(durable)
        await store.store(Event("T", "a0", 0))
        event = await asyncio.wait_for(anext(subscription), 20)
        number = partition_of("a0", PARTITIONS)
        assert not await subscription._is_lost(number)
        await subscription.ack(event)
        assert subscription.partitions == list(range(PARTITIONS))
        (state,) = await store.durable_subscriptions()
        assert {each.position for each in state.partitions} == {event.version}
