"""Mistakes of the caller: a typed error at the call, and nothing on the wire."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
import socketio
from psycopg.conninfo import make_conninfo

from socketio_postgres import (
    AsyncEmitter,
    AsyncPostgresClient,
    AsyncPostgresManager,
    ConnectionLostError,
    DatabaseError,
    Emitter,
    EncodeError,
    OptionsError,
    PayloadTooLargeError,
    PostgresClient,
    SocketIOPostgresError,
)
from socketio_postgres._cluster import runner
from socketio_postgres.demo.embedded import EmbeddedPostgres, free_port
from tests.fixtures.bus import Serving, acquainted, serving
from tests.fixtures.clients import PythonClient
from tests.fixtures.database import Database
from tests.fixtures.spy import Spy, spying
from tests.fixtures.waiting import TIMEOUT_S, eventually, nothing_arrives

Emit = Callable[..., Awaitable[None]]
"""`emit(event, argument, namespace="/")` of any sender."""

PASSWORD = "hunter2-and-more"

CIRCLE: list[Any] = [1]
CIRCLE.append({"again": CIRCLE})
TOO_DEEP: list[Any] = []
for _ in range(200):
    TOO_DEEP = [TOO_DEEP]


# ------------------------------------------------------------------------------------------------ what is emitted


@asynccontextmanager
async def emitter(database: Database) -> AsyncIterator[Emit]:
    io = Emitter(database.dsn, max_payload=50_000)

    async def emit(event: Any, argument: Any, namespace: Any = "/") -> None:
        await asyncio.to_thread(io.of(namespace).emit, event, argument)

    yield emit
    await asyncio.to_thread(io.close)


@asynccontextmanager
async def async_emitter(database: Database) -> AsyncIterator[Emit]:
    async with AsyncEmitter(database.dsn, max_payload=50_000) as io:

        async def emit(event: Any, argument: Any, namespace: Any = "/") -> None:
            await io.of(namespace).emit(event, argument)

        yield emit


@asynccontextmanager
async def write_only_manager(database: Database) -> AsyncIterator[Emit]:
    manager = AsyncPostgresManager(database.dsn, write_only=True, max_payload=50_000)

    async def emit(event: Any, argument: Any, namespace: Any = "/") -> None:
        await manager.emit(event, argument, namespace)

    yield emit
    await manager.close()


@asynccontextmanager
async def server(database: Database) -> AsyncIterator[Emit]:
    async with serving(database, max_payload=50_000) as ours:

        async def emit(event: Any, argument: Any, namespace: Any = "/") -> None:
            await ours.sio.emit(event, argument, namespace=namespace)

        yield emit


SENDERS = [emitter, async_emitter, write_only_manager, server]

BAD_CALLS: dict[str, tuple[tuple[Any, ...], type[Exception], str]] = {
    "an object": (("e", {"user": [object()]}), EncodeError, r'args\[0\]\["user"\]\[0\]'),
    "an object beside binary": (("e", [b"x", {"y": object()}]), EncodeError, r'args\[0\]\[1\]\["y"\]'),
    "a set": (("e", {1, 2}), EncodeError, r"args\[0\]: .*set"),
    "NaN": (("e", [float("nan")]), EncodeError, r"args\[0\]\[0\]: NaN"),
    "Infinity": (("e", float("inf")), EncodeError, r"args\[0\]: inf"),
    "itself": (("e", CIRCLE), EncodeError, "contains itself"),
    "too deep": (("e", TOO_DEEP), EncodeError, "deeper than 100"),
    "a key": (("e", {(1, 2): 3}), EncodeError, r"keys must be"),
    "large text": (("e", "x" * 50_001), PayloadTooLargeError, "limit is 50000"),
    "large binary": (("e", b"x" * 50_001), PayloadTooLargeError, "limit is 50000"),
    "a long namespace": (("e", 1, "/" + "x" * 53), PayloadTooLargeError, "channel name .*64 bytes, the limit is 63"),
    "a long namespace of few letters": (("e", 1, "/" + "é" * 27), PayloadTooLargeError, "65 bytes"),
    "no event": (("", 1), OptionsError, "event"),
    "None as event": ((None, 1), OptionsError, "event"),
    "a number as event": ((5, 1), OptionsError, "event"),
    "bytes as event": ((b"e", 1), OptionsError, "event"),
    "NUL in a namespace": (("e", 1, "/\0"), OptionsError, "channel"),
}


@pytest.mark.parametrize("sender", SENDERS, ids=lambda sender: sender.__name__)
async def test_nothing_is_sent(database: Database, sender: Any) -> None:
    """Every mistake is told by the call that makes it; the spy sees only what follows them all."""
    spy: Spy
    async with spying(database) as spy, sender(database) as emit:
        for name, (call, kind, text) in BAD_CALLS.items():
            with pytest.raises(kind, match=text) as caught:
                await emit(*call)
            assert isinstance(caught.value, SocketIOPostgresError), name
        await emit("end", 1)
        await spy.wait_for_broadcast("end")
        assert [frame.header["type"] for frame in spy.frames if frame.header["type"] not in (1, 2)] == [3]


async def test_a_mistake_reaches_no_local_client_either(database: Database) -> None:
    async with serving(database) as ours:
        await acquainted(ours)
        client = await PythonClient.connect(ours.url)
        for bad in (object(), float("nan"), CIRCLE):
            with pytest.raises(EncodeError):
                await ours.sio.emit("bad", bad)
        await ours.sio.emit("end")
        await client.wait_for("end")
        assert [event.name for event in client.events] == ["end"]
        await client.disconnect()


@pytest.mark.parametrize("room", [b"red", 1.5, True, "", ["red", None], [["red"]], {"red": 1}])
async def test_a_bad_room_is_refused(database: Database, room: Any) -> None:
    manager = AsyncPostgresManager(database.dsn, write_only=True)
    async with spying(database) as spy:
        calls: list[Callable[[], Awaitable[Any]]] = [
            lambda: manager.enter_room("sid", "/", room),
            lambda: manager.leave_room("sid", "/", room),
            lambda: manager.close_room(room),
            lambda: manager.emit("e", 1, room=room),
            lambda: manager.emit("e", 1, to=room),
        ]
        for call in calls:
            with pytest.raises(OptionsError):
                await call()
        await manager.emit("end", None)
        await spy.wait_for_broadcast("end")
        assert len(spy.frames) == 1
    await manager.close()


async def test_a_client_cannot_connect_to_a_namespace_with_too_long_a_name(database: Database) -> None:
    long = "/" + "x" * 60
    async with serving(database, ["/", long]) as ours:
        with pytest.raises(socketio.exceptions.ConnectionError, match="namespaces failed to connect"):
            await PythonClient.connect(ours.url, namespace=long)
        client = await PythonClient.connect(ours.url)
        await ours.sio.emit("hello", 1)
        assert await client.wait_for("hello") == [(1,)]
        assert [type(error) for error in ours.errors].count(PayloadTooLargeError) >= 1
        assert all(isinstance(error, PayloadTooLargeError) for error in ours.errors)
        assert ours.server.sids(long) == set()
        await client.disconnect()


# --------------------------------------------------------------------------------------------------- where it goes


class Guarded:
    """A server of its own that asks `alice` for her password."""

    def __init__(self, postgres: EmbeddedPostgres) -> None:
        self.postgres = postgres
        with psycopg.connect(postgres.dsn(), autocommit=True) as admin:
            admin.execute(f"CREATE ROLE alice LOGIN PASSWORD '{PASSWORD}'")
            rules = Path(postgres.data_dir, "pg_hba.conf")
            rules.write_text("host all alice 127.0.0.1/32 scram-sha-256\n" + rules.read_text())
            admin.execute("SELECT pg_reload_conf()")
        self._wait_until_it_asks()

    def _wait_until_it_asks(self) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while time.monotonic() < deadline:
            try:
                psycopg.connect(self.dsn("wrong"), connect_timeout=30).close()
            except psycopg.OperationalError as error:
                if "password" in str(error):  # and not that a busy server did not answer
                    return
        raise AssertionError("the server never asks for a password")

    def dsn(self, password: str | None = PASSWORD, **parameters: Any) -> str:
        """How alice connects."""
        secret = {} if password is None else {"password": password}
        return make_conninfo(self.postgres.dsn(user="alice"), **secret, **parameters)


@pytest.fixture(scope="module")
def guarded() -> Iterator[Guarded]:
    with EmbeddedPostgres() as postgres:
        yield Guarded(postgres)


OPENERS: dict[str, Callable[..., Any]] = {
    "AsyncPostgresManager": AsyncPostgresManager,
    "write-only manager": lambda dsn, **options: AsyncPostgresManager(dsn, write_only=True, **options),
    "AsyncEmitter": AsyncEmitter,
    "Emitter": Emitter,
    "AsyncPostgresClient": AsyncPostgresClient,
    "PostgresClient": PostgresClient,
}


async def start(opener: str, dsn: str, **options: Any) -> None:
    """Open and close again; a failure to open is raised."""
    thing = OPENERS[opener](dsn, **options)
    is_async = inspect.iscoroutinefunction(thing.start)
    try:
        await asyncio.wait_for(thing.start() if is_async else asyncio.to_thread(thing.start), TIMEOUT_S)
    finally:
        with contextlib.suppress(SocketIOPostgresError):
            await (thing.close() if is_async else asyncio.to_thread(thing.close))


def secrets_in(error: BaseException | None) -> str:
    """Everything an error, and what caused it, shows."""
    text = ""
    while error is not None:
        text += f"{error} {error!r} {vars(error)}"
        error = error.__cause__ or error.__context__
    return text


@pytest.fixture
def no_password_in_the_log(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level(logging.DEBUG)
    yield
    assert PASSWORD not in caplog.text


@pytest.mark.parametrize("opener", OPENERS)
@pytest.mark.usefixtures("no_password_in_the_log")
class TestConnecting:
    async def test_the_right_password(self, guarded: Guarded, opener: str) -> None:
        if "anager" in opener:
            with psycopg.connect(guarded.postgres.dsn(), autocommit=True) as admin:
                admin.execute("GRANT CREATE ON SCHEMA public TO alice")
        await start(opener, guarded.dsn())
        await start(opener, guarded.dsn(None), password=lambda: PASSWORD)

    async def test_a_wrong_password(self, guarded: Guarded, opener: str) -> None:
        with pytest.raises(DatabaseError) as caught:
            await start(opener, guarded.dsn("wrong" + PASSWORD))
        assert caught.value.sqlstate == "28P01"
        assert "alice" in str(caught.value)
        assert PASSWORD not in secrets_in(caught.value)

    async def test_no_password(self, guarded: Guarded, opener: str) -> None:
        with pytest.raises(SocketIOPostgresError, match="password"):
            await start(opener, guarded.dsn(None))

    async def test_a_password_callable_that_fails(self, guarded: Guarded, opener: str) -> None:
        def ask() -> str:
            raise RuntimeError(f"the vault says {PASSWORD} is wrong")

        async def ask_later() -> str:
            raise RuntimeError(f"the vault says {PASSWORD} is wrong")

        for password in (ask, ask_later):
            with pytest.raises(ConnectionLostError, match=r"password callable.*RuntimeError") as caught:
                await start(opener, guarded.dsn(None), password=password)
            assert PASSWORD not in secrets_in(caught.value)

    async def test_a_password_callable_that_gives_something_else(self, guarded: Guarded, opener: str) -> None:
        with pytest.raises(SocketIOPostgresError, match="password"):
            await start(opener, guarded.dsn(None), password=lambda: 5)

    async def test_a_missing_database(self, guarded: Guarded, opener: str) -> None:
        with pytest.raises(DatabaseError, match="nowhere") as caught:
            await start(opener, guarded.dsn(dbname="nowhere"))
        assert caught.value.sqlstate == "3D000"
        assert not isinstance(caught.value, ConnectionLostError)
        assert PASSWORD not in secrets_in(caught.value)

    async def test_a_missing_role(self, guarded: Guarded, opener: str) -> None:
        with pytest.raises(DatabaseError, match="nobody") as caught:
            await start(opener, guarded.postgres.dsn(user="nobody"))
        assert caught.value.sqlstate == "28000"

    async def test_an_unreachable_server(self, opener: str) -> None:
        port = free_port()
        with pytest.raises(ConnectionLostError, match=rf"127\.0\.0\.1.*{port}") as caught:
            await start(opener, f"postgresql://alice:{PASSWORD}@127.0.0.1:{port}/app?connect_timeout=2")
        assert caught.value.may_be_sent is False
        assert PASSWORD not in secrets_in(caught.value)

    async def test_a_host_without_an_address(self, opener: str) -> None:
        with pytest.raises(ConnectionLostError, match=r"does-not-exist\.invalid") as caught:
            await start(opener, f"postgresql://alice:{PASSWORD}@does-not-exist.invalid/app?connect_timeout=5")
        assert PASSWORD not in secrets_in(caught.value)

    async def test_something_else_on_the_port(self, opener: str) -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(8)
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            writer.close()

        listening = await asyncio.start_server(answer, "127.0.0.1", 0)
        port = listening.sockets[0].getsockname()[1]
        with pytest.raises(ConnectionLostError) as caught:
            await start(opener, f"postgresql://alice:{PASSWORD}@127.0.0.1:{port}/app?connect_timeout=2")
        assert PASSWORD not in secrets_in(caught.value)
        listening.close()
        await listening.wait_closed()

    async def test_a_bad_dsn(self, opener: str) -> None:
        for dsn in (
            f"postgresql://alice:{PASSWORD}@db:99999/app",
            f"host=db password={PASSWORD} sslmode=perhaps",
            f"postgresql://alice:{PASSWORD}@db/app?unknown=1",
            f"host=db password='{PASSWORD}",
        ):
            with pytest.raises(OptionsError) as caught:
                await start(opener, dsn)
            assert PASSWORD not in secrets_in(caught.value)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let clients in after a second instead of ten when PostgreSQL does not answer."""
    monkeypatch.setattr(runner, "JOIN_LIMIT", 1.0)


@pytest.mark.usefixtures("no_password_in_the_log", "impatient")
async def test_a_background_failure_shows_no_password(guarded: Guarded) -> None:
    """A server whose password is wrong serves its own clients, and says what is wrong, without the password."""
    database = Database(guarded.dsn("wrong" + PASSWORD))
    ours = Serving(database)
    async with ours.server:
        client = await PythonClient.connect(ours.url)
        await ours.sio.emit("hello", 1)
        assert await client.wait_for("hello") == [(1,)]
        await eventually(lambda: ours.errors, "it is reported")
        for error in ours.errors:
            assert PASSWORD not in secrets_in(error)
        assert PASSWORD not in repr(ours.manager) + str(ours.manager.stats()) + ours.manager._node._bus.description
        await client.disconnect()
        with pytest.raises(SocketIOPostgresError) as caught:
            await ours.manager.flush()
        assert PASSWORD not in secrets_in(caught.value)
        await ours.manager.close()


async def test_no_right_to_create_the_table(guarded: Guarded) -> None:
    with psycopg.connect(guarded.postgres.dsn(), autocommit=True) as admin:
        admin.execute("REVOKE CREATE ON SCHEMA public FROM alice, PUBLIC; DROP TABLE IF EXISTS socket_io_attachments")
    manager = AsyncPostgresManager(guarded.dsn(), write_only=True)
    with pytest.raises(DatabaseError, match="may not create it") as caught:
        await manager.start()
    assert caught.value.sqlstate == "42501"
    assert "CREATE UNLOGGED TABLE" in (caught.value.hint or "")
    await manager.close()


@pytest.fixture(scope="module")
def standby() -> Iterator[str]:
    """A server that only reads, because it believes to be a copy of another."""
    with EmbeddedPostgres() as postgres:
        postgres.stop()
        Path(postgres.data_dir, "standby.signal").touch()
        postgres.start()
        with psycopg.connect(postgres.dsn()) as connection:
            assert connection.execute("SELECT pg_is_in_recovery()").fetchone() == (True,)
        yield postgres.dsn()


@pytest.mark.parametrize("opener", OPENERS)
async def test_a_standby(standby: str, opener: str) -> None:
    with pytest.raises(SocketIOPostgresError, match=r"standby|read-only|recovery") as caught:
        await start(opener, standby)
    assert isinstance(caught.value, DatabaseError)


async def test_an_emit_to_a_standby_fails_when_its_time_is_over(standby: str) -> None:
    io = AsyncEmitter(standby, buffer_age=0.3)
    with pytest.raises(DatabaseError, match=r"standby|read-only|recovery"):
        await asyncio.wait_for(io.emit("tick"), TIMEOUT_S)
    await io.close()


@pytest.mark.usefixtures("no_password_in_the_log", "impatient")
async def test_a_server_on_a_dead_database_serves_its_own_clients() -> None:
    ours = Serving(Database(f"postgresql://alice:{PASSWORD}@127.0.0.1:{free_port()}/app"), buffer_age=0.3)
    async with ours.server:
        connecting = asyncio.create_task(PythonClient.connect(ours.url))
        await ours.sio.emit("too early")
        client = await asyncio.wait_for(connecting, TIMEOUT_S)  # let in after JOIN_LIMIT
        await ours.sio.emit("hello", 1)
        assert await client.wait_for("hello") == [(1,)]
        await eventually(lambda: ours.errors, "it is reported")
        assert all(isinstance(error, ConnectionLostError) for error in ours.errors)
        await client.disconnect()
        await ours.manager.close()
    await nothing_arrives()
