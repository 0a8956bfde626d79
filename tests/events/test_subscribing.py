"""Subscriptions: old events, then new ones, whatever happens to connections, triggers and neighbours."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Iterator
from typing import Any

import pytest
from psycopg.conninfo import make_conninfo

from socketio_postgres import (
    END,
    START,
    AsyncEventStore,
    AsyncSubscription,
    CaughtUp,
    Checkpoint,
    DatabaseError,
    Event,
    EventStore,
    EventStoreError,
    FellBehind,
    Filter,
    InvalidConnectionError,
    NotificationPayload,
    OperationTimeoutError,
    Reconnected,
    StoreClosedError,
    StoredEvent,
)
from socketio_postgres.demo.embedded import EmbeddedPostgres
from socketio_postgres.events.event import AfterVersion, ControlItem
from tests.fixtures.database import Database, patient
from tests.fixtures.proxy import Direction, Proxy
from tests.fixtures.waiting import eventually, nothing_arrives

LONG_S = 60.0
"""What must come has so long: nothing here depends on speed."""
KILL_LISTENER = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    " WHERE datname = current_database() AND (strpos(query, 'LISTEN') = 1 OR strpos(query, 'pg_listening') > 0)"
    " AND pid <> pg_backend_pid()"
)


async def take(subscription: object, count: int, timeout: float = LONG_S) -> list[StoredEvent]:
    """The next events, which must come."""
    return [await subscription.next(timeout) for _ in range(count)]  # type: ignore[attr-defined]


async def test_old_events_then_new_ones(store: AsyncEventStore) -> None:
    await store.store_batch(Event("T", "a", i) for i in range(1200))
    async with store.subscribe(prefetch=100) as live:
        assert [event.data for event in await take(live, 1200)] == list(range(1200))
        await store.store_batch(Event("T", "a", i) for i in range(1200, 1300))
        assert [event.data for event in await take(live, 100)] == list(range(1200, 1300))
        assert live.position == 1300


async def test_starts(store: AsyncEventStore) -> None:
    await store.store_batch(Event("T", "a", i) for i in range(5))
    async with store.subscribe(START) as start, store.subscribe(END) as end, store.subscribe(3) as after:
        await store.store(Event("T", "a", "new"))
        assert [event.data for event in await take(start, 6)] == [0, 1, 2, 3, 4, "new"]
        assert [event.data for event in await take(after, 3)] == [3, 4, "new"]
        assert [event.data for event in await take(end, 1)] == ["new"]


async def test_from_the_end_while_a_transaction_is_open(store: AsyncEventStore, database: Database) -> None:
    """What is committed from now on is new, also under a version drawn before."""
    await store.store(Event("T", "a", "old"))
    with database.connect() as writer:
        writer.execute("BEGIN")
        writer.execute("INSERT INTO events (id, aggregate_id, event_type, data) VALUES ('e', 'a', 'T', '\"late\"')")
        entering = asyncio.create_task(store.subscribe(END).__aenter__())
        await nothing_arrives()
        assert not entering.done()
        writer.execute("COMMIT")
        live = await asyncio.wait_for(entering, LONG_S)
    await store.store(Event("T", "a", "new"))
    assert (await live.next(LONG_S)).data == "new"
    live.close()


async def test_filters_while_catching_up_and_live(store: AsyncEventStore) -> None:
    await store.store_batch(Event(f"T{i % 3}", f"a{i % 2}", i) for i in range(300))
    async with store.subscribe(types=["T1"], prefetch=7) as live:
        assert [event.data for event in await take(live, 100)] == list(range(1, 300, 3))
        await store.store_batch(Event(f"T{i % 3}", "a", i) for i in range(300, 330))
        assert [event.data for event in await take(live, 10)] == list(range(301, 330, 3))


async def test_a_wait_that_is_given_up_loses_nothing(store: AsyncEventStore) -> None:
    live = store.subscribe()
    seen: list[int] = []
    for i in range(30):
        storing = asyncio.create_task(store.store(Event("T", "a", i)))
        with contextlib.suppress(asyncio.TimeoutError):
            seen.append((await asyncio.wait_for(anext(live), 0.002)).data)
        await storing
    while len(seen) < 30:
        seen.append((await live.next(LONG_S)).data)
    assert seen == list(range(30))
    with pytest.raises(OperationTimeoutError):
        await live.next(timeout=0.01)
    live.close()
    with pytest.raises(StopAsyncIteration):
        await anext(live)


HOUR_S = 3600.0
CONDITIONS: dict[str, list[Filter]] = {
    "all": [],
    "filtered": [Filter("type", "T")],
    "nothing": [Filter("type", "none")],
}


@pytest.fixture
def without_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a subscription hears only because it has waited for long does not come."""
    monkeypatch.setattr("socketio_postgres.events.async_event_feed.PATIENCE", HOUR_S)
    monkeypatch.setattr("socketio_postgres.events._sync.event_feed.PATIENCE", HOUR_S)


async def until_caught_up(live: AsyncSubscription) -> list[StoredEvent | ControlItem]:
    """The items up to the first `CaughtUp`, which must come."""
    found: list[StoredEvent | ControlItem] = []
    async for item in live.items():
        found.append(item)
        if isinstance(item, CaughtUp):
            break
    return found


@pytest.mark.usefixtures("without_patience")
@pytest.mark.parametrize("conditions", CONDITIONS)
@pytest.mark.parametrize("count", [0, 3])
async def test_who_has_nothing_to_read_has_caught_up(
    store: AsyncEventStore, database: Database, conditions: str, count: int
) -> None:
    """At once, wherever the subscription begins, and although nothing is stored while it is open."""
    stored = [await store.store(Event("T", "a", i)) for i in range(count)]
    last = (await store.load(0))[-1:]
    starts: list[AfterVersion | StoredEvent] = [START, END, len(stored), *last]
    for after in starts:
        async with AsyncEventStore(database.dsn, stall_warning=HOUR_S) as fresh:
            live = fresh.subscribe(after, CONDITIONS[conditions])
            items = await asyncio.wait_for(until_caught_up(live), LONG_S)
            assert items[-1] == CaughtUp(count)
            is_to_come = after is START and conditions != "nothing"
            assert len(items) == (count if is_to_come else 0) + 1
            assert live.is_caught_up
            live.close()


@pytest.mark.usefixtures("without_patience")
async def test_has_caught_up_is_told_beside_the_iteration(store: AsyncEventStore, database: Database) -> None:
    async with AsyncEventStore(database.dsn, stall_warning=HOUR_S) as fresh, fresh.subscribe(END) as live:
        waiting = asyncio.ensure_future(anext(live))
        await eventually(lambda: live.is_caught_up, "it has caught up")
        await store.store(Event("T", "a", 7))
        assert (await asyncio.wait_for(waiting, LONG_S)).data == 7
        assert live.is_caught_up


@pytest.mark.usefixtures("without_patience")
def test_who_has_nothing_to_read_has_caught_up_with_a_blocking_store(database: Database) -> None:
    with EventStore(database.dsn, stall_warning=HOUR_S) as store, store.subscribe(END) as live:
        found: list[object] = []
        thread = threading.Thread(target=lambda: found.append(next(iter(live.items()))), daemon=True)
        thread.start()
        thread.join(20)
        assert found == [CaughtUp(0)]


@pytest.mark.usefixtures("without_patience")
async def test_who_begins_beside_an_open_transaction_has_not_caught_up_before_it_has_read(
    our_store: AsyncEventStore, database: Database
) -> None:
    """What follows without a gap comes nevertheless, and before `CaughtUp`."""
    count = 2500
    await our_store.store_batch(Event("T", "a", i) for i in range(count))
    with database.connect() as admin:
        admin.execute("DELETE FROM events_settled")
        admin.execute("BEGIN")
        admin.execute("INSERT INTO events (id, aggregate_id, event_type) VALUES ('open', 'b', 'T')")
        for after, version in ((START, 0), (10, 10)):
            async with AsyncEventStore(database.dsn, stall_warning=HOUR_S) as fresh:
                items = await asyncio.wait_for(until_caught_up(fresh.subscribe(after)), LONG_S)
                assert items[-1] == CaughtUp(count)
                assert len(items) == count - version + 1
        admin.execute("ROLLBACK")


@pytest.mark.usefixtures("without_patience")
@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK"])
@pytest.mark.parametrize("is_at_a_gap", [False, True], ids=["idle", "at a gap"])
async def test_what_was_committed_before_a_subscription_comes_before_it_has_caught_up(
    our_store: AsyncEventStore, database: Database, is_at_a_gap: bool, end: str
) -> None:
    """Also when the reader that all subscriptions share has not heard of it, or that a gap stays one."""
    insert = "INSERT INTO events (id, aggregate_id, event_type) VALUES (%s, 'b', 'T')"
    async with AsyncEventStore(database.dsn, poll_interval=HOUR_S, stall_warning=HOUR_S) as store:
        before = store.subscribe()
        assert await asyncio.wait_for(until_caught_up(before), LONG_S) == [CaughtUp(0)]
        await eventually(lambda: store.is_listener_connected, "it listens")
        with database.connect() as writer:
            writer.execute("SET session_replication_role = replica")  # no trigger tells anybody
            writer.execute("BEGIN")
            writer.execute(insert, ["first"])
            if is_at_a_gap:
                await our_store.store(Event("T", "a"))
                await eventually(lambda: store.stats()["gap_seconds"] is not None, "the reader waits at the gap")
                await nothing_arrives()  # it looks rarely by now
            writer.execute(end)
            if not is_at_a_gap:
                writer.execute(insert, ["second"])
        after = store.subscribe()
        items = await asyncio.wait_for(until_caught_up(after), LONG_S)
        versions = [1, 2] if end == "COMMIT" else [2]
        assert [item.version for item in items[:-1] if isinstance(item, StoredEvent)] == versions
        assert items[-1] == CaughtUp(2)
        before.close()
        after.close()


READERS_LOCK = 0x73696F2E6C6F6F6B
"""By which the readers of a database are counted."""


async def test_a_subscription_catches_up_at_a_gap_however_rare_looks_are(
    our_store: AsyncEventStore, database: Database
) -> None:
    """With many readers, a look comes later than the next poll."""
    async with (
        AsyncEventStore(database.dsn, poll_interval=0.05, stall_warning=HOUR_S) as store,
        contextlib.AsyncExitStack() as readers,
    ):
        for _ in range(20):
            reader = readers.enter_context(database.connect())
            reader.execute("SELECT pg_advisory_lock_shared(%s)", [READERS_LOCK])
        before = store.subscribe()
        assert await asyncio.wait_for(until_caught_up(before), LONG_S) == [CaughtUp(0)]
        with database.connect() as writer, writer.transaction():
            writer.execute("INSERT INTO events (id, aggregate_id, event_type) VALUES ('first', 'b', 'T')")
            await our_store.store(Event("T", "a"))
            await eventually(lambda: store.stats()["gap_seconds"] is not None, "the reader waits at the gap")
            after = store.subscribe()
            assert await asyncio.wait_for(until_caught_up(after), LONG_S) == [CaughtUp(0)]
        before.close()
        after.close()


@pytest.mark.parametrize("what", ["newcomers", "notifications"])
async def test_the_poll_is_not_put_off(our_store: AsyncEventStore, database: Database, what: str) -> None:
    """It finds a sequence that was set back; what comes meanwhile is dealt with without a look at it."""
    await our_store.store_batch(Event("T", "a", i) for i in range(6))
    async with AsyncEventStore(database.dsn, poll_interval=1) as store:
        before = store.subscribe()
        assert (await asyncio.wait_for(until_caught_up(before), LONG_S))[-1] == CaughtUp(6)
        waiting = asyncio.create_task(before.next())
        with database.connect() as admin:
            oid = database.value("SELECT 'events'::regclass::oid")
            # Gaps, as of transactions that were rolled back, which would be filled.
            admin.execute("DELETE FROM events WHERE version IN (3, 4)")
            admin.execute("SELECT setval('events_version_seq', 2)")

            async def is_over() -> bool:
                if what == "newcomers":
                    with contextlib.suppress(EventStoreError):  # it was found
                        await store.subscribe(2).next_or_idle(0.01)
                else:
                    admin.execute("SELECT pg_notify(%s, '')", [f"sio_events_{oid}"])
                return waiting.done()

            await eventually(is_over, "the sequence is found behind")
        # Where a newcomer has heard it, the reader that all share may have begun anew further back.
        told = "sequence|ends at version 2, before position 6" if what == "newcomers" else "sequence"
        with pytest.raises(EventStoreError, match=told):
            await waiting
        before.close()


async def test_a_subscription_hears_only_of_connections_that_were_lost_while_it_was_there(database: Database) -> None:
    async with AsyncEventStore(database.dsn, reconnect_interval=0.1) as store, store.subscribe() as before:
        await eventually(lambda: store.is_listener_connected, "it listens")
        with database.connect() as admin:
            assert admin.execute(KILL_LISTENER).fetchall()
        await eventually(lambda: store.stats()["listener_reconnects"] == 1, "it listens again")
        await store.store(Event("T", "a"))
        assert Reconnected in [type(item) for item in await asyncio.wait_for(until_caught_up(before), LONG_S)]
        after = store.subscribe()
        items = await asyncio.wait_for(until_caught_up(after), LONG_S)
        assert [type(item) for item in items] == [StoredEvent, CaughtUp]
        before.close()
        after.close()
        await eventually(lambda: not store.is_listener_connected, "nobody needs it")
        items = await asyncio.wait_for(until_caught_up(store.subscribe()), LONG_S)
        assert [type(item) for item in items] == [StoredEvent, CaughtUp]


async def test_control_items(database: Database) -> None:
    async with AsyncEventStore(database.dsn, reconnect_interval=0.1) as store:
        await store.store_batch(Event("T", "a", i) for i in range(3))
        live = store.subscribe(types="T", prefetch=2)
        items = live.items()
        first = [await anext(items) for _ in range(4)]
        assert [item.version for item in first[:3] if isinstance(item, StoredEvent)] == [1, 2, 3]
        assert first[3] == CaughtUp(3)
        await eventually(lambda: store.is_listener_connected, "it listens")
        await store.store(Event("other", "a"))
        assert await anext(items) == Checkpoint(4)
        assert live.position == 4
        await store.store_batch(Event("T", "a", i) for i in range(5))
        burst = [await anext(items) for _ in range(7)]
        assert burst[0] == FellBehind(4)
        assert burst[-1] == CaughtUp(9)
        with database.connect() as admin:
            assert admin.execute(KILL_LISTENER).fetchall()
        await eventually(lambda: store.stats()["listener_reconnects"] >= 1, "it listens again")
        await store.store(Event("T", "a"))
        while not isinstance(item := await asyncio.wait_for(anext(items), LONG_S), Reconnected):
            pass
        assert item in (Reconnected(9), Reconnected(10))
        live.close()
        assert [item async for item in items] == []


RARE = [Filter("data", "rare")]
"""A condition that the server tests after that of a role, and not before."""
SLOW_READER = "sio_pg_slow_reader"
SLOW = """
CREATE FUNCTION slowly() RETURNS boolean LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep({seconds}); RETURN true; END';
CREATE ROLE {role} LOGIN;
GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role};
GRANT SELECT ON ALL SEQUENCES IN SCHEMA public TO {role};
ALTER TABLE events ENABLE ROW LEVEL SECURITY;
CREATE POLICY slowly ON events FOR SELECT TO {role} USING (slowly());
"""


@contextlib.contextmanager
def slow_reader(database: Database, seconds: float, timeout: str) -> Iterator[str]:
    """A role that needs so long to read a row, however fast the machine is, and has a time limit for statements."""
    with database.connect() as admin:
        admin.execute(SLOW.format(seconds=seconds, role=SLOW_READER).encode())
    try:
        yield make_conninfo(database.dsn, user=SLOW_READER, options=f"-c statement_timeout={timeout}")
    finally:
        with database.connect() as admin:
            admin.execute(f"DROP OWNED BY {SLOW_READER} CASCADE".encode())
            admin.execute(f"DROP ROLE {SLOW_READER}".encode())


@contextlib.asynccontextmanager
async def limited(dsn: str, **options: Any) -> AsyncIterator[AsyncEventStore]:
    """A store whose statements have a time limit. On a slow machine those that open it may exceed it, too."""
    store = AsyncEventStore(dsn, **options)
    await eventually(lambda: is_in_time(store.open()), "it is open")
    async with store:
        yield store


@contextlib.asynccontextmanager
async def begun(live: AsyncSubscription) -> AsyncIterator[AsyncSubscription]:
    """The same for a subscription that begins."""
    await eventually(lambda: is_in_time(live.__aenter__()), "it has begun")
    async with live:
        yield live


async def is_in_time(work: Awaitable[object]) -> bool:
    """Whether its statements kept within their time limit."""
    try:
        await work
    except DatabaseError as error:
        if error.sqlstate != "57014":
            raise
        return False
    return True


@pytest.mark.xdist_group("slow reader")
async def test_a_filter_that_hardly_matches_is_read_in_parts(our_store: AsyncEventStore, database: Database) -> None:
    """S16: no statement reads more than the time limit allows, and progress shows although nothing matches."""
    await our_store.open()
    with database.connect() as admin:
        # With holes, so that it takes one attempt to find a range that is small enough.
        admin.execute(
            "INSERT INTO events (version, id, aggregate_id, event_type)"
            " SELECT 80 * i, 'e' || i, 'a', 'T' FROM generate_series(1, 400) AS i"
        )
        admin.execute("SELECT setval('events_version_seq', 32000)")
    rare = await our_store.store(Event("T", "a", "rare"))
    told: list[Exception] = []
    with slow_reader(database, 0.02, "3s") as dsn:
        async with limited(dsn, error_handler=told.append) as store, store.subscribe(filters=RARE) as live:
            positions = []
            while (event := await live.next_or_idle(0.1)) is None:
                positions.append(live.position)
            assert event.version == rare.version
            assert len(set(positions)) > 2
            assert positions == sorted(positions, key=lambda position: position or 0)
            assert store.stats()["page_timeouts"] > 0
    assert {getattr(error, "sqlstate", "") for error in told} == {"57014"}
    assert len(told) == 1, "each reason is told once"


@pytest.mark.xdist_group("slow reader")
async def test_a_filter_that_is_too_slow_for_any_part(our_store: AsyncEventStore, database: Database) -> None:
    await our_store.store_batch(Event("T", "a", i) for i in range(200))
    with slow_reader(database, 0.1, "500ms") as dsn:
        async with limited(dsn) as store:
            with pytest.raises(DatabaseError) as caught:
                async with store.subscribe(filters=RARE) as live:
                    await live.next(LONG_S)
            assert caught.value.sqlstate == "57014"


@pytest.mark.xdist_group("slow reader")
@pytest.mark.parametrize("start", [START, END], ids=["behind", "live"])
async def test_pages_that_take_too_long_are_read_in_parts(
    our_store: AsyncEventStore, database: Database, start: AfterVersion
) -> None:
    """Without a filter, too: those of a subscription that catches up, and those of the reader that serves all."""
    await our_store.store_batch(Event("T", "a", i) for i in range(200))
    with slow_reader(database, 0.02, "3s") as dsn:
        async with limited(dsn) as store, store.subscribe(start, prefetch=200) as live:
            if start == START:
                assert [event.data for event in await take(live, 200)] == list(range(200))
            else:
                await our_store.store_batch(Event("T", "a", i) for i in range(200, 400))
                assert [event.data for event in await take(live, 200)] == list(range(200, 400))
            assert store.stats()["page_timeouts"] > 0


@pytest.mark.parametrize("limit", ["statement_timeout", "lock_timeout"])
async def test_a_table_that_is_locked_for_longer_than_a_limit(
    our_store: AsyncEventStore, database: Database, limit: str
) -> None:
    """While an administrator changes it, readers wait."""
    await our_store.store(Event("T", "a", 0))
    dsn = make_conninfo(database.dsn, options=f"-c {limit}=500ms")
    async with limited(dsn, poll_interval=0.1) as store, begun(store.subscribe()) as live:
        assert (await live.next(LONG_S)).data == 0
        waiting = asyncio.create_task(live.next(LONG_S))
        with database.connect() as admin:
            admin.execute("BEGIN")
            admin.execute("LOCK TABLE events IN ACCESS EXCLUSIVE MODE")
            await eventually(lambda: waiting.done() or store.stats()["reader_outage"], "a statement is ended")
            admin.execute("COMMIT")
        await our_store.store(Event("T", "a", 1))
        assert (await waiting).data == 1


async def test_a_filter_that_hardly_matches_behind_a_slow_link(our_store: AsyncEventStore, database: Database) -> None:
    """Ranges of versions follow the server's speed, and not how long an answer travels or waits for a connection."""
    first = await our_store.store(Event("T", "a"))
    with database.connect() as admin:
        admin.execute("SELECT setval('events_version_seq', 3000000)")
    rare = await our_store.store(Event("T", "a", "rare"))
    with Proxy(database) as proxy:
        async with AsyncEventStore(patient(proxy.dsn)) as store, store.subscribe(first.version, filters=RARE) as live:

            def delay(direction: Direction, data: bytes) -> bytes:
                if direction == "to_server" and b"planned by values" in data:
                    time.sleep(0.3)
                return data

            proxy.rewrite = delay
            assert (await live.next(LONG_S)).version == rare.version
            assert store.stats()["pages"] < 100


async def test_one_listener_and_one_reader_for_all(store: AsyncEventStore, database: Database) -> None:
    lives = [store.subscribe(END) for _ in range(200)]
    for live in lives:
        await live.__aenter__()
    await eventually(lambda: store.is_listener_connected, "it listens")
    before = store.stats()
    for i in range(20):
        await store.store(Event("T", "a", i))
        for event in await asyncio.gather(*(live.next(LONG_S) for live in lives)):
            assert event.data == i
    after = store.stats()
    assert after["subscriptions"] == 200
    assert after["read"] - before["read"] == 20, "each event is read once"
    assert after["pages"] == before["pages"]
    listeners = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        " AND (strpos(query, 'LISTEN') = 1 OR strpos(query, 'pg_listening') > 0)"
    )
    assert database.value(listeners) == 1
    for live in lives:
        live.close()
    await eventually(lambda: not store.is_listener_connected, "the last one ends the listening")
    assert store.stats()["subscriptions"] == 0


async def test_a_slow_one_delays_nobody(store: AsyncEventStore) -> None:
    """The slow one falls out of what is kept in memory, reads pages, and misses nothing."""
    slow, fast = store.subscribe(END, prefetch=1), store.subscribe(END)
    await slow.__aenter__()
    await fast.__aenter__()
    await store.store(Event("T", "a", 0))
    assert (await slow.next(LONG_S)).data == 0
    for start in range(1, 24_001, 1000):
        await store.store_batch(Event("T", "a", i) for i in range(start, start + 1000))
    assert [event.data for event in await take(fast, 24_001)] == list(range(24_001))
    assert [event.data for event in await take(slow, 50)] == list(range(1, 51))
    assert store.stats()["pages"] > 0
    slow.close()
    fast.close()


async def test_without_a_trigger_the_poll_finds_events(store: AsyncEventStore, database: Database) -> None:
    with database.connect() as admin:
        admin.execute("ALTER TABLE events DISABLE TRIGGER USER")
    async with store.subscribe() as live:
        await eventually(lambda: store.is_listener_connected, "it listens")
        await store.store(Event("T", "a", "silent"))
        assert (await live.next(LONG_S)).data == "silent"


async def test_the_listener_is_killed_again_and_again(database: Database) -> None:
    """Every 50 ms, under load: nothing is lost, nothing comes twice."""
    async with AsyncEventStore(database.dsn, reconnect_interval=0.05) as store, store.subscribe() as live:
        stop = asyncio.Event()

        async def kill() -> None:
            with database.connect() as admin:
                while not stop.is_set():
                    admin.execute(KILL_LISTENER)
                    await asyncio.sleep(0.05)

        async def write() -> None:
            for i in range(300):
                await store.store(Event("T", "a", i))
                await asyncio.sleep(0.002)

        killing, writing = asyncio.create_task(kill()), asyncio.create_task(write())
        assert [event.data for event in await take(live, 300)] == list(range(300))
        await eventually(lambda: store.stats()["listener_reconnects"] > 2, "it has listened again and again")
        stop.set()
        await asyncio.gather(killing, writing)


async def test_the_server_restarts(tmp_path: object) -> None:
    """Fast and by a crash; what was settled before is no help to whoever writes after."""
    del tmp_path
    with EmbeddedPostgres() as server:
        store = AsyncEventStore(server.dsn("postgres"), reconnect_interval=0.1)
        live = store.subscribe()
        number = 0
        for mode in ("fast", "immediate"):
            for _ in range(3):
                await store.store(Event("T", "a", number))
                assert (await live.next(LONG_S)).data == number
                number += 1
            await asyncio.to_thread(server.stop, mode)
            await asyncio.to_thread(server.start)
        await store.store(Event("T", "a", number))
        assert (await live.next(LONG_S)).data == number
        assert live.position == (await store.load())[-1].version
        live.close()
        await store.close()


async def test_listening_that_cannot_be_mended_ends_with_the_error(database: Database) -> None:
    store = AsyncEventStore(
        database.dsn, listen_dsn="host=127.0.0.1 port=1", reconnect_interval=0.01, max_reconnect_attempts=3
    )
    with pytest.raises(ConnectionError):
        await asyncio.wait_for(anext(store.subscribe()), LONG_S)
    await store.close()


async def test_as_many_attempts_to_listen_as_allowed(database: Database) -> None:
    """Also at the first start: nothing was listened to before."""
    attempts = 0

    async def refuse(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal attempts
        attempts += 1
        writer.close()

    async with await asyncio.start_server(refuse, "127.0.0.1") as server:
        port = server.sockets[0].getsockname()[1]
        listen_dsn = f"host=127.0.0.1 port={port} sslmode=disable gssencmode=disable"
        limits: dict[str, Any] = {"reconnect_interval": 0.01, "max_reconnect_attempts": 3}
        async with AsyncEventStore(database.dsn, listen_dsn=listen_dsn, **limits) as store:
            with pytest.raises(ConnectionError):
                await store.subscribe().next(LONG_S)
    assert attempts == 3


async def test_an_open_transaction_that_holds_readers_up_is_named(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    async with AsyncEventStore(database.dsn, stall_warning=0.2) as store:
        live = store.subscribe()
        await live.__aenter__()
        with database.connect() as writer:
            writer.execute("SET application_name = 'the sleeper'")
            writer.execute("BEGIN")
            writer.execute("INSERT INTO events (id, aggregate_id, event_type) VALUES ('e', 'a', 'T')")
            await store.store(Event("T", "a", "waits"))
            waiting = asyncio.create_task(anext(live))
            await eventually(lambda: (store.stats()["gap_seconds"] or 0) > 0.3, "the gap is seen")
            assert not waiting.done()
            with caplog.at_level(logging.WARNING, "socketio_postgres"):
                await store._look_for_stall()
            assert "the sleeper" in caplog.text
            assert str(writer.info.backend_pid) in caplog.text
            writer.execute("ROLLBACK")
        assert (await asyncio.wait_for(waiting, LONG_S)).data == "waits"
        await eventually(lambda: store.stats()["gap_seconds"] is None, "the gap is over")
        live.close()


async def test_leaving_the_loop_ends_the_subscription(store: AsyncEventStore) -> None:
    await store.store(Event("T", "a"))
    async for event in store.subscribe():
        assert event.version == 1
        break
    gc.collect()
    await eventually(lambda: store.stats()["subscriptions"] == 0, "it is gone")


async def test_closing_the_store_ends_subscriptions(store: AsyncEventStore) -> None:
    live = store.subscribe()
    waiting = asyncio.create_task(anext(live))
    await eventually(lambda: store.stats()["subscriptions"] == 1, "it is there")
    await store.close()
    with pytest.raises(StoreClosedError):
        await asyncio.wait_for(waiting, LONG_S)


async def test_callbacks(store: AsyncEventStore) -> None:
    """D3, D6, D7: several on one channel, in order, each ended alone."""
    heard: dict[str, list[NotificationPayload]] = {"all": [], "stream": [], "type": []}

    async def slow(payload: NotificationPayload) -> None:
        await asyncio.sleep(0.001)
        heard["all"].append(payload)

    everything = await store.subscribe_to_all(slow)
    stream = await store.subscribe_to_stream("a1", heard["stream"].append)
    kind = await store.subscribe_to_event_type("T2", heard["type"].append)
    assert store.active_subscriptions() == ["events_global", "stream_a1"]
    results = await store.store_batch(Event(f"T{i % 4}", f"a{i % 2}") for i in range(40))
    await eventually(lambda: len(heard["all"]) == 40, "all were heard")
    assert [payload.version for payload in heard["all"]] == [result.version for result in results]
    await eventually(lambda: (len(heard["stream"]), len(heard["type"])) == (20, 10), "and the others")
    assert heard["stream"][0] == NotificationPayload(
        results[1].version, results[1].id, "a1", "T1", "stream_a1", results[1].created_at
    )
    await everything.cancel()
    assert store.active_subscriptions() == ["events_global", "stream_a1"]
    assert kind.is_active
    await store.store(Event("T2", "a1"))
    await eventually(lambda: (len(heard["stream"]), len(heard["type"])) == (21, 11), "the others go on")
    assert len(heard["all"]) == 40
    await store.unsubscribe_from_stream("a1")
    await store.unsubscribe_from_all()
    assert store.active_subscriptions() == []
    assert not stream.is_active


async def test_a_handler_that_fails_is_reported_and_the_next_event_follows(database: Database) -> None:
    errors: list[Exception] = []
    heard: list[int] = []

    def handler(payload: NotificationPayload) -> None:
        heard.append(payload.version)
        if payload.version == 1:
            raise ValueError("no")

    def tell(error: Exception) -> None:
        errors.append(error)
        raise RuntimeError("the error handler's own mistake")

    async with AsyncEventStore(database.dsn, error_handler=tell) as store:
        await store.subscribe_to_all(handler)
        await eventually(lambda: store.is_listener_connected, "it listens")
        await store.store_batch([Event("T", "a"), Event("T", "a")])
        await eventually(lambda: heard == [1, 2], "both were heard")
        await eventually(lambda: errors, "it is told")
    assert [str(error) for error in errors] == ["no"]


def test_from_threads(database: Database) -> None:
    with EventStore(database.dsn) as store:
        heard: list[int] = []
        handle = store.subscribe_to_all(lambda payload: heard.append(payload.version))
        live = store.subscribe(START)
        deadline = time.monotonic() + LONG_S
        while not store.is_listener_connected:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        writer = threading.Thread(target=lambda: [store.store(Event("T", "a", i)) for i in range(20)])
        writer.start()
        assert [next(live).data for _ in range(20)] == list(range(20))
        writer.join()
        with pytest.raises(OperationTimeoutError):
            live.next(timeout=0.05)
        closer = threading.Timer(0.2, live.close)
        closer.start()
        assert list(live) == []
        deadline = time.monotonic() + LONG_S
        while len(heard) < 20 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert heard == list(range(1, 21))
        handle.cancel()
        assert not handle.is_active


def test_an_invalid_connection_is_a_subject_of_its_own() -> None:
    assert "session mode" in str(InvalidConnectionError("needs a pooler in session mode"))
