"""The event store beside `eventsourcing` in its lock mode (its correct one), on one server with fsync on."""

from __future__ import annotations

import asyncio
import concurrent.futures
import itertools
import json
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from pytest_benchmark.fixture import BenchmarkFixture

from benches.shared import ROUNDS, Run
from socketio_postgres import AsyncEventStore, Event, EventStore
from socketio_postgres.embedded import EmbeddedPostgres
from tests.fixtures.database import Database
from tests.fixtures.go_event_store import create_table

persistence = pytest.importorskip("eventsourcing.persistence")
postgres = pytest.importorskip("eventsourcing.postgres")

DATA = {"customer": "c-4711", "items": [{"sku": f"SKU-{i}", "count": i, "price": 12.5 * i} for i in range(5)]}
STATE = json.dumps(DATA).encode()
TASKS = 32

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A server that flushes every commit."""
    with EmbeddedPostgres(settings={"max_connections": "100"}) as server:
        yield server.dsn("postgres")


@pytest.fixture
def flushed(server: str) -> Iterator[Database]:
    """An empty database there."""
    name = f"bench_{next(_numbers)}"
    with psycopg.connect(server, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}".encode())
        yield Database(make_conninfo(server, dbname=name))
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@pytest.fixture
def size(benchmark: BenchmarkFixture) -> int:
    """Events per round."""
    return 20 if benchmark.disabled else 1000


@pytest.fixture
def rival(flushed: Database) -> Iterator[Any]:
    """The recorder of `eventsourcing`."""
    part = conninfo_to_dict(flushed.dsn)
    datastore = postgres.PostgresDatastore(
        dbname=part["dbname"],
        host=part["host"],
        port=str(part["port"]),
        user=part["user"],
        password="unused",  # noqa: S106 - the server asks for none
        pool_size=8,
    )
    recorder = postgres.PostgresApplicationRecorder(datastore, events_table_name="stored_events")
    recorder.create_table()
    yield recorder
    datastore.close()


def theirs(count: int) -> list[Any]:
    """Events of theirs, of as many aggregates."""
    return [persistence.StoredEvent(uuid.uuid4(), 1, "Order.Placed", STATE) for _ in range(count)]


def ours(count: int) -> list[Event]:
    """Events of ours, the same."""
    return [Event("OrderPlaced", str(uuid.uuid4()), DATA) for _ in range(count)]


def measure(benchmark: BenchmarkFixture, group: str, work: Callable[[], object]) -> None:
    benchmark.group = f"event store: {group}"
    benchmark.pedantic(work, rounds=ROUNDS, warmup_rounds=1)


def test_one_by_one(benchmark: BenchmarkFixture, flushed: Database, size: int) -> None:
    with EventStore(flushed.dsn) as store:

        def work() -> None:
            for event in ours(size):
                store.store(event)

        work()
        assert len(store.load()) == size
        measure(benchmark, "one by one", work)


def test_one_by_one_eventsourcing(benchmark: BenchmarkFixture, rival: Any, size: int) -> None:
    def work() -> None:
        for event in theirs(size):
            rival.insert_events([event])

    work()
    assert len(rival.select_notifications(1, size + 1)) == size
    measure(benchmark, "one by one", work)


def test_by_32_at_once_on_go_sync_kits_table(
    benchmark: BenchmarkFixture, flushed: Database, size: int, run: Run
) -> None:
    create_table(flushed)
    store = AsyncEventStore(flushed.dsn)

    async def task(events: list[Event]) -> None:
        for event in events:
            await store.store(event)

    async def work() -> None:
        await asyncio.gather(*(task(ours(size // TASKS + 1)) for _ in range(TASKS)))

    run(work())
    assert run(store.latest_version()) == TASKS * (size // TASKS + 1)
    measure(benchmark, "by 32 at once", lambda: run(work()))
    run(store.close())


def test_by_32_at_once_eventsourcing(benchmark: BenchmarkFixture, rival: Any, size: int) -> None:
    def task(events: list[Any]) -> None:
        for event in events:
            rival.insert_events([event])

    with concurrent.futures.ThreadPoolExecutor(TASKS) as pool:
        measure(
            benchmark,
            "by 32 at once",
            lambda: list(pool.map(task, [theirs(size // TASKS + 1) for _ in range(TASKS)])),
        )


def test_batch(benchmark: BenchmarkFixture, flushed: Database, size: int) -> None:
    with EventStore(flushed.dsn) as store:
        measure(benchmark, "a batch", lambda: store.store_batch(ours(size)))


def test_batch_eventsourcing(benchmark: BenchmarkFixture, rival: Any, size: int) -> None:
    measure(benchmark, "a batch", lambda: rival.insert_events(theirs(size)))


def test_import(benchmark: BenchmarkFixture, flushed: Database, size: int) -> None:
    with EventStore(flushed.dsn) as store:
        measure(benchmark, "a batch", lambda: store.import_events(ours(size)))


@pytest.mark.parametrize("decoded", [False, True], ids=["undecoded", "decoded"])
def test_read(benchmark: BenchmarkFixture, flushed: Database, size: int, *, decoded: bool) -> None:
    with EventStore(flushed.dsn) as store:
        store.import_events(ours(size * 10))

        def work() -> int:
            if decoded:
                return sum(event.data is not None for event in store.read())
            return sum(event.version > 0 for event in store.read())

        assert work() == size * 10
        measure(benchmark, "read ten times as many", work)


def test_read_eventsourcing(benchmark: BenchmarkFixture, rival: Any, size: int) -> None:
    for _ in range(10):
        rival.insert_events(theirs(size))

    def work() -> int:
        count, start = 0, 1
        while page := rival.select_notifications(start, 1000):
            count += len(page)
            start = page[-1].id + 1
        return count

    assert work() == size * 10
    measure(benchmark, "read ten times as many", work)
