"""Every wait of the core ends: one test for each row of the table "Waits" in docs/operations.md."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from psycopg.conninfo import make_conninfo

from socketio_postgres import (
    AsyncEmitter,
    AsyncPostgresClient,
    ClosedError,
    CommitInDoubtError,
    ConnectionLostError,
    DatabaseError,
    Message,
    MessageType,
    OperationTimeoutError,
    PostgresClient,
)
from socketio_postgres._bus.bus import Bus
from socketio_postgres._bus.handover import AsyncCalls
from socketio_postgres._bus.options import BusOptions
from tests.fixtures.bus import BusReader
from tests.fixtures.database import Database
from tests.fixtures.postgres import LISTENS, OwnPostgres, sessions
from tests.fixtures.program import Program
from tests.fixtures.proxy import Proxy
from tests.fixtures.waiting import eventually

T = TypeVar("T")

UID = "0123456789abcdef"
LIMIT_S = 5.0
"""Silence after which a statement is given up here, `heartbeat_timeout` of a manager. A busy server is silent, too."""
CONNECT_S = 4
"""The same for connecting."""
LOOK_UP_S = 8
"""The same where a process that has just begun is to reach the second host in that time."""
FETCH_S = 6
"""The same for a fetch: a listening session may be silent for half as long."""
CANCEL_S = 2.0
"""How long a last word is waited for then."""
SETUP_S = 5.0
"""The same while a listening session is being set up."""
CLOSE_S = 3.0
"""How long a statement that is under way may hold closing up, beyond the time that it was given."""
EXIT_S = 5.0
"""The same for what is buffered when the process ends."""
SLACK_S = 25.0
"""For a slow machine. A wait without an end does not end within it either."""

SSL_REQUEST = b"\x04\xd2\x16\x2f"
CANCEL_REQUEST = b"\x04\xd2\x16\x2e"


@pytest.fixture
def proxy(postgres: OwnPostgres) -> Iterator[Proxy]:
    with Proxy(postgres.database) as running:
        yield running


@contextlib.asynccontextmanager
async def bus_of(dsn: str, probe_interval: float = LIMIT_S / 2, **options: Any) -> AsyncIterator[Bus]:
    """A bus whose limits are short."""
    bus = Bus(BusOptions(dsn, **options), uid=lambda: UID, probe_interval=probe_interval)
    try:
        yield bus
    finally:
        await asyncio.wait_for(bus.close(0.0), CLOSE_S + SLACK_S)


async def start(bus: Bus) -> None:
    """Connect, in one attempt."""
    await bus.call(functools.partial(bus.core.start_publisher, False))


async def within(seconds: float, work: Awaitable[T]) -> T:
    """What ends in time."""
    return await asyncio.wait_for(work, seconds + SLACK_S)


# ------------------------------------------------------------------------------------------------------- connecting


@pytest.fixture
def black_hole() -> Iterator[int]:
    """A port that takes no connection and refuses none: its queue is full."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.socket())
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        while True:
            client = stack.enter_context(socket.socket())
            client.settimeout(0.5)
            try:
                client.connect(server.getsockname())
            except TimeoutError:
                break
        port: int = server.getsockname()[1]
        yield port


async def test_an_address_does_not_answer(black_hole: int) -> None:
    async with bus_of(f"host=127.0.0.1 port={black_hole} user=any connect_timeout=1") as bus:
        with pytest.raises(OperationTimeoutError, match="connect to"):
            await within(1, start(bus))


SILENT_RESOLVER = """
#include <netdb.h>
#include <string.h>
#include <unistd.h>
#include <dlfcn.h>

typedef int look_up(const char *, const char *, const struct addrinfo *, struct addrinfo **);

int getaddrinfo(const char *name, const char *service, const struct addrinfo *hints, struct addrinfo **found) {
    while (name != NULL && strcmp(name, "unknown.invalid") == 0)
        sleep(1);
    return ((look_up *)dlsym(RTLD_NEXT, "getaddrinfo"))(name, service, hints, found);
}
"""
LOOK_UP = """
import sys
from socketio_postgres import Emitter, OperationTimeoutError
io = Emitter(sys.argv[1])
try:
    io.start()
except OperationTimeoutError as error:
    print("given up:", error)
else:
    io.emit("arrives")
    io.flush()
    print("is committed")
"""


@pytest.fixture(scope="module")
def silent_resolver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that lets the look-up of one name take for ever, as with a name server that does not answer."""
    folder = tmp_path_factory.mktemp("resolver")
    source, library = folder / "resolver.c", folder / "resolver.so"
    source.write_text("#define _GNU_SOURCE\n" + SILENT_RESOLVER)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)  # noqa: S607
    return library


@pytest.mark.skipif(sys.platform != "linux", reason="the library replaces a function of Linux's C library")
@pytest.mark.parametrize(("others", "printed"), [("", "given up: "), (",127.0.0.1", "is committed")])
async def test_a_name_is_not_looked_up(postgres: OwnPostgres, silent_resolver: Path, others: str, printed: str) -> None:
    """The next host is tried, and the process ends although the system still looks."""
    hosts = "unknown.invalid" + others
    dsn = make_conninfo(postgres.database.dsn, host=hosts, connect_timeout=LOOK_UP_S)
    with Program(["-c", LOOK_UP, dsn], env={"LD_PRELOAD": str(silent_resolver)}) as program:
        assert await program.wait(LOOK_UP_S + EXIT_S + CLOSE_S + SLACK_S) == 0
        assert printed in program.output


STEPS = {"TLS": SSL_REQUEST, "authentication": b"user\0", "which server it is": b"pg_is_in_recovery"}


@pytest.mark.parametrize("step", STEPS)
async def test_a_step_of_connecting_is_not_answered(postgres: OwnPostgres, proxy: Proxy, step: str) -> None:
    """The next attempt is as good as the first."""
    trap = proxy.swallow_from(STEPS[step])
    async with bus_of(make_conninfo(proxy.dsn, connect_timeout=CONNECT_S)) as bus:
        with pytest.raises(OperationTimeoutError, match="connect to"):
            await within(CONNECT_S, start(bus))
        assert len(trap.caught) == 1
        await start(bus)


async def test_a_password_callable_does_not_return(postgres: OwnPostgres) -> None:
    """Nor does each attempt leave another thread behind that waits for it."""
    released = threading.Event()
    asked = itertools.count(1)
    latest = 0

    def password() -> str:
        nonlocal latest
        latest = next(asked)
        released.wait(60)
        return "secret"

    try:
        async with bus_of(make_conninfo(postgres.database.dsn, connect_timeout=1), password=password) as bus:
            for _ in range(6):
                with pytest.raises(OperationTimeoutError, match="read password and certificates"):
                    await within(1, start(bus))
        await eventually(lambda: latest == 4, "each thread has asked")
    finally:
        released.set()


async def test_those_who_wait_for_a_connection_share_the_attempt(postgres: OwnPostgres, proxy: Proxy) -> None:
    """Or the last of them would wait for as many attempts as there are."""
    trap = proxy.swallow_from(b"user\0", count=float("inf"))
    async with bus_of(make_conninfo(proxy.dsn, connect_timeout=1)) as bus:
        calls = [bus.call(bus.core.ensure_table) for _ in range(50)]
        ends = await within(2, asyncio.gather(*calls, return_exceptions=True))
        assert {type(end) for end in ends} == {OperationTimeoutError}
        assert len(trap.caught) <= 2


OPERATIONS: dict[str, tuple[str, tuple[Any, ...]]] = {
    "ensure table": ("ensure_table", ()),
    "insert attachment": ("insert_attachment", (b"body",)),
    "get attachment": ("get_attachment", (1,)),
    "expire attachments": ("expire_attachments", (30.0,)),
}


@pytest.fixture
def detour(postgres: OwnPostgres) -> Iterator[str]:
    """The DSN of two hosts, of which the first one says nothing for longer than a statement or a fetch may take."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        ports = f"{silent.getsockname()[1]},{postgres.port}"
        yield f"host=127.0.0.1,127.0.0.1 port={ports} user=postgres dbname=postgres connect_timeout={FETCH_S + 2}"


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_connecting_takes_no_time_from_a_statement(postgres: OwnPostgres, detour: str, operation: str) -> None:
    name, arguments = OPERATIONS[operation]
    async with bus_of(postgres.database.dsn) as direct:
        await direct.call(direct.core.ensure_table)
    async with bus_of(detour) as bus:
        await bus.call(functools.partial(getattr(bus.core, name), *arguments))


async def test_connecting_takes_no_time_from_a_fetch(postgres: OwnPostgres, detour: str) -> None:
    database = postgres.database
    async with (
        BusReader(database, dsn=detour, listen_dsn=database.dsn, heartbeat_timeout=FETCH_S) as reader,
        AsyncEmitter(database.dsn) as io,
    ):
        await io.emit("large", "x" * 10_000)
        assert await reader.wait_for(1) == [["large", "x" * 10_000]]
        assert reader.gap_infos == []
        assert reader.failures == []


async def test_connecting_takes_no_time_from_the_self_test(postgres: OwnPostgres, detour: str) -> None:
    async with bus_of(detour, listen_dsn=postgres.database.dsn, probe_interval=FETCH_S) as bus:
        await bus.call(bus.core.start_listener)
        await bus.call(bus.core.self_test)
        assert bus.stats()["publisher_reconnects"] == 0


# ------------------------------------------------------------------------------------------------------- statements

STATEMENTS = {
    "ensure table": b"to_regclass",
    "insert attachment": b"INSERT INTO",
    "get attachment": b"octet_length",
    "expire attachments": b"DELETE FROM",
}


@pytest.mark.parametrize("operation", STATEMENTS)
async def test_a_statement_is_not_answered(postgres: OwnPostgres, proxy: Proxy, operation: str) -> None:
    """One that writes is in doubt; the others may be asked again, on another connection."""
    name, arguments = OPERATIONS[operation]
    async with bus_of(postgres.database.dsn) as bus:
        await bus.call(bus.core.ensure_table)
    trap = proxy.swallow_from(STATEMENTS[operation])
    async with bus_of(proxy.dsn) as bus:
        run = functools.partial(getattr(bus.core, name), *arguments)
        with pytest.raises(ConnectionLostError, match=f"did not answer within {LIMIT_S:g} s") as caught:
            await within(LIMIT_S + CANCEL_S, bus.call(run))
        assert caught.value.may_be_sent == (operation == "insert attachment")
        await bus.call(run)
        assert len(trap.caught) == 1


async def test_a_fetch_is_not_answered(postgres: OwnPostgres, proxy: Proxy) -> None:
    database = postgres.database
    trap = proxy.swallow_from(STATEMENTS["get attachment"])
    async with (
        BusReader(database, dsn=proxy.dsn, listen_dsn=database.dsn, heartbeat_timeout=FETCH_S) as reader,
        AsyncEmitter(database.dsn) as io,
    ):
        await io.emit("large", b"x")
        assert await reader.wait_for(1) == [["large", b"x"]]
        assert reader.gap_infos == []
        assert len(trap.caught) == 1


QUEUE_IS_FULL = """
    CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN RAISE EXCEPTION 'the queue is full' USING ERRCODE = '54000'; END $$;
    CREATE TRIGGER refuse BEFORE INSERT ON socket_io_attachments FOR EACH ROW EXECUTE FUNCTION refuse()
"""


async def test_tidying_the_queue_is_not_answered(database: Database) -> None:
    """It is asked for when the server's notification queue is full."""
    with Proxy(database) as proxy:
        trap = proxy.swallow_from(b"pg_notification_queue_usage")
        async with bus_of(proxy.dsn) as bus:
            await bus.call(bus.core.ensure_table)
            with database.connect() as connection:
                connection.execute(QUEUE_IS_FULL)
            message = Message(MessageType.BROADCAST, "/", packet=["large", b"x"])
            with pytest.raises(DatabaseError, match="the queue is full"):
                await within(2 * LIMIT_S + CANCEL_S, bus.publish(message))
            assert len(trap.caught) == 1


@pytest.mark.parametrize("can_be_cancelled", [True, False])
async def test_a_commit_is_not_answered(postgres: OwnPostgres, proxy: Proxy, *, can_be_cancelled: bool) -> None:
    """Even where a cancel request meets the same black hole."""
    trap = proxy.swallow_from(b"pg_notify")
    if not can_be_cancelled:
        proxy.swallow_from(CANCEL_REQUEST, count=float("inf"))
    async with bus_of(proxy.dsn) as bus:
        with pytest.raises(CommitInDoubtError, match="did not answer within"):
            await within(LIMIT_S + CANCEL_S, bus.notify("any", "first"))
        await bus.notify("any", "second")
        assert len(trap.caught) == 1


# -------------------------------------------------------------------------------------------------------- listening


async def test_setting_up_is_not_answered(postgres: OwnPostgres, proxy: Proxy) -> None:
    proxy.swallow_from(b"pg_postmaster_start_time")
    async with bus_of(proxy.dsn) as bus:
        with pytest.raises(OperationTimeoutError, match="setting the listening session up"):
            await within(SETUP_S, bus.call(bus.core.start_listener))
        await eventually(lambda: bus.stats()["is_listening"], "it listens all the same")


async def test_listen_is_not_answered(postgres: OwnPostgres, proxy: Proxy) -> None:
    """Whoever waits for it waits for the next session."""
    async with bus_of(proxy.dsn) as bus:
        await bus.call(bus.core.start_listener)
        trap = proxy.swallow_from(b"LISTEN ")
        await within(LIMIT_S, bus.call(functools.partial(bus.core.listen, "any")))
        assert len(trap.caught) == 1
        await eventually(lambda: bus.stats()["listener_reconnects"], "on another session")


async def test_a_probe_is_not_answered(postgres: OwnPostgres, proxy: Proxy) -> None:
    async with bus_of(proxy.dsn) as bus:
        await bus.call(bus.core.start_listener)
        proxy.swallow_from(b"pg_listening_channels")
        await eventually(lambda: bus.stats()["listener_reconnects"], "another session listens")


async def test_the_self_test_is_not_answered(postgres: OwnPostgres, proxy: Proxy) -> None:
    """Who the publisher's session is, is asked only for a better explanation of what fails later."""
    async with bus_of(proxy.dsn, listen_dsn=postgres.database.dsn, probe_interval=FETCH_S) as bus:
        await bus.call(bus.core.start_listener)
        trap = proxy.swallow_from(b"pg_postmaster_start_time")
        await within(SETUP_S, bus.call(bus.core.self_test))
        assert len(trap.caught) == 1


async def test_a_client_is_told_that_it_does_not_listen(
    postgres: OwnPostgres, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long the outage; the channel stays wanted."""
    for module in ("_bus.async_client", "_bus._sync.client"):
        monkeypatch.setattr(f"socketio_postgres.{module}.LISTEN_LIMIT", 0.5)
    proxy.refuse()
    client = AsyncPostgresClient(proxy.dsn, error_handler=lambda _: None)
    try:
        with pytest.raises(OperationTimeoutError):
            await within(0.5, client.listen("any"))
        blocking = PostgresClient(proxy.dsn, error_handler=lambda _: None)
        with pytest.raises(OperationTimeoutError):
            await within(0.5, asyncio.to_thread(blocking.listen, "any"))
        await asyncio.to_thread(blocking.close)
        proxy.accept()
        await eventually(lambda: sessions(postgres.database, LISTENS), "it listens")
    finally:
        await client.close()


# ---------------------------------------------------------------------------------------------------------- closing


async def test_closing_with_a_commit_under_way(postgres: OwnPostgres, proxy: Proxy) -> None:
    trap = proxy.swallow_from(b"pg_notify")
    bus = Bus(BusOptions(proxy.dsn), uid=lambda: UID, probe_interval=60.0)
    commit = asyncio.ensure_future(bus.notify("any", "payload"))
    await eventually(lambda: trap.caught, "it is under way")
    await within(0.2 + CLOSE_S, bus.close(0.2))
    with pytest.raises(CommitInDoubtError, match="the publisher was closed"):
        await commit


async def test_closing_with_a_listen_under_way(postgres: OwnPostgres, proxy: Proxy) -> None:
    bus = Bus(BusOptions(proxy.dsn), uid=lambda: UID, probe_interval=60.0)
    await bus.call(bus.core.start_listener)
    trap = proxy.swallow_from(b"LISTEN ")
    listening = asyncio.ensure_future(bus.call(functools.partial(bus.core.listen, "any")))
    await eventually(lambda: trap.caught, "it is under way")
    await within(CLOSE_S, bus.close(0.0))
    with pytest.raises(ClosedError):
        await listening


async def test_closing_with_a_fetch_under_way(postgres: OwnPostgres, proxy: Proxy) -> None:
    bus = Bus(BusOptions(proxy.dsn), uid=lambda: UID, probe_interval=60.0)
    trap = proxy.swallow_from(STATEMENTS["get attachment"])
    fetch = asyncio.ensure_future(bus.call(functools.partial(bus.core.get_attachment, 1)))
    await eventually(lambda: trap.caught, "it is under way")
    await within(CLOSE_S, bus.close(0.0))
    with pytest.raises(ConnectionLostError):
        await fetch


async def test_a_flush_while_closing_ends(postgres: OwnPostgres, proxy: Proxy) -> None:
    """However late it comes: between the last group and the end of everything it would have waited for ever."""
    trap = proxy.swallow_from(b"pg_notify")
    bus = Bus(BusOptions(proxy.dsn), uid=lambda: UID, probe_interval=60.0)
    core, calls = bus.core, AsyncCalls.of_running_loop()
    commit = asyncio.ensure_future(bus.notify("any", "payload"))
    await eventually(lambda: trap.caught, "it is under way")
    closing = asyncio.ensure_future(bus.close(0.1))
    flushes = []
    while not closing.done():
        flushes.append(calls.start(core.flush))
        await asyncio.sleep(0.01)
    assert set(await within(CLOSE_S, asyncio.gather(*flushes))) == {None}
    await within(CLOSE_S, closing)
    with pytest.raises(CommitInDoubtError):
        await commit


EXIT = """
import sys
from socketio_postgres import Emitter
io = Emitter(sys.argv[1])
io.start()
io.emit("last words")
"""


async def test_the_process_ends(postgres: OwnPostgres, proxy: Proxy) -> None:
    trap = proxy.swallow_from(b"pg_notify", count=float("inf"))
    with Program(["-c", EXIT, proxy.dsn]) as program:
        await program.wait(EXIT_S + CLOSE_S + SLACK_S)
        assert trap.caught
        assert "were not committed before the process ended" in program.output
