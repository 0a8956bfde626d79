"""Projections: each event exactly once, whatever conflicts, fails, dies or is cut off."""

from __future__ import annotations

import asyncio
import multiprocessing
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import psycopg
import pytest
from psycopg_pool import AsyncConnectionPool
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from socketio_postgres import (
    AsyncEventStore,
    Event,
    EventStore,
    OptionsError,
    Park,
    Projection,
    Skip,
    StoredEvent,
)
from tests.fixtures.database import Database
from tests.fixtures.waiting import TIMEOUT_S, eventually


async def fill(store: AsyncEventStore, count: int, start: int = 0) -> None:
    """Store numbered events of four aggregates."""
    await store.store_batch(Event("T", f"a{i % 4}", i) for i in range(start, start + count))


@pytest.fixture
def effects(database: Database) -> Callable[[], list[int]]:
    """What was applied, in order; a table without a key, so that nothing hides what came twice."""
    with database.connect() as admin:
        admin.execute("CREATE TABLE effects (id bigserial, data int)")

    def look() -> list[int]:
        with database.connect() as admin:
            return [data for (data,) in admin.execute("SELECT data FROM effects ORDER BY id").fetchall()]

    return look


INSERT = "INSERT INTO effects (data) VALUES ({})"


class Effects(Projection):
    """Notes each event."""

    name = "effects"

    def __init__(self, before: Callable[[StoredEvent], None] = lambda _: None) -> None:
        self.before = before
        self.batches: list[int] = []

    async def handle(self, conn: Any, events: Sequence[StoredEvent]) -> None:
        self.batches.append(len(events))
        for event in events:
            statement = INSERT.format(event.data)
            await conn.execute(
                text(statement)
                if isinstance(conn, (AsyncSession,)) or "sqlalchemy" in type(conn).__module__
                else statement
            )
            self.before(event)


@asynccontextmanager
async def running(work: Awaitable[None]) -> AsyncIterator[asyncio.Task[None]]:
    """Something that runs for ever, while the block does."""
    task = asyncio.ensure_future(work)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


Connect = Callable[[Database], Any]


@asynccontextmanager
async def connecting(kind: str, database: Database) -> AsyncIterator[Any]:
    """Each of what `connect` may be."""
    engine = create_async_engine(database.url.replace("postgresql://", "postgresql+psycopg://"))
    if kind == "psycopg":
        yield lambda: psycopg.AsyncConnection.connect(database.dsn)
    elif kind == "psycopg_pool":
        async with AsyncConnectionPool(database.dsn, open=False) as pool:
            yield pool
    elif kind == "asyncpg":
        yield lambda: asyncpg.connect(database.url)
    elif kind == "asyncpg pool":
        async with asyncpg.create_pool(database.url, min_size=1) as pool:
            yield pool
    elif kind == "engine":
        yield engine
    else:
        yield async_sessionmaker(engine)
    await engine.dispose()


@pytest.mark.parametrize("kind", ["psycopg", "psycopg_pool", "asyncpg", "asyncpg pool", "engine", "session"])
async def test_with_every_library(
    our_store: AsyncEventStore, database: Database, effects: Callable[[], list[int]], kind: str
) -> None:
    await fill(our_store, 60)
    projection = Effects()
    async with connecting(kind, database) as connect:
        # Only full batches are applied, however long it takes to read them.
        async with running(our_store.run(projection, connect=connect, max_count=20, max_wait=10 * TIMEOUT_S)):
            await eventually(lambda: len(effects()) == 60, "all are applied")
            await fill(our_store, 20, 60)
            await our_store.wait_for(80, durable="effects", timeout=TIMEOUT_S)
        assert effects() == list(range(80))
        assert projection.batches[:3] == [20, 20, 20], "one transaction a batch"
        (state,) = await our_store.durable_subscriptions()
        assert (state.lag, state.lag_seconds) == (0, 0)
        await fill(our_store, 1, 80)
        assert (await our_store.durable_subscriptions())[0].lag_seconds > 0


CONFLICTS = """
CREATE SEQUENCE attempts;
CREATE FUNCTION conflict() RETURNS trigger LANGUAGE plpgsql AS
'BEGIN IF nextval(''attempts'') <= 3 THEN RAISE serialization_failure; END IF; RETURN NULL; END';
CREATE CONSTRAINT TRIGGER conflict AFTER INSERT ON effects DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION conflict();
"""
"""Three transactions fail while they commit, after everything in them has succeeded."""


@pytest.mark.parametrize("kind", ["psycopg", "psycopg_pool", "asyncpg", "asyncpg pool", "engine", "session"])
async def test_a_conflict_at_commit(
    our_store: AsyncEventStore, database: Database, effects: Callable[[], list[int]], kind: str
) -> None:
    """D3: the position was moved and is where it was; nobody's policy is asked."""
    with database.connect() as admin:
        admin.execute(CONFLICTS)
    await fill(our_store, 6)
    async with (
        connecting(kind, database) as connect,
        running(our_store.run(Effects(), connect=connect, on_error=Skip())),
    ):
        await eventually(lambda: len(effects()) >= 6, "all are applied")
        await our_store.wait_for(6, durable="effects", timeout=TIMEOUT_S)
    assert effects() == list(range(6))
    assert database.value("SELECT last_value FROM attempts") > 3  # type: ignore[operator]


async def test_a_function(our_store: AsyncEventStore, database: Database, effects: Callable[[], list[int]]) -> None:
    @our_store.projection("counts")
    async def counts(conn: Any, events: Sequence[StoredEvent]) -> None:
        await conn.execute(INSERT.format(len(events)))

    await fill(our_store, 5)
    connect = lambda: psycopg.AsyncConnection.connect(database.dsn)  # noqa: E731
    async with running(our_store.run(counts, connect=connect, max_count=5, max_wait=10 * TIMEOUT_S)):
        await eventually(lambda: effects() == [5], "it is applied")
    for wrong in (object(), Projection()):
        with pytest.raises(OptionsError, match="projection"):
            await our_store.run(wrong, connect=None)  # type: ignore[arg-type]
    with pytest.raises(OptionsError, match="connect"):
        await asyncio.wait_for(our_store.run(Effects(), connect=object()), TIMEOUT_S)


@pytest.mark.parametrize("partitions", [1, 4])
async def test_failures(
    our_store: AsyncEventStore, database: Database, effects: Callable[[], list[int]], partitions: int
) -> None:
    """A conflict is tried again, and a failure costs only its own event, whose aggregate keeps its order."""
    await fill(our_store, 40)
    conflicts: list[int] = []

    def before(event: StoredEvent) -> None:
        if event.data == 7 and len(conflicts) < 3:
            conflicts.append(7)
            raise psycopg.errors.SerializationFailure("40001")
        if event.data == 10:
            raise ValueError("ten")

    connect = lambda: psycopg.AsyncConnection.connect(database.dsn)  # noqa: E731
    policy = Park(after=2, delay=0.001)
    work = our_store.run(Effects(before), connect=connect, on_error=policy, partitions=partitions, max_count=15)
    expected = [data for data in range(40) if data < 10 or data % 4 != 2]
    async with running(work):
        await eventually(lambda: len(effects()) >= len(expected), "the others are applied")
        await our_store.wait_for(39, durable="effects", timeout=TIMEOUT_S)
    assert sorted(effects()) == expected
    for aggregate in range(4):
        of_it = [data for data in effects() if data % 4 == aggregate]
        assert of_it == sorted(of_it)
    async with our_store.durable("effects", partitions=partitions) as durable:
        parked = await durable.parked()
        assert [each.version for each in parked] == list(range(11, 41, 4))
        assert (parked[0].attempts, parked[0].last_error) == (2, "ValueError: ten")


async def test_stop_and_skip(our_store: AsyncEventStore, database: Database, effects: Callable[[], list[int]]) -> None:
    await fill(our_store, 5)

    def before(event: StoredEvent) -> None:
        if event.data == 2:
            raise ValueError("two")

    connect = lambda: psycopg.AsyncConnection.connect(database.dsn)  # noqa: E731
    with pytest.raises(ValueError, match="two"):
        await asyncio.wait_for(our_store.run(Effects(before), connect=connect), TIMEOUT_S)
    assert effects() == [0, 1]
    async with running(our_store.run(Effects(before), connect=connect, on_error=Skip())):
        await our_store.wait_for(5, durable="effects", timeout=TIMEOUT_S)
    assert effects() == [0, 1, 3, 4]


# ----------------------------------------------------------------------------------------------------- processes


class BlockingEffects(Projection):
    """The same for threads."""

    name = "effects"

    def handle(self, conn: Any, events: Sequence[StoredEvent]) -> None:
        for event in events:
            conn.execute(INSERT.format(event.data))
            time.sleep(0.001)


def project(dsn: str) -> None:
    """Run it for ever."""
    with EventStore(dsn) as store:
        store.run(
            BlockingEffects(),
            connect=lambda: psycopg.connect(dsn),
            partitions=8,
            lease=1.0,
            max_count=10,
            max_wait=0.01,
        )


def test_processes_are_killed_at_any_moment(database: Database, effects: Callable[[], list[int]]) -> None:
    """Each event is applied exactly once, each aggregate in order."""
    context = multiprocessing.get_context("spawn")

    def start() -> Any:
        process = context.Process(target=project, args=(database.dsn,), daemon=True)
        process.start()
        return process

    with EventStore(database.dsn) as store:
        processes = [start(), start()]
        stop = threading.Event()
        count = 0

        def write() -> None:
            nonlocal count
            while not stop.is_set():
                if count > len(effects()) + 1000:
                    time.sleep(0.02)  # on a slow machine it would never end otherwise
                    continue
                store.store_batch(Event("T", f"a{i % 16}", i) for i in range(count, count + 32))
                count += 32
                time.sleep(0.02)

        writing = threading.Thread(target=write)
        writing.start()
        try:
            deadline = time.monotonic() + TIMEOUT_S
            for number in range(4):
                before = len(effects())
                while len(effects()) < before + 200:
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
                processes[number % 2].kill()
                processes[number % 2].join()
                processes[number % 2] = start()
                deadline = time.monotonic() + TIMEOUT_S
        finally:
            stop.set()
            writing.join()
        deadline = time.monotonic() + 2 * TIMEOUT_S
        while len(effects()) < count:
            assert time.monotonic() < deadline, (len(effects()), count)
            time.sleep(0.1)
        for process in processes:
            process.kill()
            process.join()
    applied = effects()
    assert sorted(applied) == list(range(count))
    for aggregate in range(16):
        of_it = [data for data in applied if data % 16 == aggregate]
        assert of_it == sorted(of_it)


@pytest.mark.usefixtures("effects")
async def test_other_types_need_another_version(our_store: AsyncEventStore, database: Database) -> None:
    """What `run` says names what `run` has."""

    class OfOneType(Effects):
        types = ("T",)

    def connect() -> Any:
        return psycopg.AsyncConnection.connect(database.dsn)

    async with running(our_store.run(Effects(), connect=connect)):
        await eventually(our_store.durable_subscriptions, "it is made")
    with pytest.raises(OptionsError, match=r"invalid filters: .* give the projection a new version"):
        await our_store.run(OfOneType(), connect=connect)
