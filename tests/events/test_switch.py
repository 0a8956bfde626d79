"""A newer version of a projection takes over: nothing applied twice or missed, whatever dies at which moment."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import random
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

import asyncpg
import psycopg
import pytest
from sqlalchemy import text

from socketio_postgres import (
    AsyncEventStore,
    Event,
    EventStore,
    EventStoreError,
    OptionsError,
    Park,
    Projection,
    StoredEvent,
    SubscriptionFencedError,
    SubscriptionRetiredError,
)
from tests.events.test_projections import connecting, running
from tests.fixtures.database import Database
from tests.fixtures.waiting import TIMEOUT_S, eventually, nothing_arrives

RETIRED = 7
"""Exit status of a process whose version was retired."""

SWITCH = (
    "DROP VIEW IF EXISTS served",
    "CREATE VIEW served AS SELECT * FROM effects_{0}",
    "INSERT INTO switches (version) VALUES ({0})",
)


async def run_on(conn: Any, sql: str) -> None:
    """Run a statement on a connection of any library."""
    is_sqlalchemy = any(kind.__module__.startswith("sqlalchemy") for kind in type(conn).__mro__)
    await conn.execute(text(sql) if is_sqlalchemy else sql)


class Effects(Projection):
    """Notes each event in a table of its version, without a key, so that nothing hides what came twice."""

    name = "effects"

    def __init__(self, version: int, before: Callable[[StoredEvent], None] = lambda _: None) -> None:
        self.version = version
        self.before = before
        self.switching: Callable[[Any], Any] = lambda _: None

    async def handle(self, conn: Any, events: Sequence[StoredEvent]) -> None:
        for event in events:
            self.before(event)
            await run_on(conn, f"INSERT INTO effects_{self.version} (data) VALUES ({event.data})")

    async def switch(self, conn: Any) -> None:
        for sql in SWITCH:
            await run_on(conn, sql.format(self.version))
        self.switching(conn)

    async def reset(self, conn: Any) -> None:
        await run_on(conn, f"TRUNCATE effects_{self.version}")
        self.switching(conn)


class Served:
    """What readers see."""

    def __init__(self, database: Database, admin: psycopg.Connection) -> None:
        self.database = database
        self._admin = admin
        admin.execute("CREATE TABLE switches (version int)")
        for version in (1, 2, 3):
            admin.execute(f"CREATE TABLE effects_{version} (id bigserial, data int)".encode())
        admin.execute("CREATE VIEW served AS SELECT * FROM effects_1")

    def _column(self, sql: str) -> list[int]:
        return [number for (number,) in self._admin.execute(sql.encode()).fetchall()]

    def data(self) -> list[int]:
        """What was applied, in order."""
        return self._column("SELECT data FROM served ORDER BY id")

    def of(self, version: int) -> list[int]:
        """What a version has applied, in order."""
        return self._column(f"SELECT data FROM effects_{version} ORDER BY id")

    def switches(self) -> list[int]:
        """The versions that have taken over."""
        return self._column("SELECT version FROM switches")

    @contextmanager
    def watched(self) -> Iterator[None]:
        """What is served never goes back, and has nothing twice."""
        is_done = threading.Event()
        wrong: list[object] = []

        def watch() -> None:
            last = 0
            with self.database.connect() as connection:
                while not is_done.is_set():
                    row = connection.execute("SELECT count(*), count(DISTINCT data) FROM served").fetchone()
                    assert row is not None
                    if row[0] != row[1] or row[0] < last:
                        wrong.append((last, row))
                    last = row[0]
                    time.sleep(0.002)

        watching = threading.Thread(target=watch)
        watching.start()
        try:
            yield
        finally:
            is_done.set()
            watching.join()
        assert wrong == []


@pytest.fixture
def served(database: Database) -> Iterator[Served]:
    """The tables of three versions, of which the first is served."""
    with database.connect() as admin:
        yield Served(database, admin)


@pytest.fixture
def connect(database: Database) -> Callable[[], Any]:
    """New connections."""
    return lambda: psycopg.AsyncConnection.connect(database.dsn)


async def fill(store: AsyncEventStore, count: int, start: int = 0) -> None:
    """Store numbered events of four aggregates."""
    await store.store_batch(Event("T", f"a{i % 4}", i) for i in range(start, start + count))


@asynccontextmanager
async def filling(store: AsyncEventStore, served: Served, version: int = 2) -> AsyncIterator[list[int]]:
    """Events are stored while the block runs, as fast as a version applies them; the list has their number."""
    total = [0]
    is_done = False

    async def keep() -> None:
        while not is_done:
            if total[0] < len(await asyncio.to_thread(served.of, version)) + 200:
                await fill(store, 10, total[0])
                total[0] += 10
            await asyncio.sleep(0.02)

    task = asyncio.create_task(keep())
    try:
        yield total
    finally:
        is_done = True
        await task


async def seen(condition: Callable[[], object], what: str) -> None:
    """As `eventually`, in a thread: the loop that it would block may have locked what it reads."""
    await eventually(lambda: asyncio.to_thread(condition), what)


async def reached(store: AsyncEventStore, version: int) -> None:
    """Wait until the version that is served, once there is one, has come so far."""

    async def is_there() -> bool:
        with suppress(OptionsError):  # it is not made yet
            await store.wait_for(version, durable="effects", timeout=TIMEOUT_S)
            return True
        return False

    await eventually(is_there, "it is served")


async def retired(task: asyncio.Task[None]) -> SubscriptionRetiredError:
    """The way in which a version ends that was replaced."""
    with pytest.raises(SubscriptionRetiredError) as caught:
        await asyncio.wait_for(asyncio.shield(task), TIMEOUT_S)
    return caught.value


# ------------------------------------------------------------------------------------------------------ switching


@pytest.mark.parametrize("kind", ["psycopg", "psycopg_pool", "asyncpg", "asyncpg pool", "engine", "session"])
async def test_with_every_library(our_store: AsyncEventStore, database: Database, served: Served, kind: str) -> None:
    """A new version is built beside the one that is served, and replaces it while events are stored and read."""
    async with connecting(kind, database) as connect, filling(our_store, served) as total:
        with served.watched():
            async with running(our_store.run(Effects(1), connect=connect)) as old:
                await seen(lambda: len(served.data()) > 100, "the old one serves")
                async with running(our_store.run(Effects(2), connect=connect, max_count=50)):
                    error = await retired(old)
                    assert (error.name, error.replaced_by) == ("effects", "effects@2")
                    assert served.switches() == [2]
                    before = len(served.of(1))
                    at = await our_store.latest_version()
                    count = int(str(database.value("SELECT count(*) FROM events WHERE version <= %s", at)))
                    await reached(our_store, at)
                    assert len(served.data()) >= count
                    assert len(served.of(1)) == before, "it writes no more"
                    last = total[0]
                    await seen(lambda: len(served.data()) > last, "the new one goes on")
    states = {state.name: state for state in await our_store.durable_subscriptions()}
    assert (states["effects"].replaced_by, states["effects"].lag, states["effects"].is_paused) == ("effects@2", 0, True)
    assert states["effects@2"].replaced_by is None
    data = served.data()
    assert data == list(range(len(data)))


@pytest.mark.parametrize(("before", "after"), [(1, 4), (4, 1), (4, 4)])
async def test_partitions(
    our_store: AsyncEventStore, served: Served, connect: Callable[[], Any], before: int, after: int
) -> None:
    """Each partition of the new version has reached all of the old one."""

    def new() -> Any:
        return running(our_store.run(Effects(2), connect=connect, partitions=after))

    with served.watched():
        async with (
            filling(our_store, served),
            running(our_store.run(Effects(1), connect=connect, partitions=before)) as old,
        ):
            await seen(lambda: len(served.data()) > 100, "the old one serves")
            async with new(), new():  # which share it, and each of which wants to switch
                await retired(old)
                count = len(served.data())
                await seen(lambda: len(served.data()) > count + 100, "the new one goes on")
    assert served.switches() == [2]
    data = sorted(served.data())
    assert len(data) == len(set(data))


async def test_a_lag_is_told_while_it_is_built(
    our_store: AsyncEventStore, served: Served, connect: Callable[[], Any]
) -> None:
    """It is behind what is served, so readers do not see it."""
    await fill(our_store, 100)
    is_held = True

    def before(event: StoredEvent) -> None:
        if event.data == 50 and is_held:
            raise psycopg.errors.SerializationFailure("40001")

    async with running(our_store.run(Effects(1), connect=connect)):
        await reached(our_store, 100)
        async with running(our_store.run(Effects(2, before), connect=connect, max_count=10)):

            async def is_half() -> bool:
                states = {state.name: state for state in await our_store.durable_subscriptions()}
                return (
                    "effects@2" in states
                    and 50 <= states["effects@2"].lag <= 60
                    and states["effects@2"].lag_seconds > 0
                )

            await eventually(is_half, "half of it is built")
            await nothing_arrives()
            assert served.switches() == []
            is_held = False
            await seen(lambda: served.switches() == [2], "it takes over")
    assert served.data() == list(range(100))


async def test_a_switch_that_fails(our_store: AsyncEventStore, served: Served, connect: Callable[[], Any]) -> None:
    """Nothing is changed, the old version goes on, and the switch is tried again."""
    await fill(our_store, 10)
    new = Effects(2)
    failures: list[str] = []
    told: list[BaseException] = []
    is_wrong = True

    def fail(_: Any) -> None:
        if is_wrong:
            failures.append("no view")
            raise ValueError("no view")

    new.switching = fail
    our_store._error_handler = told.append  # type: ignore[assignment]
    async with running(our_store.run(Effects(1), connect=connect)) as old:
        await reached(our_store, 10)
        async with running(our_store.run(new, connect=connect)):
            await seen(lambda: failures, "it fails")
            await fill(our_store, 10, 10)
            await reached(our_store, 20)
            await seen(lambda: served.of(1) == list(range(20)), "the old one goes on")
            await seen(lambda: len(failures) > 1, "it fails again")
            assert not old.done()
            is_wrong = False
            await retired(old)
    assert served.switches() == [2]
    assert served.data() == list(range(20))
    assert [str(error) for error in told if isinstance(error, ValueError)] == failures


async def test_parked_events(our_store: AsyncEventStore, served: Served, connect: Callable[[], Any]) -> None:
    """The table would lack them, so there is no switch before they are replayed, or somebody says that it may be."""
    await fill(our_store, 10)
    told: list[BaseException] = []
    our_store._error_handler = told.append  # type: ignore[assignment]

    def before(event: StoredEvent) -> None:
        if event.data == 5:
            raise ValueError("five")

    policy = Park(after=1)

    def is_told() -> bool:
        return any(type(each) is EventStoreError and "2 parked events" in str(each) for each in told)

    async with running(our_store.run(Effects(1, before), connect=connect, on_error=policy)) as old:
        await reached(our_store, 10)
        async with running(our_store.run(Effects(2, before), connect=connect, on_error=policy)):
            await eventually(is_told, "it is told")
            await nothing_arrives()
            assert served.switches() == []
            assert not old.done()
        async with running(our_store.run(Effects(2, before), connect=connect, on_error=policy, allow_parked=True)):
            await retired(old)
    assert served.data() == [0, 1, 2, 3, 4, 6, 7, 8]  # 9 is of the same aggregate as 5
    states = {state.name: state for state in await our_store.durable_subscriptions()}
    assert (states["effects"].parked, states["effects@2"].parked) == (0, 2), "they are still there, of the new one"
    async with running(our_store.run(Effects(3), connect=connect)):
        await seen(lambda: served.switches() == [2, 3], "a version without any takes over")


async def test_parked_events_are_replayed(
    our_store: AsyncEventStore, served: Served, connect: Callable[[], Any]
) -> None:
    """Then nothing is in the way."""
    await fill(our_store, 10)

    def before(event: StoredEvent) -> None:
        if event.data == 5:
            raise ValueError("five")

    async with running(our_store.run(Effects(1), connect=connect)) as old:
        await reached(our_store, 10)
        async with running(our_store.run(Effects(2, before), connect=connect, on_error=Park(after=1))):

            async def are_parked() -> bool:
                return sum(state.parked for state in await our_store.durable_subscriptions()) == 2

            await eventually(are_parked, "they are parked")
            await our_store.wait_for(10, durable="effects@2", timeout=TIMEOUT_S)
        async with our_store.durable("effects@2") as durable, await connect() as conn:

            async def handle(event: StoredEvent) -> None:
                async with conn.transaction():
                    await Effects(2).handle(conn, [event])
                    await durable.ack_in(conn, event)

            assert await durable.replay_parked(handle) == 2
        async with running(our_store.run(Effects(2), connect=connect)):
            await retired(old)
    assert sorted(served.data()) == list(range(10))


async def test_no_version_was_served(our_store: AsyncEventStore, served: Served, connect: Callable[[], Any]) -> None:
    """The first one that runs takes over at once, and retires those before it, which have never run."""
    await fill(our_store, 10)
    async with running(our_store.run(Effects(2), connect=connect)):
        await seen(lambda: served.switches() == [2], "it takes over")
        await reached(our_store, 10)
        for partitions in (1, 8):
            with pytest.raises(SubscriptionRetiredError, match="'effects' was replaced by 'effects@2'"):
                await our_store.run(Effects(1), connect=connect, partitions=partitions)
    assert served.data() == list(range(10))
    assert served.of(1) == []
    async with running(our_store.run(Effects(2), connect=connect)):
        await fill(our_store, 1, 10)
        await reached(our_store, 11)
    assert served.switches() == [2], "once"


async def test_a_version_after_the_next(our_store: AsyncEventStore, served: Served, connect: Callable[[], Any]) -> None:
    """It retires the one that is served and the one that was being built."""
    await fill(our_store, 10)

    def never(event: StoredEvent) -> None:
        if event.data == 5:
            raise psycopg.errors.SerializationFailure("40001")

    async with running(our_store.run(Effects(1), connect=connect)) as first:
        await reached(our_store, 10)
        async with (
            running(our_store.run(Effects(2, never), connect=connect, max_count=2)) as second,
            running(our_store.run(Effects(3), connect=connect)),
        ):
            assert (await retired(first)).replaced_by == "effects@3"
            assert (await retired(second)).replaced_by == "effects@3"
            for version in (1, 2):
                with pytest.raises(SubscriptionRetiredError):
                    await our_store.run(Effects(version), connect=connect)
    assert served.data() == list(range(10))
    assert served.switches() == [3]


async def test_a_version_that_begins_while_a_newer_one_takes_over(
    our_store: AsyncEventStore, database: Database, served: Served, connect: Callable[[], Any]
) -> None:
    """Its rows were made too late to be seen, so it retires itself."""
    await fill(our_store, 10)
    async with running(our_store.run(Effects(3), connect=connect)):
        await seen(lambda: served.switches() == [3], "it takes over")
    # As if it had looked just before: version 1 is served, and far ahead.
    with database.connect() as admin:
        admin.execute("UPDATE events_subscriptions SET replaced_by = NULL, position = 1000 WHERE name = 'effects'")
        late = asyncio.create_task(our_store.run(Effects(2), connect=connect))
        sql = "SELECT FROM events_subscriptions WHERE name = 'effects@2'"
        await seen(lambda: admin.execute(sql).fetchone() is not None, "it begins")
        admin.execute("UPDATE events_subscriptions SET replaced_by = 'effects@3' WHERE name = 'effects'")
    assert (await retired(late)).replaced_by == "effects@3"


async def test_consumers_without_a_projection(
    our_store: AsyncEventStore, served: Served, connect: Callable[[], Any]
) -> None:
    """They learn it from whatever they do next, and change nothing."""
    await fill(our_store, 3)
    async with our_store.durable("effects") as durable, await connect() as conn:
        event = await anext(durable)
        async with running(our_store.run(Effects(2), connect=connect)):
            await seen(lambda: served.switches() == [2], "it takes over")
        with pytest.raises(SubscriptionRetiredError):
            await durable.ack_in(conn, event)
        await conn.rollback()
        for act in (durable.ack(event), durable.park(event, None)):
            with pytest.raises(SubscriptionFencedError):
                await act
        with pytest.raises(SubscriptionRetiredError):
            await anext(durable)
    with pytest.raises(SubscriptionRetiredError):
        async with our_store.durable("effects"):
            pass


async def test_a_paused_version_does_not_take_over(
    our_store: AsyncEventStore, served: Served, connect: Callable[[], Any]
) -> None:
    """So an operator can have it built, and switch later."""
    await fill(our_store, 10)
    async with our_store.durable("effects@2"):
        pass
    await our_store.rewind_durable("effects@2", 5)
    has_begun, is_held = asyncio.Event(), True

    def before(_: StoredEvent) -> None:
        has_begun.set()
        if is_held:
            raise psycopg.errors.SerializationFailure("40001")

    async with running(our_store.run(Effects(1), connect=connect)):
        await reached(our_store, 10)
        async with running(our_store.run(Effects(2, before), connect=connect, partitions=1)):
            await asyncio.wait_for(has_begun.wait(), TIMEOUT_S)
            await our_store.pause_durable("effects@2")
            is_held = False
            await our_store.rewind_durable("effects@2", 10)
            await nothing_arrives()
            await nothing_arrives()
            assert served.switches() == []
            await our_store.resume_durable("effects@2")
            await seen(lambda: served.switches() == [2], "it takes over")


async def test_what_was_replaced_stays_as_it_is(
    our_store: AsyncEventStore, served: Served, connect: Callable[[], Any]
) -> None:
    """Until the version that is served is deleted; then all begins anew."""
    await fill(our_store, 10)
    async with running(our_store.run(Effects(2), connect=connect)) as new:
        await seen(lambda: served.switches() == [2], "it takes over")
        for change in (
            our_store.rewind_durable("effects", 0),
            our_store.pause_durable("effects"),
            our_store.resume_durable("effects"),
            our_store.repartition_durable("effects", 2),
            our_store.delete_durable("effects"),
        ):
            with pytest.raises(OptionsError, match="replaced by 'effects@2'"):
                await change
        with pytest.raises(SubscriptionRetiredError):
            await our_store.rebuild(Effects(1), connect=connect)
        await our_store.delete_durable("effects@2")
        assert await our_store.durable_subscriptions() == []
        with pytest.raises(SubscriptionFencedError, match="deleted"):
            await asyncio.wait_for(new, TIMEOUT_S)
    async with running(our_store.run(Effects(1), connect=connect)):
        await reached(our_store, 10)
    assert served.of(1) == list(range(10))


async def test_a_rebuild_is_given_up(our_store: AsyncEventStore, served: Served, connect: Callable[[], Any]) -> None:
    """The version that is served has noticed nothing of it."""
    await fill(our_store, 10)

    def never(event: StoredEvent) -> None:
        if event.data == 5:
            raise psycopg.errors.SerializationFailure("40001")

    async with running(our_store.run(Effects(1), connect=connect)) as old:
        await reached(our_store, 10)
        async with running(our_store.run(Effects(2, never), connect=connect, max_count=2)) as new:
            await seen(lambda: len(served.of(2)) >= 4, "it is being built")
            await our_store.delete_durable("effects@2")
            with pytest.raises(SubscriptionFencedError, match="deleted"):
                await asyncio.wait_for(new, TIMEOUT_S)
        assert not old.done()
    assert [state.name for state in await our_store.durable_subscriptions()] == ["effects"]


async def test_another_table_on_the_connection(our_store: AsyncEventStore, database: Database, served: Served) -> None:
    """Then nothing is retired there or here."""
    with database.connect() as admin:
        async with our_store.durable("effects@2"):
            admin.execute("CREATE SCHEMA other")
            admin.execute("CREATE TABLE other.events_subscriptions (LIKE public.events_subscriptions INCLUDING ALL)")
    told: list[BaseException] = []
    our_store._error_handler = told.append  # type: ignore[assignment]

    def connect() -> Any:
        return psycopg.AsyncConnection.connect(database.dsn, options="-c search_path=other,public")

    async with running(our_store.run(Effects(2), connect=connect)):
        await seen(lambda: any("another one on this connection" in str(each) for each in told), "it is told")
    assert served.switches() == []
    with pytest.raises(EventStoreError, match="another one on this connection"):
        await our_store.rebuild(Effects(2), connect=connect)


async def test_tables_of_an_earlier_release(
    our_store: AsyncEventStore, database: Database, served: Served, connect: Callable[[], Any]
) -> None:
    """They get the column with the first use, and what they have goes on; the old consumer, too, until the switch."""
    await fill(our_store, 10)
    async with running(our_store.run(Effects(1), connect=connect)):
        await reached(our_store, 10)
    with database.connect() as admin:
        admin.execute("ALTER TABLE events_subscriptions DROP COLUMN replaced_by")
        admin.execute("DELETE FROM events_migrations WHERE name = 'replaced'")
    await fill(our_store, 10, 10)
    async with AsyncEventStore(database.dsn) as later, running(later.run(Effects(1), connect=connect)) as old:
        await reached(later, 20)
        async with running(later.run(Effects(2), connect=connect)):
            await retired(old)
    assert served.of(1) == served.data() == list(range(20))
    # The claim of an earlier release, which looks at nothing else.
    free = "SELECT count(*) FROM events_subscriptions WHERE name = 'effects' AND NOT is_paused"
    assert database.value(free) == 0


async def test_switches_that_roll_back_or_commit(
    our_store: AsyncEventStore, database: Database, served: Served
) -> None:
    """A method that ends the transaction itself is wrong, but it is found out whether the switch has happened."""
    ends = ["ROLLBACK", "COMMIT"]

    class Ending(Effects):
        async def switch(self, conn: Any) -> None:
            await super().switch(conn)
            if ends:
                await conn.execute(ends.pop(0))

    await fill(our_store, 10)
    async with running(our_store.run(Ending(2), connect=lambda: asyncpg.connect(database.url))):
        await seen(lambda: served.switches() == [2], "it takes over")
        await reached(our_store, 10)
        await nothing_arrives()
    assert (ends, served.switches()) == ([], [2])
    assert served.data() == list(range(10))


async def test_wrong_versions(our_store: AsyncEventStore) -> None:
    for wrong in (0, -1, True, "2", None, 1.5):
        projection = Effects(1)
        projection.version = wrong  # type: ignore[assignment]
        with pytest.raises(OptionsError, match="version"):
            await our_store.run(projection, connect=None)


# ------------------------------------------------------------------------------------------------------- in place


@pytest.mark.parametrize("partitions", [1, 4])
async def test_a_rebuild_in_place(
    our_store: AsyncEventStore, served: Served, connect: Callable[[], Any], partitions: int
) -> None:
    """The table is emptied and filled again by the consumer that runs."""
    projection = Effects(1)
    with pytest.raises(OptionsError, match="no durable subscription"):
        await our_store.rebuild(projection, connect=connect)
    async with (
        filling(our_store, served, 1) as total,
        running(our_store.run(projection, connect=connect, partitions=partitions)) as task,
    ):
        for _ in range(3):
            count = total[0]
            await seen(lambda count=count: len(served.data()) > count, "it is filled")  # type: ignore[misc]
            await our_store.rebuild(projection, connect=connect)

        def fail(_: Any) -> None:
            raise ValueError("no")

        count = total[0]
        await seen(lambda: len(served.data()) > count, "it is filled")
        projection.switching = fail
        with pytest.raises(ValueError, match="no"):
            await our_store.rebuild(projection, connect=connect)
        assert len(served.data()) > count, "nothing was emptied"
        count = total[0]
        await seen(lambda: len(served.data()) > count, "it goes on")
        assert not task.done()
    data = sorted(served.data())
    assert data == list(range(len(data)))


async def test_a_rebuild_needs_a_reset(our_store: AsyncEventStore) -> None:
    @our_store.projection("counts")
    async def counts(conn: Any, events: Sequence[StoredEvent]) -> None:
        del conn, events

    with pytest.raises(OptionsError, match="no reset"):
        await our_store.rebuild(counts, connect=None)


async def test_a_rebuild_forgets_parked_events(
    our_store: AsyncEventStore, served: Served, connect: Callable[[], Any]
) -> None:
    """They come again with all the others."""
    await fill(our_store, 10)

    def before(event: StoredEvent) -> None:
        if event.data == 5 and is_wrong:
            raise ValueError("five")

    is_wrong = True
    async with running(our_store.run(Effects(1, before), connect=connect, on_error=Park(after=1))):
        await reached(our_store, 10)
        assert len(served.data()) == 8
        is_wrong = False
        await our_store.rebuild(Effects(1), connect=connect)
        await reached(our_store, 10)
    assert served.data() == list(range(10))


# ------------------------------------------------------------------------------------------------------ processes


class BlockingEffects(Projection):
    """The same for threads; its switch takes a while."""

    name = "effects"

    def __init__(self, version: int) -> None:
        self.version = version

    def handle(self, conn: Any, events: Sequence[StoredEvent]) -> None:
        for event in events:
            conn.execute(f"INSERT INTO effects_{self.version} (data) VALUES ({event.data})")

    def switch(self, conn: Any) -> None:
        for sql in SWITCH:
            conn.execute(sql.format(self.version))
            conn.execute("SELECT pg_sleep(0.2)")


def project(dsn: str, version: int, partitions: int) -> None:
    """Run a version until it is retired."""
    with EventStore(dsn) as store, suppress(SubscriptionRetiredError):
        store.run(
            BlockingEffects(version),
            connect=lambda: psycopg.connect(dsn, application_name=f"version {version}"),
            partitions=partitions,
            lease=1.0,
            max_count=20,
            max_wait=0.01,
        )
    os._exit(RETIRED)


SWITCHING = """
    SELECT FROM pg_stat_activity WHERE query LIKE '%pg_sleep%' AND application_name = 'version 2'
    AND datname = current_database()
"""


class Processes:
    """Versions of the projection, in processes."""

    def __init__(self, dsn: str, partitions: int) -> None:
        self._dsn = dsn
        self._partitions = partitions
        self._context = multiprocessing.get_context("spawn")
        self._all: list[Any] = []

    def start(self, version: int) -> Any:
        process = self._context.Process(target=project, args=(self._dsn, version, self._partitions), daemon=True)
        process.start()
        self._all.append(process)
        return process

    def end(self) -> None:
        for process in self._all:
            process.kill()
            process.join()


@pytest.fixture
def processes(database: Database) -> Iterator[Callable[[int], Processes]]:
    """Makes processes for a number of partitions, which end with the test."""
    made: list[Processes] = []

    def make(partitions: int) -> Processes:
        made.append(Processes(database.dsn, partitions))
        return made[-1]

    yield make
    for each in made:
        each.end()


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 2 * TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


@contextmanager
def stored(store: EventStore, served: Served) -> Iterator[list[int]]:
    """Events are stored while the block runs; the list has their number.

    They are a few more than the new version has applied, so that it catches up on a slow machine, too.
    """
    total = [0]
    is_done = threading.Event()

    def write() -> None:
        while not is_done.is_set():
            if total[0] < max(200, len(served.of(2)) + 32):
                store.store_batch(Event("T", f"a{i % 16}", i) for i in range(total[0], total[0] + 16))
                total[0] += 16
            time.sleep(0.02)

    writing = threading.Thread(target=write)
    writing.start()
    try:
        yield total
    finally:
        is_done.set()
        writing.join()


@pytest.mark.parametrize(("seed", "partitions"), [(1, 1), (2, 4), (3, 4)])
def test_processes_are_killed_at_any_moment(
    database: Database, served: Served, processes: Callable[[int], Processes], seed: int, partitions: int
) -> None:
    """Two processes of each version, and one of them, or its session, dies at random, until the switch has happened."""
    chance = random.Random(seed)  # noqa: S311 - a schedule is no secret
    started = processes(partitions)
    with (
        EventStore(database.dsn) as store,
        stored(store, served) as total,
        served.watched(),
        database.connect() as admin,
    ):
        old = [started.start(1), started.start(1)]
        until(lambda: len(served.data()) > 100, "the old one serves")
        new = [started.start(2), started.start(2)]

        def is_switching() -> bool:

            return admin.execute(SWITCHING).fetchone() is not None

        # Within the transaction of the switch: of four, each dies at another statement.
        for _ in range(4):
            until(lambda: is_switching() or bool(served.switches()), "one begins the switch")
            time.sleep(chance.random() * 0.5)
            place = chance.randrange(2)
            if chance.random() < 0.5:
                new[place].kill()
                new[place].join()
                new[place] = started.start(2)
            else:
                admin.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'version 2'"
                    " AND datname = current_database()"
                )
            if chance.random() < 0.5:
                place = chance.randrange(2)
                old[place].kill()
                old[place].join()
                old[place] = started.start(1)
            if served.switches():
                break
        until(lambda: served.switches() == [2], "the new one takes over")
        for process in old:
            process.join(TIMEOUT_S)
            assert process.exitcode == RETIRED
        count = len(served.of(1))
        for place in range(2):  # after the switch, too
            new[place].kill()
            new[place].join()
            new[place] = started.start(2)
        late = started.start(1)
        last = total[0]
        until(lambda: len(served.data()) > last + 100, "the new one goes on")
        late.join(TIMEOUT_S)
        assert late.exitcode == RETIRED
        assert len(served.of(1)) == count
    until(lambda: len(served.data()) == total[0], "all are applied")
    applied = served.data()
    assert sorted(applied) == list(range(total[0]))
    for aggregate in range(16):
        of_it = [data for data in applied if data % 16 == aggregate]
        assert of_it == sorted(of_it)


def test_an_old_process_was_frozen(database: Database, served: Served, processes: Callable[[int], Processes]) -> None:
    """When it goes on, it finds itself retired, and writes nothing."""
    started = processes(1)
    with EventStore(database.dsn) as store, stored(store, served) as total, served.watched():
        old = started.start(1)
        until(lambda: len(served.data()) > 50, "the old one serves")
        # Not in a transaction, which would hold its position until the server ended it. A busy machine may take a while
        # for what it has sent last.
        sql = (
            "SELECT FROM pg_stat_activity WHERE application_name = 'version 1' AND state <> 'idle'"
            " AND datname = current_database()"
        )
        with database.connect() as admin:

            def is_idle() -> bool:
                time.sleep(0.05)
                return admin.execute(sql).fetchone() is None

            for _ in range(1000):
                os.kill(old.pid, signal.SIGSTOP)
                if is_idle() and all(is_idle() for _ in range(20)):
                    break
                os.kill(old.pid, signal.SIGCONT)
                time.sleep(0.01)
        started.start(2)
        until(lambda: served.switches() == [2], "the new one takes over")
        count = len(served.of(1))
        os.kill(old.pid, signal.SIGCONT)
        old.join(TIMEOUT_S)
        assert old.exitcode == RETIRED
        assert len(served.of(1)) == count
        last = total[0]
        until(lambda: len(served.data()) > last, "the new one goes on")


def test_a_process_was_frozen_while_it_switched(
    database: Database, served: Served, processes: Callable[[int], Processes]
) -> None:
    """The server ends its transaction, and the old version goes on."""
    started = processes(1)
    with EventStore(database.dsn) as store, stored(store, served), served.watched(), database.connect() as admin:
        old = started.start(1)
        until(lambda: len(served.data()) > 50, "the old one serves")
        new = started.start(2)

        until(lambda: admin.execute(SWITCHING).fetchone() is not None, "it begins the switch")
        count = len(served.of(1))  # which waits for the switch
        os.kill(new.pid, signal.SIGSTOP)
        if not served.switches():
            until(lambda: len(served.of(1)) > count or bool(served.switches()), "the old one goes on")
            os.kill(new.pid, signal.SIGCONT)
        else:
            os.kill(new.pid, signal.SIGCONT)
        until(lambda: served.switches() == [2], "the new one takes over")
        old.join(TIMEOUT_S)
        assert old.exitcode == RETIRED
