"""Serial order: writers of any kind take turns, and a reader needs nothing but the versions."""

from __future__ import annotations

import asyncio
import threading

import psycopg
import pytest

from socketio_postgres import NO_STREAM, AsyncEventStore, Event, EventStore
from tests.events.test_order_model import collect, write
from tests.fixtures.database import Database
from tests.fixtures.event_schedule import NaiveReader, Seen, check
from tests.fixtures.waiting import eventually, nothing_arrives


@pytest.fixture
async def serial(store: AsyncEventStore) -> None:
    """The table is a serial one."""
    await store.enable_serial_order()
    await store.enable_serial_order()


@pytest.mark.usefixtures("serial")
async def test_even_a_naive_reader_loses_nothing(database: Database) -> None:
    """The very reader that loses events in test_order_model, beside ours, under raw SQL writers and our own."""
    committed: set[str] = set()
    stop = threading.Event()
    naive = NaiveReader(database, 0)
    seen: dict[str, list[Seen]] = {"ours": [], "naive": []}
    async with AsyncEventStore(database.dsn) as store, store.subscribe() as live:
        assert store.layout()["is_serial"]
        collecting = asyncio.create_task(collect(live, seen["ours"]))
        writers = [
            asyncio.create_task(asyncio.to_thread(write, database, number, stop, committed)) for number in range(4)
        ]

        async def have_others_written() -> bool:
            seen["naive"] += await asyncio.to_thread(naive.poll)
            return len(committed) > 60

        try:
            for i in range(40):
                event = Event("T", f"ours{i % 3}", id=f"ours{i}")
                await (store.store(event, expected=NO_STREAM) if i < 3 else store.store_batch([event]))
                committed.add(event.id)
                seen["naive"] += await asyncio.to_thread(naive.poll)
            await eventually(have_others_written, "the others have written, too")
        finally:
            stop.set()  # or they would go on for ever
            await asyncio.gather(*writers)
        seen["naive"] += await asyncio.to_thread(naive.poll)
        await eventually(lambda: len(seen["ours"]) >= len(committed), "all delivered")
        live.close()
        await collecting
    naive.connection.close()
    assert check(seen["naive"], committed) == []
    assert check(seen["ours"], committed) == []


@pytest.mark.usefixtures("serial")
async def test_readers_look_at_no_locks(database: Database) -> None:
    """A version drawn by hand and kept open: without the trigger readers would wait for it."""
    async with AsyncEventStore(database.dsn) as store, store.subscribe() as live:
        with database.connect() as holder:
            holder.execute("BEGIN")
            holder.execute("SELECT nextval('events_version_seq')")
            stored = await store.store(Event("T", "a"))
            assert (await live.next(20)).version == stored.version
            assert (await store.load()).safe_since == stored.version
            await store.wait_for(stored, timeout=20)
            assert await store.latest_version(timeout=20) == stored.version


async def test_without_it_they_do(store: AsyncEventStore, database: Database) -> None:
    async with store.subscribe() as live:
        with database.connect() as holder:
            holder.execute("BEGIN")
            holder.execute("SELECT nextval('events_version_seq')")
            await store.store(Event("T", "a"))
            waiting = asyncio.create_task(live.next(20))
            await nothing_arrives()
            assert not waiting.done()
        assert (await waiting).data is None


@pytest.mark.usefixtures("serial")
async def test_writers_wait_for_a_transaction_and_not_in_a_circle(database: Database) -> None:
    async with AsyncEventStore(database.dsn) as store:
        async with await psycopg.AsyncConnection.connect(database.dsn) as conn:
            await conn.execute("SET LOCAL deadlock_timeout = '10ms'")  # in a circle, this is who would be ended
            first = await store.store_in(conn, Event("T", "a"), expected=NO_STREAM)
            storing = [
                asyncio.create_task(store.store(Event("T", "b"), expected=NO_STREAM)),
                asyncio.create_task(store.store_batch([Event("T", "a"), Event("T", "c")])),
            ]
            await nothing_arrives()
            assert not any(task.done() for task in storing)
            # Had they locked their aggregates before their turn, this would be a deadlock.
            second = await store.store_batch_in(conn, [Event("T", "b"), Event("T", "c")])
            assert second[0].version == first.version + 1
        results = await asyncio.wait_for(asyncio.gather(*storing, return_exceptions=True), 20)
        assert type(results[0]).__name__ == "WrongExpectedVersionError"
        assert not isinstance(results[1], BaseException)
        assert [event.aggregate_id for event in await store.load()] == ["a", "b", "c", "a", "c"]


def test_imports_and_threads(database: Database) -> None:
    with EventStore(database.dsn) as store:
        store.enable_serial_order()
    with EventStore(database.dsn) as store, store.subscribe() as live:
        assert store.import_events(Event("T", "i", i) for i in range(50)) == 50
        assert [live.next(20).data for _ in range(50)] == list(range(50))
