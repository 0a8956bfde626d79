"""What a server that has just come asks the cluster, before it knows who is there."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import psycopg
import pytest
import socketio

from socketio_postgres import AsyncPostgresManager, PostgresManager, RequestTimeoutError, _core
from socketio_postgres._cluster import adapter
from tests.cluster.servers import FakePeer, Server, Took, Trio
from tests.fixtures.database import Database
from tests.fixtures.server import PythonServer
from tests.fixtures.spy import spying

FETCH, SOCKETS, ASK, ANSWER, BROADCAST, COUNT, ACKNOWLEDGEMENT = 7, 8, 9, 10, 3, 11, 12
SOCKET = {"id": "the sid", "handshake": {}, "rooms": ["the sid"], "data": {}}

PATIENCE_S = 15.0
"""For a wait that a test ends early, so that no slow machine ends it first."""


@pytest.fixture
def starved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers of this package may take more than the second that they usually have to answer a newcomer."""
    monkeypatch.setattr(adapter, "NATIVE_ANSWER", PATIENCE_S)


@contextlib.asynccontextmanager
async def newcomer(dsn: str) -> AsyncIterator[AsyncPostgresManager]:
    """A server that has started just now."""
    manager = AsyncPostgresManager(dsn)
    socketio.AsyncServer(client_manager=manager, async_mode="asgi")
    try:
        await manager.start()
        yield manager
    finally:
        await manager.close()


@contextlib.contextmanager
def lock_of(database: Database, uid: str, prefix: str = "socket.io") -> Iterator[psycopg.Connection]:
    """What the listening session of a server of this package holds."""
    with database.connect() as connection:
        row = connection.execute(
            "SELECT ('x' || left(encode(sha256(convert_to(%s, 'UTF8')), 'hex'), 8))::bit(32)::int",
            [f"socketio-postgres cluster {prefix}"],
        ).fetchone()
        assert row is not None
        own = _core.member_lock(uid)
        signed = own - 2**32 if own >= 2**31 else own
        connection.execute("SELECT pg_advisory_lock_shared(%s, %s)", [row[0], signed])
        yield connection


async def answer_all(fake: FakePeer) -> None:
    """Answer a fetch, then a question to the servers, then one to clients."""
    request = (await fake.request(FETCH)).message["data"]["requestId"]
    fake.say(SOCKETS, requestId=request, sockets=[SOCKET])
    request = (await fake.request(ASK)).message["data"]["requestId"]
    fake.say(ANSWER, requestId=request, packet="here")
    request = (await fake.request(BROADCAST)).message["data"]["requestId"]
    fake.say(COUNT, requestId=request, clientCount=1)
    fake.say(ACKNOWLEDGEMENT, requestId=request, packet="here")


async def ask_all(manager: AsyncPostgresManager, seconds: float) -> list[Any]:
    """All three kinds of question, each made before anybody's announcement was answered."""
    served = manager._node.peers.adapters["/"]

    def forget_peers() -> None:
        served._peers.clear()
        served._announced_at = time.monotonic()

    found = [[each.id for each in await manager.timeout(seconds).fetch_sockets()]]
    forget_peers()
    found.append(await manager.server_side_emit_with_ack("ask", timeout=seconds))
    forget_peers()
    found.append(await manager.timeout(seconds).emit_with_ack("ask"))
    return found


@pytest.mark.parametrize("is_native", [True, False], ids=["by its lock", "by its answer"])
async def test_a_server_that_is_not_known_yet_is_waited_for(
    database: Database, is_native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter, "NATIVE_ANSWER" if is_native else "FOREIGN_ANSWER", 30.0 if is_native else 10.0)
    async with spying(database) as spy:
        fake = FakePeer(spy)
        with lock_of(database, "fake" if is_native else "another cluster's", "socket.io" if is_native else "chat"):
            async with newcomer(database.dsn) as manager:
                answering = asyncio.create_task(answer_all(fake))
                assert await ask_all(manager, 30.0) == [["the sid"], ["here"], ["here"]]
                await answering


async def test_who_holds_a_lock_and_serves_other_namespaces_is_not_waited_for_long(database: Database) -> None:
    with lock_of(database, "elsewhere"):
        async with newcomer(database.dsn) as manager:
            with Took() as took:
                assert await manager.timeout(60).fetch_sockets() == []
                assert await manager.timeout(60).emit_with_ack("ask") == []
            assert took.seconds < 40
            await asyncio.sleep(adapter.NATIVE_ANSWER)
            with Took() as took:
                for _ in range(60):
                    assert await manager.timeout(60).fetch_sockets() == []
            assert took.seconds < 60 * adapter.NATIVE_ANSWER / 2


async def test_a_lock_that_does_not_answer_in_time_is_named(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter, "NATIVE_ANSWER", PATIENCE_S)
    with lock_of(database, "fake"):
        async with newcomer(database.dsn) as manager:
            with pytest.raises(RequestTimeoutError, match="advisory lock") as caught:
                await manager.timeout(0.5).fetch_sockets()
            assert caught.value.missing_servers == [f"advisory lock {_core.member_lock('fake')}"]
            assert await manager.timeout(0.5).fetch_sockets(partial=True) == []


async def test_a_lock_that_is_let_go_is_not_waited_for(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter, "NATIVE_ANSWER", 60.0)
    with contextlib.ExitStack() as stack:
        connection = stack.enter_context(lock_of(database, "fake"))
        manager = AsyncPostgresManager(database.dsn, heartbeat_interval=0.2, heartbeat_timeout=5.0)
        socketio.AsyncServer(client_manager=manager, async_mode="asgi")
        try:
            await manager.start()
            fetching = asyncio.create_task(manager.timeout(60).fetch_sockets())
            await asyncio.sleep(0.5)
            assert not fetching.done()
            connection.close()
            with Took() as took:
                assert await fetching == []
            assert took.seconds < 40
        finally:
            await manager.close()


async def test_alone_nobody_waits_once_that_is_known(database: Database) -> None:
    async with newcomer(database.dsn) as manager:
        await asyncio.sleep(adapter.FOREIGN_ANSWER)
        await manager.flush()
        before = manager.stats()["published"]
        with Took() as took:
            for _ in range(400):
                assert await manager.fetch_sockets() == []
        assert took.seconds < 400 * adapter.FOREIGN_ANSWER / 2
        assert manager.stats()["published"] == before, "there is nobody to be asked"


@pytest.mark.usefixtures("starved")
async def test_a_newcomer_finds_everybody_at_once(trio: Trio) -> None:
    clients = [await server.connect(replies={"ask": [server.name]}) for server in trio.servers]
    for server in trio.servers:
        server.manager.on_server_side("name", lambda server=server: server.name)
    for _ in range(5):
        async with newcomer(trio.database.dsn) as manager:
            assert {each.id for each in await manager.fetch_sockets()} == {client.sid for client in clients}
        async with newcomer(trio.database.dsn) as manager:
            assert sorted(await manager.emit_with_ack("ask")) == ["a", "b", "c"]
        async with newcomer(trio.database.dsn) as manager:
            assert sorted(await manager.server_side_emit_with_ack("name")) == ["a", "b", "c"]


@pytest.mark.usefixtures("starved")
async def test_a_namespace_is_joined_by_asking_in_it(trio: Trio) -> None:
    """Nothing was started: the question itself connects, listens and finds the others."""
    chat = [await server.connect(namespace="/chat") for server in trio.servers]
    manager = AsyncPostgresManager(trio.database.dsn)
    socketio.AsyncServer(client_manager=manager, async_mode="asgi")
    try:
        found = await manager.of("/chat").fetch_sockets()
        assert {each.id for each in found} == {client.sid for client in chat}
    finally:
        await manager.close()


@pytest.mark.usefixtures("starved")
async def test_a_blocking_newcomer_finds_everybody_at_once(trio: Trio) -> None:
    clients = [await server.connect(replies={"ask": [server.name]}) for server in trio.servers]

    def ask() -> tuple[set[str], list[str]]:
        manager = PostgresManager(trio.database.dsn)
        socketio.Server(client_manager=manager, async_mode="threading")
        try:
            manager.start()
            return {each.id for each in manager.fetch_sockets()}, sorted(manager.emit_with_ack("ask"))
        finally:
            manager.close()

    for _ in range(3):
        assert await asyncio.to_thread(ask) == ({client.sid for client in clients}, ["a", "b", "c"])


async def test_an_event_with_acknowledgement_reaches_servers_nobody_counts(database: Database) -> None:
    """It is an event first of all; `emit` would have reached them."""
    async with spying(database) as spy, newcomer(database.dsn) as manager:
        await asyncio.sleep(adapter.FOREIGN_ANSWER)
        assert await manager.emit_with_ack("ask", 1) == []
        await spy.wait_for_broadcast("ask")
        assert await manager.server_side_emit_with_ack("ask", 1) == []
        await spy.wait_for(lambda frame: frame.header["type"] == ASK)


@pytest.mark.usefixtures("starved")
async def test_a_server_asks_from_its_first_connect_handler(trio: Trio) -> None:
    """The first client makes the server join; what its handler asks comes a moment later."""
    client = await trio.a.connect()
    found: list[set[str]] = []
    manager = AsyncPostgresManager(trio.database.dsn)
    try:
        async with PythonServer(manager) as python:

            async def connect(sid: str, environ: object, auth: object) -> None:
                found.append({each.id for each in await manager.fetch_sockets()} - {sid})

            python.sio.on("connect", connect)
            late = Server("late", python, manager)
            own = await late.connect()
            assert found == [{client.sid}]
            await own.disconnect()
    finally:
        await manager.close()
