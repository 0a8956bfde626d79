"""Notifications that are no text: in an SQL_ASCII database anybody may send any bytes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import psycopg
import pytest

from socketio_postgres import (
    NO_STREAM,
    AsyncEmitter,
    AsyncEventStore,
    AsyncPostgresClient,
    DecodeError,
    Event,
    EventStore,
    Notification,
    PostgresClient,
    WrongExpectedVersionError,
)
from tests.fixtures.bus import acquainted, serving
from tests.fixtures.clients import PythonClient
from tests.fixtures.database import Database
from tests.fixtures.postgres import LISTENS, sessions, the_session
from tests.fixtures.waiting import TIMEOUT_S, eventually

NO_TEXT = (b"\xff", b"caf\xe9", b"\xe2\x82", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"x" * 7998 + b"\xff")
"""Each is no UTF-8: never, Latin-1, cut, overlong, half a surrogate pair, beyond Unicode, as long as can be."""


@pytest.fixture
def encoding() -> str:
    """The one that checks nothing."""
    return "SQL_ASCII"


def send(connection: psycopg.Connection, channel: str, *payloads: bytes) -> None:
    """Notify in one transaction, so that nothing can come between."""
    with connection.transaction():
        for payload in payloads:
            connection.execute("SELECT pg_notify(%s, convert_from(%s, 'SQL_ASCII'))", [channel, payload])


@pytest.fixture
def connection(database: Database) -> Iterator[psycopg.Connection]:
    with database.connect() as connection:
        yield connection


async def test_a_client_skips_and_reports_them(database: Database, connection: psycopg.Connection) -> None:
    failures: list[Exception] = []
    gaps: list[object] = []
    async with AsyncPostgresClient(database.dsn, error_handler=failures.append, on_gap=gaps.append) as client:
        await client.listen("jobs")
        listener = await the_session(database, LISTENS)
        for number, payload in enumerate(NO_TEXT, 1):
            send(connection, "jobs", "vorher ü".encode(), payload, b"after")
            found = [await client.wait_for_notification(TIMEOUT_S) for _ in range(2)]
            assert found == [Notification("jobs", text, connection.info.backend_pid) for text in ("vorher ü", "after")]
            assert len(failures) == client.stats()["undecodable"] == number
            failure = failures[-1]
            assert isinstance(failure, DecodeError)
            assert (failure.channel, failure.size_bytes) == ("jobs", len(payload))
            assert "UTF-8" in failure.reason
        await client.listen("more")  # the session still takes requests
        await client.notify("more", "é")
        assert (await client.wait_for_notification(TIMEOUT_S)).payload == "é"
        assert sessions(database, LISTENS) == [listener], "it is the same session"
        assert gaps == []


def test_a_blocking_client_does(database: Database, connection: psycopg.Connection) -> None:
    failures: list[Exception] = []
    with PostgresClient(database.dsn, error_handler=failures.append) as client:
        client.listen("jobs")
        send(connection, "jobs", b"\xff\xfe", b"after")
        assert client.wait_for_notification(TIMEOUT_S).payload == "after"
    # The handler is called in a thread of its own.
    asyncio.run(eventually(lambda: failures, "it is told"))
    assert [type(failure) for failure in failures] == [DecodeError]


async def test_a_flood_of_them_holds_nothing_up(database: Database, connection: psycopg.Connection) -> None:
    count = 5000
    async with AsyncPostgresClient(database.dsn) as client:
        await client.listen("jobs")
        with connection.transaction():
            connection.execute(
                "SELECT pg_notify('jobs', convert_from('\\xff', 'SQL_ASCII') || n), pg_notify('jobs', 'good ' || n) "
                "FROM generate_series(1, %s) AS n",
                [count],
            )
        for number in range(1, count + 1):
            assert (await client.wait_for_notification(TIMEOUT_S)).payload == f"good {number}"
        assert client.stats()["undecodable"] == count
        assert client.stats()["listener_reconnects"] == 0


async def test_a_manager_skips_and_reports_them(database: Database, connection: psycopg.Connection) -> None:
    async with serving(database) as ours, AsyncEmitter(database.dsn) as io:
        await acquainted(ours)
        client = await PythonClient.connect(ours.url)
        for number, payload in enumerate(NO_TEXT, 1):
            send(connection, "socket.io#/", payload)
            await io.emit("tick", number, "日本")
            await client.wait_for("tick", number)
            await eventually(lambda number=number: len(ours.errors) == number, "it is reported")  # type: ignore[misc]
        assert client.received("tick") == [(number, "日本") for number in range(1, len(NO_TEXT) + 1)]
        assert {type(error) for error in ours.errors} == {DecodeError}
        stats = ours.manager.stats()
        assert stats["undecodable"] == len(NO_TEXT)
        assert (stats["gaps"], stats["listener_reconnects"]) == (0, 0)
        await client.disconnect()


async def test_valid_json_with_wrong_bytes_inside_is_not_guessed_at(
    database: Database, connection: psycopg.Connection
) -> None:
    event = b'{"type":3,"uid":"emitter","nsp":"/","data":{"opts":{},"packet":{"type":2,"data":["tick","%s"]}}}'
    async with serving(database) as ours:
        await acquainted(ours)
        client = await PythonClient.connect(ours.url)
        send(connection, "socket.io#/", event % b"caf\xe9", event % "café".encode())
        assert await client.wait_for("tick") == [("café",)]
        await eventually(lambda: ours.errors, "it is reported")
        assert [type(error) for error in ours.errors] == [DecodeError]
        await client.disconnect()


async def test_the_event_store_wakes_up_all_the_same(database: Database, connection: psycopg.Connection) -> None:
    channel = "SELECT 'sio_events_' || oid FROM pg_class WHERE relname = 'events'"
    async with AsyncEventStore(database.dsn) as store, store.subscribe() as live:
        await eventually(lambda: store.stats()["is_listening"], "it hears what is stored")
        await store.store(Event("Opened", "agg", {"text": "日本"}))
        assert (await live.next(TIMEOUT_S)).data == {"text": "日本"}
        # The store knows of its own event without the notification, which comes later.
        await eventually(lambda: store.stats()["notifications"] == 1, "the notification of the first event")
        send(connection, str(database.value(channel)), *NO_TEXT)
        await eventually(lambda: store.stats()["notifications"] == 1 + len(NO_TEXT), "they are counted")
        await store.store(Event("Closed", "agg"))
        assert (await live.next(TIMEOUT_S)).event_type == "Closed"
        assert store.stats()["listener_reconnects"] == 0


async def test_events_are_stored_in_a_transaction_of_the_users(database: Database) -> None:
    """Text is bytes to psycopg here."""
    async with AsyncEventStore(database.dsn) as store:
        async with await psycopg.AsyncConnection.connect(database.dsn) as connection:
            stored = await store.store_in(connection, Event("T", "agg", 1), expected=NO_STREAM)
            with pytest.raises(WrongExpectedVersionError):
                await store.store_in(connection, Event("T", "agg", 2), expected=NO_STREAM)
        with psycopg.connect(database.dsn) as connection, EventStore(database.dsn) as blocking:
            blocking.store_in(connection, Event("T", "agg", 2), expected=stored.version)
        assert [event.data for event in await store.load()] == [1, 2]


async def test_what_the_server_says_may_be_no_text(database: Database, connection: psycopg.Connection) -> None:
    """Texts of its messages come from functions that anybody may write."""
    connection.execute(
        "CREATE FUNCTION complain() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION '%', convert_from('\\xff', 'SQL_ASCII'); END $$"
    )
    async with serving(database) as ours:
        await acquainted(ours)
        connection.execute("CREATE TRIGGER complain BEFORE INSERT ON socket_io_attachments EXECUTE FUNCTION complain()")
        client = await PythonClient.connect(ours.url)
        await ours.sio.emit("large", "x" * 10_000)
        await ours.sio.emit("small")
        await client.wait_for("small")
        await client.disconnect()
