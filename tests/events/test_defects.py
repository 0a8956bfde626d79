"""What go-sync-kit's store gets wrong and ours must not: the rows of the list that no other test is about.

Elsewhere: lost and late events (test_order_model), the listener's loss and its return, several subscriptions on one
channel, their order and end, failing handlers (test_subscribing), lengths, expectations, ids, batches that fail
half-way (test_storing), table names, filters, versions, schema changes at start (test_reading), the recorded failures
of Go itself (test_go).
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import queue
from typing import Any

import pytest

from socketio_postgres import (
    AsyncEventStore,
    Event,
    EventNotFoundError,
    EventStore,
    EventStoreOptions,
    ForkedProcessError,
    InvalidConnectionError,
    NotificationPayload,
    OperationTimeoutError,
    OptionsError,
    StoreClosedError,
    UnknownOptionError,
)
from tests.fixtures.database import Database
from tests.fixtures.swallowing_proxy import swallowing_proxy
from tests.fixtures.waiting import TIMEOUT_S, eventually


async def test_a_failed_batch_leaves_no_transaction_open(store: AsyncEventStore, database: Database) -> None:
    """D5: thirty failures, of events and of the server, with a pool of two."""
    small = AsyncEventStore(database.dsn, max_open_conns=2)
    taken = await small.store(Event("T", "a", id="taken"))
    for _ in range(30):
        with pytest.raises(ValueError, match="set"):
            await small.store_batch([Event("T", "a"), Event("T", "a", {1, 2})])
        with pytest.raises(Exception, match="taken"):
            await small.store_batch([Event("T", "a"), Event("T", "b", id="taken")])
    assert await small.latest_version() == taken.version
    open_ones = "SELECT count(*) FROM pg_stat_activity WHERE state ~ '^idle in' AND datname = current_database()"
    # What ends a transaction may be on its way: the server's, or another statement's of the store.
    await eventually(lambda: database.value(open_ones) == 0, "no transaction stays open")
    await small.close()
    del store


async def test_nothing_listens_without_a_subscription(store: AsyncEventStore, database: Database) -> None:
    """D27, and no connection at all before the first call."""
    await store.store(Event("T", "a"))
    await store.load()
    listening = (
        "SELECT count(*) FROM pg_stat_activity WHERE strpos(query, 'LISTEN') = 1 AND datname = current_database()"
    )
    assert database.value(listening) == 0
    assert not store.is_listener_connected
    idle = AsyncEventStore(database.dsn)
    assert idle.stats()["open_connections"] == 0
    await idle.close()


async def test_one_notification_for_a_statement(our_store: AsyncEventStore, database: Database) -> None:
    """D26: Go sends two for each row."""
    channel = f"sio_events_{our_store.layout()['oid']}"
    with database.connect() as listener:
        listener.execute(f"LISTEN {channel}".encode())
        await our_store.store_batch(Event("T", "a", i) for i in range(100))
        listener.execute(f"NOTIFY {channel}, 'end'".encode())
        heard = [notification.payload for notification in listener.notifies(timeout=TIMEOUT_S, stop_after=2)]
    assert heard == ["", "end"]


async def test_integers_keep_their_digits(store: AsyncEventStore) -> None:
    """D22."""
    numbers = [2**53 + 1, 2**64, -(10**40)]
    await store.store(Event("T", "a", numbers, metadata={"n": 2**53 + 1}))
    (event,) = await store.load()
    assert event.data == numbers
    assert event.metadata == {"n": 2**53 + 1}


async def test_every_wait_ends(database: Database) -> None:
    """D14, D16: a server that does not answer blocks nobody for ever, and any time limit is allowed."""
    async with AsyncEventStore(database.dsn) as store:
        with database.connect() as holder:
            holder.execute("BEGIN")
            holder.execute("LOCK TABLE events IN ACCESS EXCLUSIVE MODE")
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(store.load(), 0.05)
            with pytest.raises(OperationTimeoutError):
                await store.latest_version(timeout=0.05)
            holder.execute("COMMIT")
        assert len(await store.load()) == 0


def test_secrets_stay_out_of_descriptions() -> None:
    """D29: in both notations of a DSN."""
    for dsn in ("postgresql://me:hunter2@localhost/x", "user=me password=hunter2 host=localhost"):
        store = EventStore(dsn)
        assert "hunter2" not in store.description
        assert "localhost" in store.description
    with pytest.raises(OptionsError) as wrong:
        EventStore("postgresql://me:hunter2@localhost:notaport/x")
    assert "hunter2" not in str(wrong.value)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("table_name", "a.b.c"),
        ("table_name", 5),
        ("create_table", 1),
        ("max_open_conns", 0),
        ("max_idle_conns", -1),
        ("conn_max_lifetime", 0),
        ("conn_max_idle_time", "1"),
        ("notification_timeout", float("nan")),
        ("reconnect_interval", -1),
        ("max_reconnect_attempts", 0),
        ("poll_interval", 0),
        ("batch_size", 0),
        ("enable_prepared_stmts", "yes"),
        ("stall_warning", None),
        ("logger", "log"),
        ("error_handler", 5),
        ("password", "secret"),
        ("listen_dsn", 5),
    ],
)
def test_no_option_is_ignored(option: str, value: Any) -> None:
    """D11, D12, D18: each is checked, and one that does not exist is an error."""
    with pytest.raises(OptionsError) as wrong:
        AsyncEventStore("", **{option: value})
    assert wrong.value.option == option
    assert "secret" not in str(wrong.value)


def test_an_option_that_does_not_exist() -> None:
    with pytest.raises(UnknownOptionError, match="batch_size"):
        AsyncEventStore("", batchsize=5)  # type: ignore[call-arg]


def test_options_as_an_object(database: Database) -> None:
    options = EventStoreOptions(database.dsn, table_name="other", batch_size=7, logger=logging.getLogger("mine"))
    with EventStore.from_options(options) as store:
        assert store.options == options
        assert store.layout()["table_name"] == '"other"'
    with EventStore.from_connection_string(database.dsn) as store, pytest.raises(EventNotFoundError):
        store.get("nobody")
    with pytest.raises(StoreClosedError):
        store.load()


async def test_another_process_must_have_a_store_of_its_own(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, unused = AsyncEventStore(database.dsn), AsyncEventStore(database.dsn)
    await store.open()
    monkeypatch.setattr("os.getpid", lambda: -1)
    with pytest.raises(ForkedProcessError):
        await store.load()
    monkeypatch.undo()
    await store.close()
    await unused.close()


async def test_listening_through_something_that_swallows_it(database: Database) -> None:
    """D13: the one error that Go declares for a connection that is of no use, and never returns."""
    async with swallowing_proxy(database) as dsn:
        store = AsyncEventStore(database.dsn, listen_dsn=dsn, notification_timeout=2.0)
        with pytest.raises(InvalidConnectionError, match="session mode"):
            await asyncio.wait_for(anext(store.subscribe()), TIMEOUT_S)
        await store.close()


async def test_metrics_and_health(store: AsyncEventStore) -> None:
    await store.store(Event("T", "a"))
    async with store.subscribe() as live:
        await live.next(TIMEOUT_S)
        await eventually(lambda: store.stats()["is_listening"], "it listens")
        stats = store.stats()
    assert stats["stored"] == 1
    assert stats["subscriptions"] == 1
    assert {"max_open_connections", "open_connections", "in_use", "idle", "wait_count", "wait_duration"} <= stats.keys()


async def test_a_time_beyond_those_of_python(store: AsyncEventStore, database: Database) -> None:
    """PostgreSQL knows times up to infinity; the nearest one that Python has stands for them."""
    with database.connect() as admin:
        admin.execute("ALTER TABLE events ALTER created_at SET DEFAULT 'infinity'")
    result = await asyncio.wait_for(store.store(Event("T", "a")), TIMEOUT_S)
    last = dt.datetime.max.replace(tzinfo=dt.timezone.utc)
    assert result.created_at == last
    with database.connect() as admin:
        admin.execute("ALTER TABLE events ALTER created_at SET DEFAULT '-infinity'")
    await asyncio.wait_for(store.store(Event("T", "a")), TIMEOUT_S)
    first = dt.datetime.min.replace(tzinfo=dt.timezone.utc)
    assert [event.created_at for event in await store.load()] == [last, first]


def test_the_error_handler_of_a_blocking_store_may_be_a_coroutine_function(database: Database) -> None:
    told: queue.Queue[Exception] = queue.Queue()

    async def note(error: Exception) -> None:
        await asyncio.sleep(0)
        told.put(error)

    def fail(payload: NotificationPayload) -> None:
        raise LookupError(payload.aggregate_id)

    with EventStore(database.dsn, error_handler=note) as store:
        store.subscribe_to_all(fail)
        store.store(Event("T", "a"))
        assert repr(told.get(timeout=TIMEOUT_S)) == "LookupError('a')"
