"""The application's handlers on an async server may do what they like: nobody waits for them but who asked.

The same for sync servers is in test_modes.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack

import pytest

from socketio_postgres import AsyncPostgresManager
from tests.fixtures.clients import PythonClient
from tests.fixtures.database import Database
from tests.fixtures.server import PythonServer
from tests.fixtures.waiting import eventually


class Both:
    """Two async servers with a client each, and what went wrong on the first."""

    def __init__(self, dsn: str) -> None:
        self.errors: list[Exception] = []
        self.mgr = AsyncPostgresManager(dsn, error_handler=self.errors.append, heartbeat_timeout=30.0)
        self.other = AsyncPostgresManager(dsn, heartbeat_timeout=30.0)
        self.client: PythonClient
        self.other_client: PythonClient

    async def still_works(self) -> None:
        """Events, broadcasts and questions get through to the first server."""
        self.mgr.on_server_side("add", lambda first, second: first + second)
        assert await self.other.server_side_emit_with_ack("add", 3, 4, timeout=30) == [7]
        await self.other.emit("still", None)
        await self.client.wait_for("still")


@pytest.fixture
async def both(database: Database) -> AsyncIterator[Both]:
    both = Both(database.dsn)
    async with AsyncExitStack() as stack:
        clients = []
        for mgr in (both.mgr, both.other):
            server = await stack.enter_async_context(PythonServer(mgr))
            stack.push_async_callback(mgr.close)
            await mgr.start()
            clients.append(await PythonClient.connect(server.url))
            stack.push_async_callback(clients[-1].disconnect)
        both.client, both.other_client = clients
        await eventually(lambda: both.mgr.server_count() == both.other.server_count() == 2, "they know each other")
        yield both


async def test_a_server_side_handler_asks_the_cluster(both: Both) -> None:
    async def ask() -> list[object]:
        return [
            len(await both.mgr.timeout(30).fetch_sockets()),
            await both.mgr.timeout(30).emit_with_ack("question", 1),
            await both.mgr.server.call("question", 2, to=both.other_client.sid),
            await both.mgr.server_side_emit_with_ack("nothing", timeout=30),
        ]

    both.mgr.on_server_side("ask", ask)
    assert await both.other.server_side_emit_with_ack("ask", timeout=30) == [[2, [1, 1], 2, [None]]]


async def test_a_callback_asks_the_cluster(both: Both) -> None:
    for client in (both.client, both.other_client):
        counts: list[int] = []

        async def answer(value: int, counts: list[int] = counts) -> None:
            counts.append(value + len(await both.mgr.timeout(30).fetch_sockets()))

        await both.mgr.server.emit("question", 1, to=client.sid, callback=answer)
        await eventually(lambda counts=counts: counts == [3], "the callback has its answer")  # type: ignore[misc]


async def test_a_blocked_handler_stops_nothing(both: Both) -> None:
    gate = asyncio.Event()
    both.mgr.on_server_side("block", gate.wait)
    blocked = asyncio.create_task(both.other.server_side_emit_with_ack("block", timeout=60))
    await both.still_works()
    assert not blocked.done()
    gate.set()
    assert await blocked == [True]


async def _raise() -> None:
    raise LookupError("on purpose")


def _raise_at_once() -> None:
    raise LookupError("on purpose")


@pytest.mark.parametrize("handler", [_raise, _raise_at_once])
async def test_a_handler_that_raises(
    both: Both, handler: Callable[[], Awaitable[None] | None], caplog: pytest.LogCaptureFixture
) -> None:
    both.mgr.on_server_side("fail", handler)
    assert await both.other.server_side_emit_with_ack("fail", timeout=30) == [None]
    assert [type(error) for error in both.errors] == [LookupError]
    assert "on purpose" in caplog.text
    await both.still_works()


@pytest.mark.parametrize("function", [_raise, _raise_at_once])
async def test_a_callback_that_raises(
    both: Both, function: Callable[[], Awaitable[None] | None], caplog: pytest.LogCaptureFixture
) -> None:
    for client in (both.client, both.other_client):
        both.errors.clear()
        await both.mgr.server.emit("question", to=client.sid, callback=lambda *_: function())
        await eventually(lambda: [type(error) for error in both.errors] == [LookupError], "it is reported")
    assert "on purpose" in caplog.text
    await both.still_works()


@pytest.mark.parametrize("what", ["asks", "raises", "blocks"])
async def test_a_disconnect_handler(both: Both, what: str) -> None:
    counts: list[int] = []
    gate = asyncio.Event()

    async def disconnect(sid: str, reason: str) -> None:
        del sid, reason
        if what == "asks":
            counts.append(len(await both.mgr.timeout(30).fetch_sockets()))
        elif what == "raises":
            raise LookupError("on purpose")
        else:
            await gate.wait()

    both.mgr.server.on("disconnect", disconnect)
    await both.other.server.disconnect(both.client.sid)
    await both.client.wait_for_disconnect()
    # Gone from the first moment on, whatever its handler does.
    [socket] = await both.other.timeout(30).fetch_sockets()
    assert socket.id == both.other_client.sid
    both.mgr.on_server_side("add", lambda first, second: first + second)
    assert await both.other.server_side_emit_with_ack("add", 3, 4, timeout=30) == [7]
    gate.set()
    await eventually(lambda: both.client.sid not in both.mgr.rooms.get("/", {None: {}})[None], "it is forgotten")
    assert counts == ([1] if what == "asks" else [])
    assert [type(error) for error in both.errors] == ([LookupError] if what == "raises" else [])


async def test_an_error_handler_that_raises(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    def fail(error: Exception) -> None:
        raise RuntimeError("the handler of errors") from error

    # A listener that had ended would be missed later than any test waits.
    mgr = AsyncPostgresManager(database.dsn, error_handler=fail, heartbeat_timeout=120)
    async with PythonServer(mgr) as server:
        await mgr.start()
        mgr.on_server_side("fail", _raise)
        database.value(
            "SELECT pg_notify('socket.io#/', %s)::text",
            '{"uid":"a","nsp":"/","type":10,"data":{"packet":["fail"]}}',
        )
        await eventually(lambda: "the handler of errors" in caplog.text, "it is logged")
        client = await PythonClient.connect(server.url)
        await mgr.emit("hello", None)
        await client.wait_for("hello")
        await client.disconnect()
        await mgr.close()
