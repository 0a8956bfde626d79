"""Storing: versions, expectations, ids, refusals; and what is left behind by failures, which is nothing."""

from __future__ import annotations

import asyncio
import collections
import datetime as dt
import os
import pickle
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from socketio_postgres import (
    EXISTS,
    NO_STREAM,
    AggregateIdTooLongError,
    AsyncEventStore,
    DatabaseError,
    DuplicateEventError,
    EncodeError,
    Event,
    EventStore,
    IncompatibleVersionError,
    OptionsError,
    PayloadTooLargeError,
    StoreClosedError,
    StoredEvent,
    WrongExpectedVersionError,
)
from socketio_postgres.events import async_event_log
from tests.fixtures.database import Database, patient
from tests.fixtures.pgbouncer import PgBouncer, pgbouncer_program
from tests.fixtures.postgres import OwnPostgres
from tests.fixtures.waiting import TIMEOUT_S, eventually

__all__ = ["pgbouncer_program"]


async def test_what_is_stored_comes_back(store: AsyncEventStore) -> None:
    data = {"total": 5, "big": 2**80, "float": 0.1, "text": "größe ✓ \\u0000", "none": None, "list": [True, [], {}]}
    given = Event("OrderPlaced", 'o"1\\\n', data, metadata={"tenant": "t1"}, id="e1")
    result = await store.store(given)
    (event,) = await store.load()
    assert (event.version, event.id, event.event_type, event.aggregate_id) == (1, "e1", "OrderPlaced", 'o"1\\\n')
    assert event.data == data
    assert event.metadata == {"tenant": "t1"}
    assert event.created_at == result.created_at
    assert event.stream_name == 'stream_o"1\\\n'
    assert pickle.loads(pickle.dumps(event)) == event  # noqa: S301 - our own
    assert hash(event) == hash(pickle.loads(pickle.dumps(event)))  # noqa: S301
    assert event != StoredEvent(2, "e1", 'o"1\\\n', "OrderPlaced")
    assert isinstance(event, StoredEvent)


async def test_none_is_null(store: AsyncEventStore, database: Database) -> None:
    await store.store(Event("T", "a"))
    assert database.value("SELECT data IS NULL AND metadata IS NULL FROM events") is True
    (event,) = await store.load()
    assert event.data is None
    assert event.metadata is None


async def test_expected_versions(store: AsyncEventStore) -> None:
    with pytest.raises(WrongExpectedVersionError) as missing:
        await store.store(Event("T", "a"), expected=EXISTS)
    assert (missing.value.aggregate_id, missing.value.expected, missing.value.actual) == ("a", -1, 0)
    first = await store.store(Event("T", "a"), expected=NO_STREAM)
    with pytest.raises(WrongExpectedVersionError) as wrong:
        await store.store(Event("T", "a"), expected=NO_STREAM)
    assert (wrong.value.expected, wrong.value.actual) == (0, first.version)
    second = await store.store(Event("T", "a"), expected=first.version)
    third = await store.store(Event("T", "a"), expected=EXISTS)
    with pytest.raises(WrongExpectedVersionError) as stale:
        await store.store(Event("T", "a"), expected=second.version)
    assert stale.value.actual == third.version
    assert [event.version for event in await store.load_by_aggregate("a")] == [
        first.version,
        second.version,
        third.version,
    ]


async def test_of_those_who_expect_the_same_one_wins(store: AsyncEventStore, database: Database) -> None:
    """Among tasks of one store and among stores, conditional or not: nobody who expected something was overtaken."""
    others = [AsyncEventStore(database.dsn) for _ in range(3)]
    wins: collections.Counter[int] = collections.Counter()

    async def race(store: AsyncEventStore, name: str) -> None:
        for number in range(15):
            events = await store.load_by_aggregate("hot")
            last = events[-1].version if events else 0
            try:
                await store.store(Event("T", "hot", {"saw": last}, id=f"{name}-{number}"), expected=last)
                wins[last] += 1
            except WrongExpectedVersionError:
                pass
            if number % 5 == 0:
                await store.store(Event("Noise", "hot"))

    await asyncio.gather(*(race(each, f"{i}-{j}") for i, each in enumerate([store, *others]) for j in range(2)))
    events = list(await store.load_by_aggregate("hot"))
    assert len(wins) == sum(wins.values()) > 5
    for before, event in zip([None, *events], events, strict=False):
        if event.event_type == "T":
            assert event.data["saw"] == (before.version if before else 0)
    for other in others:
        await other.close()


async def test_all_who_waited_for_an_aggregate_succeed(store: AsyncEventStore, database: Database) -> None:
    """Those who wait for the lock of an aggregate are in nobody's way once it falls, and are told nothing untrue."""
    writers = [AsyncEventStore(database.dsn) for _ in range(4)]
    await store.store(Event("T", "hot"))
    async with await psycopg.AsyncConnection.connect(database.dsn) as user:
        await user.execute("SELECT 1")
        await store.store_in(user, Event("T", "hot"), expected=EXISTS)
        calls = [asyncio.create_task(writer.store(Event("T", "hot"), expected=EXISTS)) for writer in writers * 15]
        await eventually(lambda: sum(writer.stats()["store_waiting"] for writer in writers) > 10, "they wait")
    assert len(await asyncio.gather(*calls)) == 60
    assert len(list(await store.load_by_aggregate("hot"))) == 62
    for writer in writers:
        await writer.close()


async def test_the_same_again_is_no_error(store: AsyncEventStore, database: Database) -> None:
    event = Event("T", "a", {"n": 1.0}, metadata={})
    first = await store.store(event, expected=NO_STREAM)
    again = await store.store(event, expected=NO_STREAM)
    assert not first.is_duplicate
    assert again.is_duplicate
    assert (again.version, again.created_at) == (first.version, first.created_at)
    batch = [Event("T", "b"), event, Event("T", "c")]
    results = await store.store_batch(batch)
    assert [result.is_duplicate for result in results] == [False, True, False]
    assert database.value("SELECT count(*) FROM events") == 3


@pytest.mark.parametrize("change", [{"data": 2}, {"event_type": "U"}, {"aggregate_id": "b"}, {"metadata": {"m": 1}}])
async def test_an_id_belongs_to_one_event(store: AsyncEventStore, database: Database, change: dict[str, Any]) -> None:
    given: dict[str, Any] = {"event_type": "T", "aggregate_id": "a", "data": 1, "id": "e1"}
    first = await store.store(Event(**given))
    with pytest.raises(DuplicateEventError) as taken:
        await store.store_batch([Event("T", "x"), Event(**{**given, **change}), Event("T", "y")])
    assert (taken.value.event_id, taken.value.version) == ("e1", first.version)
    with pytest.raises(DuplicateEventError):
        await store.store_batch([Event("T", "x", id="same"), Event("T", "y", id="same")])
    assert database.value("SELECT count(*) FROM events") == 1


async def test_one_id_stored_by_many_at_once(store: AsyncEventStore, database: Database) -> None:
    other = AsyncEventStore(database.dsn)
    event = Event("T", "a", {"n": 1})
    results = await asyncio.gather(*(each.store(event) for each in [store, other] for _ in range(20)))
    assert len({result.version for result in results}) == 1
    assert sum(not result.is_duplicate for result in results) == 1
    await other.close()


async def test_a_batch_keeps_its_order_and_is_atomic(store: AsyncEventStore, database: Database) -> None:
    results = await store.store_batch(Event("T", f"a{i % 7}", i) for i in range(3000))
    versions = [result.version for result in results]
    assert versions == sorted(set(versions))
    assert [event.data async for event in store.read()] == list(range(3000))
    with pytest.raises(WrongExpectedVersionError):
        await store.store_batch([Event("T", "new"), Event("T", "a0")], expected={"new": NO_STREAM, "a0": NO_STREAM})
    assert database.value("SELECT count(*) FROM events") == 3000
    assert await store.store_batch([]) == []


async def test_concurrent_calls_share_commits_and_fail_alone(store: AsyncEventStore) -> None:
    taken = await store.store(Event("T", "taken", id="taken"))
    before = store.stats()["store_groups"]
    calls = [store.store(Event("T", f"a{i}", i)) for i in range(200)]
    calls += [store.store(Event("T", "other", id="taken")), store.store(Event("T", "taken"), expected=NO_STREAM)]
    results = await asyncio.gather(*calls, return_exceptions=True)
    stored = [result for result in results if not isinstance(result, BaseException)]
    assert len({result.version for result in stored}) == 200
    assert isinstance(results[-2], DuplicateEventError)
    assert isinstance(results[-1], WrongExpectedVersionError)
    assert results[-1].actual == taken.version
    assert store.stats()["store_groups"] - before < len(calls), "some waited together, however slow this machine is"


async def test_a_backslash_in_a_name_whatever_it_means(database: Database) -> None:
    """`standard_conforming_strings = off`, as old applications have it."""
    dsn = make_conninfo(database.dsn, options="-c standard_conforming_strings=off")
    for _ in range(2):
        async with AsyncEventStore(dsn, table_name='"a\\\'b"') as store, store.subscribe() as live:
            await eventually(lambda: store.is_listener_connected, "it listens")
            stored = await store.store(Event("T", "a", id="e1"))
            assert (await live.next(20)).version == stored.version == 1


async def test_only_what_stores_events_counts(our_store: AsyncEventStore) -> None:
    """Looking for the event that a call repeats is no such transaction, and an import is one for each chunk."""
    event = Event("T", "a", 1, id="e1")
    await our_store.store(event)
    assert (await our_store.store(event)).is_duplicate
    with pytest.raises(WrongExpectedVersionError):
        await our_store.store(Event("T", "a"), expected=NO_STREAM)
    stats = our_store.stats()
    assert (stats["stored"], stats["store_groups"]) == (1, 1)
    await our_store.import_events((Event("T", f"a{i}") for i in range(25)), chunk_size=10)
    stats = our_store.stats()
    assert (stats["stored"], stats["store_groups"]) == (26, 4)


async def test_import(store: AsyncEventStore, database: Database) -> None:
    async def source() -> Any:
        for i in range(2500):
            yield Event("T", f"a{i}", {"n": i}, metadata={"m": i}, id=f"e{i}")

    told: list[int] = []
    assert await store.import_events(source(), chunk_size=1000, progress=told.append) == 2500
    assert told == [1000, 2000, 2500]
    assert [event.data["n"] async for event in store.read()] == list(range(2500))
    with pytest.raises(DatabaseError) as refused:
        await store.import_events([Event("T", "a", id="new"), Event("T", "a", id="e7")])
    assert refused.value.sqlstate == "23505"
    assert database.value("SELECT count(*) FROM events") == 2500


async def test_an_import_that_is_run_again(store: AsyncEventStore, database: Database) -> None:
    events = [Event("T", f"a{i}", {"n": i}, metadata=None if i % 2 else {"m": i}, id=f"e{i}") for i in range(2500)]
    await store.store_batch(events[5:8])
    with pytest.raises(DatabaseError):
        await store.import_events(events, chunk_size=1000)
    assert await store.import_events(events, chunk_size=1000, skip_existing=True) == 2497
    assert await store.import_events(events, chunk_size=1000, skip_existing=True) == 0
    assert [event.data["n"] async for event in store.read()] == [5, 6, 7, *range(5), *range(8, 2500)]
    with pytest.raises(DuplicateEventError) as taken:
        await store.import_events([Event("T", "new"), Event("T", "other", id="e5")], skip_existing=True)
    assert (taken.value.event_id, taken.value.version) == ("e5", (await store.get("e5")).version)
    assert database.value("SELECT count(*) FROM events") == 2500


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"aggregate_id": ""}, EncodeError, "aggregate_id"),
    ({"event_type": ""}, EncodeError, "event_type"),
    ({"id": ""}, EncodeError, "id"),
    ({"aggregate_id": "a\0"}, EncodeError, "NUL"),
    ({"event_type": 5}, EncodeError, "event_type"),
    ({"id": "\ud800"}, EncodeError, "id"),
    ({"data": float("nan")}, EncodeError, "data"),
    ({"data": {"a": [1, float("inf")]}}, EncodeError, r'data\["a"\]\[1\]'),
    ({"data": "\0"}, EncodeError, "NUL"),
    ({"data": {"k\0": 1}}, EncodeError, "NUL"),
    ({"data": "\ud800"}, EncodeError, "surrogate"),
    ({"data": b"x"}, EncodeError, "bytes"),
    ({"data": {"s": {1, 2}}}, EncodeError, "set"),
    ({"metadata": {"b": b"x"}}, EncodeError, "metadata"),
    ({"metadata": [1]}, EncodeError, "metadata"),
]


@pytest.mark.parametrize(("change", "error", "says"), BAD)
async def test_bad_events_are_refused_before_sending(
    store: AsyncEventStore, database: Database, change: dict[str, Any], error: type[Exception], says: str
) -> None:
    given: dict[str, Any] = {"event_type": "T", "aggregate_id": "a"}
    with pytest.raises(error, match=says):
        await store.store_batch([Event("T", "good"), Event(**{**given, **change})])
    assert database.value("SELECT count(*) FROM events") == 0
    assert database.value("SELECT is_called FROM events_version_seq") is False


async def test_expectations_that_make_no_sense(store: AsyncEventStore) -> None:
    for wrong in (-1, True, "1", 2**63):
        with pytest.raises(IncompatibleVersionError):
            await store.store(Event("T", "a"), expected=wrong)  # type: ignore[arg-type]
    with pytest.raises(OptionsError):
        await store.store([Event("T", "a"), Event("T", "b")], expected=NO_STREAM)
    with pytest.raises(OptionsError):
        await store.store([])


async def test_limits_of_go_sync_kits_trigger(go_store: AsyncEventStore, database: Database) -> None:
    """56 bytes work and 57 do not, in bytes and not in characters; the notification has 7999."""
    await go_store.store(Event("T", "x" * 56))
    await go_store.store(Event("T", "ü" * 28))
    for too_long in ("x" * 57, "ü" * 28 + "x"):
        with pytest.raises(AggregateIdTooLongError) as refused:
            await go_store.store(Event("T", too_long))
        assert (refused.value.size_bytes, refused.value.limit_bytes) == (57, 56)
    with pytest.raises(PayloadTooLargeError):
        await go_store.store(Event("T" * 7900, "a"))
    with pytest.raises(PayloadTooLargeError):
        await go_store.store(Event("\n" * 3950, "a"))
    with pytest.raises(PayloadTooLargeError):
        await go_store.store(Event("\x01" * 1310, "a"))
    await go_store.store(Event("T" * 7700, "a", {"big": "x" * 100_000}))
    assert database.value("SELECT last_value FROM events_version_seq") == 3, "nothing was burned"


async def test_no_such_limits_on_a_table_of_ours(our_store: AsyncEventStore) -> None:
    await our_store.store(Event("T" * 9000, "x" * 500))


async def test_a_lock_held_elsewhere_delays_only_its_aggregate(our_store: AsyncEventStore, database: Database) -> None:
    oid = our_store.layout()["oid"]
    with database.connect() as holder:
        holder.execute("BEGIN")
        holder.execute("SELECT pg_advisory_xact_lock(%s::oid::int, hashtext('held') & 1023)", (oid,))
        held = [asyncio.create_task(our_store.store(Event("T", "held"))) for _ in range(2)]
        held.append(asyncio.create_task(our_store.store(Event("T", "held"), expected=NO_STREAM)))
        await eventually(lambda: our_store.stats()["store_alone"] >= 2, "those that wait have stepped aside")
        for i in range(20):
            await asyncio.wait_for(our_store.store(Event("T", f"free{i}"), expected=NO_STREAM), 20)
        assert not any(task.done() for task in held)
        holder.execute("COMMIT")
    results = await asyncio.gather(*held, return_exceptions=True)
    assert sum(isinstance(result, WrongExpectedVersionError) for result in results) <= 1
    assert len(await our_store.load_by_aggregate("held")) == 3 - sum(isinstance(r, Exception) for r in results)


def waits_for_a_lock(database: Database) -> bool:
    """Whether a session of this database does."""
    return bool(
        database.value(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND wait_event_type = 'Lock'", database.name
        )
    )


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
async def test_expectations_hold_whatever_isolation_is_the_default(database: Database, level: str) -> None:
    """Whoever waited for an aggregate must see what was committed meanwhile, and not what was there before."""
    with database.connect() as admin:
        admin.execute(f"ALTER DATABASE {database.name} SET default_transaction_isolation = '{level}'".encode())
    async with (
        AsyncEventStore(database.dsn) as store,
        await psycopg.AsyncConnection.connect(database.dsn) as connection,
    ):
        first = await store.store(Event("T", "a", 1))
        await connection.set_isolation_level(psycopg.IsolationLevel.READ_COMMITTED)
        await store.store_in(connection, Event("T", "a", 2))
        late = asyncio.create_task(store.store(Event("T", "a", 3), expected=first.version))
        await eventually(lambda: store.stats()["store_waiting"] == 1, "the other one waits")
        await connection.commit()
        with pytest.raises(WrongExpectedVersionError):
            await late


async def test_an_import_waits_for_expectations(our_store: AsyncEventStore, database: Database) -> None:
    async with await psycopg.AsyncConnection.connect(database.dsn) as connection:
        await our_store.store_in(connection, Event("T", "a", 1), expected=NO_STREAM)
        importing = asyncio.create_task(our_store.import_events([Event("T", "b", 2), Event("T", "a", 3)]))
        await eventually(lambda: waits_for_a_lock(database), "the import waits")
        assert not importing.done()
        await connection.commit()
    assert await importing == 2
    assert [event.data for event in await our_store.load()] == [1, 2, 3]


@pytest.mark.parametrize("ends", [pytest.param(True, id="that ends"), pytest.param(False, id="that goes on")])
async def test_a_query_given_up_stands_in_nobodys_way(database: Database, *, ends: bool) -> None:
    """Whoever got its connection would wait for its end."""
    async with AsyncEventStore(database.dsn, batch_size=1, max_open_conns=1) as store:
        await store.store_batch([Event("T", "a", number) for number in range(10)])
        # On a slow machine it may be taken back before it has ended.
        for _ in range(10 if ends else 1):
            events = store.read()
            assert (await anext(events)).data == 0
            await eventually(lambda: store.stats()["in_use"] == 0, "pages are read ahead, and no more")
            with database.connect() as other, other.transaction():
                other.execute("LOCK TABLE events")
                assert (await anext(events)).data == 1
                await eventually(lambda: waits_for_a_lock(database), "another page is asked for")
                await events.aclose()  # type: ignore[attr-defined]
                if ends:
                    other.execute("COMMIT")
                await eventually(lambda: store.stats()["in_use"] == 0, "it is done with")
                idle = store.stats()["idle"]
                await eventually(
                    lambda: not waits_for_a_lock(database), "it is taken back, although the lock is still held"
                )
            if idle == int(ends):
                return
        raise AssertionError("its connection should be idle" if ends else "its connection should be closed")


async def test_a_commit_in_doubt_is_resolved_by_id(our_store: AsyncEventStore, database: Database) -> None:
    """The session is killed over and over while calls are under way; each is stored exactly once."""
    got_through = asyncio.Event()

    async def kill() -> None:
        with database.connect() as admin:
            while True:
                admin.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
                # Not again before a call got through: on a slow machine connecting may take longer than the pause.
                got_through.clear()
                await asyncio.sleep(0.02)
                await got_through.wait()

    killing = asyncio.create_task(kill())
    results = []
    for i in range(100):
        results.append(await our_store.store(Event("T", "a", i, id=f"e{i}")))
        got_through.set()
    killing.cancel()
    await asyncio.wait([killing])
    # The last signal may still be on its way to a session of the old store.
    async with AsyncEventStore(database.dsn) as fresh:
        stored = await fresh.load()
    assert [event.data for event in stored] == list(range(100))
    assert [event.version for event in stored] == [result.version for result in results]


async def test_closing_waits_for_a_call_that_waits_for_a_lock(
    our_store: AsyncEventStore, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(async_event_log, "CLOSE_LIMIT", TIMEOUT_S)
    async with await psycopg.AsyncConnection.connect(database.dsn) as connection:
        await our_store.store_in(connection, Event("T", "a", 1), expected=NO_STREAM)
        late = asyncio.create_task(our_store.store(Event("T", "a", 2)))
        await eventually(lambda: our_store.stats()["store_waiting"] == 1, "it waits")
        closing = asyncio.create_task(our_store.close())
        done, _ = await asyncio.wait([closing, late], timeout=0.5)
        assert not done
        await connection.commit()
    assert (await late).version == 2
    await closing


async def test_after_close(our_store: AsyncEventStore) -> None:
    pending = asyncio.create_task(our_store.store(Event("T", "a")))
    await asyncio.sleep(0)
    await our_store.close()
    await asyncio.gather(pending, return_exceptions=True)
    for call in (our_store.store(Event("T", "a")), our_store.load(), our_store.latest_version(), our_store.get("x")):
        with pytest.raises(StoreClosedError):
            await call
    await our_store.close()


def test_from_threads(database: Database) -> None:
    with EventStore(database.dsn) as store:
        result = store.store(Event("T", "a"), expected=NO_STREAM)
        assert store.store_batch([Event("T", "b"), Event("T", "c")])[-1].version == result.version + 2
        assert [event.aggregate_id for event in store.load()] == ["a", "b", "c"]
        assert [event.aggregate_id for event in store.read(backwards=True)] == ["c", "b", "a"]
        assert store.import_events(Event("T", "i") for _ in range(10)) == 10


def test_a_forked_child_does_not_count_for_its_parent(database: Database) -> None:
    with EventStore(database.dsn) as store:
        store.store(Event("T", "a"))
        if (child := os.fork()) == 0:
            os._exit(0 if store.stats() == {} else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert store.stats()["stored"] == 1


async def test_a_table_whose_name_has_quotes(database: Database) -> None:
    async with AsyncEventStore(database.dsn, table_name='"o\'bri""en"') as store:
        await store.enable_guard()
        await store.enable_go_notifications()
        await store.enable_serial_order()
        await store.store(Event("T", "a", 1), expected=NO_STREAM)
        assert [event.data for event in await store.load()] == [1]


async def test_pool_limits(database: Database) -> None:
    async with AsyncEventStore(
        database.dsn, max_open_conns=2, max_idle_conns=1, conn_max_idle_time=0.1, enable_prepared_stmts=False
    ) as store:

        async def is_one_too_many() -> bool:
            await asyncio.gather(*(store.load() for _ in range(20)))
            return bool(store.stats()["max_idle_closed"] > 0)

        await eventually(is_one_too_many, "two were open, and one of them is closed")
        stats = store.stats()
        assert stats["max_open_connections"] == 2
        assert stats["wait_count"] > 0
        await eventually(lambda: store.stats()["open_connections"] == 0, "idle ones are closed")
        assert store.stats()["max_idle_time_closed"] > 0
    async with AsyncEventStore(database.dsn, conn_max_lifetime=0.01) as store:
        await asyncio.sleep(0.02)
        await store.load()
        await eventually(lambda: store.stats()["max_lifetime_closed"] > 0, "an old one is closed")


async def test_a_connection_through_which_nothing_is_prepared(database: Database) -> None:
    async with AsyncEventStore(database.dsn, enable_prepared_stmts=False) as store:
        await store.store(Event("T", "a"), expected=NO_STREAM)
        await store.load()
        with database.connect() as admin:
            queries = (
                "SELECT query FROM pg_stat_activity WHERE datname = current_database() AND query LIKE '%PREPARE%'"
                " AND pid <> pg_backend_pid()"
            )
            assert admin.execute(queries).fetchall() == []


CALLS: dict[str, Callable[[AsyncEventStore], Awaitable[Any]]] = {
    "store": lambda store: store.store(Event("T", "b")),
    "expected": lambda store: store.store(Event("T", uuid.uuid4().hex), expected=NO_STREAM),
    "batch": lambda store: store.store_batch([Event("T", "b"), Event("T", "c")]),
    "import": lambda store: store.import_events([Event("T", "b")]),
    "skip_existing": lambda store: store.import_events([Event("T", "b")], skip_existing=True),
    "load": lambda store: store.load(1),
    "load_by_aggregate": lambda store: store.load_by_aggregate("a"),
    "durable_subscriptions": lambda store: store.durable_subscriptions(),
}


@pytest.mark.parametrize("others", ["DEALLOCATE", "PREPARE"])
async def test_a_pooler_that_knows_no_prepared_statements(pgbouncer_program: str, others: str) -> None:
    """It puts sessions behind a connection where ours are missing, or where others have the names that come next."""
    with (
        OwnPostgres() as server,
        PgBouncer(pgbouncer_program, server.database, "transaction", pool_size=1) as pooler,
        Database(pooler.dsn).connect() as other,
    ):
        other.prepare_threshold = None
        for name, call in CALLS.items():
            async with AsyncEventStore(patient(pooler.dsn), listen_dsn=server.database.dsn) as store:
                await store.store(Event("T", "a", id=f"{name} {others}"))
                if others == "DEALLOCATE":
                    for each in CALLS.values():
                        await each(store)
                    other.execute("DEALLOCATE ALL")
                else:
                    numbers = "SELECT coalesce(max(substr(name, 2)::int), 0) FROM pg_prepared_statements"
                    row = other.execute(numbers).fetchone()
                    assert row is not None
                    for number in range(row[0] + 1, row[0] + 100):
                        other.execute(f"PREPARE s{number} AS SELECT 'of somebody else'".encode())
                await asyncio.wait_for(call(store), 20)
            other.execute("DEALLOCATE ALL")


async def test_statements_that_no_longer_fit_are_made_anew(our_store: AsyncEventStore, database: Database) -> None:
    for i in range(10):
        await our_store.store(Event("T", f"a{i}"))
        await our_store.load()
    with database.connect() as admin:
        admin.execute("ALTER TABLE events ALTER COLUMN event_type TYPE varchar(100)")
    await our_store.store(Event("T", "b"), expected=NO_STREAM)
    assert len(await our_store.load()) == 11


async def test_ids_that_are_not_given_grow_with_time(database: Database) -> None:
    """In this order PostgreSQL puts them at the end of their index."""
    ids = [Event("T", "a").id for _ in range(1000)]
    assert sorted(set(ids)) == ids
    assert {uuid.UUID(each).version for each in ids} == {7}
    made = dt.datetime.fromtimestamp(int(ids[-1].replace("-", "")[:12], 16) / 1000, dt.timezone.utc)
    async with AsyncEventStore(database.dsn) as store:
        stored = await store.store(Event("T", "a", id=ids[-1]))
    assert stored.created_at is not None
    assert abs(stored.created_at - made) < dt.timedelta(minutes=5)


async def test_texts_of_our_table_are_compared_as_bytes(our_store: AsyncEventStore, database: Database) -> None:
    """In whatever language the database is: its rules would slow every insert into an index down."""
    await our_store.open()
    others = database.value(
        "SELECT string_agg(attname, ' ') FROM pg_attribute WHERE attrelid = 'events'::regclass"
        " AND atttypid = 'text'::regtype AND attcollation <> 'pg_catalog.\"C\"'::regcollation"
    )
    assert others is None
