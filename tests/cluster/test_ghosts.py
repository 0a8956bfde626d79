"""Clients that hang up at a bad moment leave nothing behind: no room, no count, no memory."""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import threading
import time
import urllib.request
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import socketio
from werkzeug.serving import make_server

from socketio_postgres import AsyncEmitter, AsyncPostgresManager, PostgresManager
from socketio_postgres._cluster import socketio_rooms
from tests.fixtures.bus import serving
from tests.fixtures.clients import PythonClient
from tests.fixtures.database import Database
from tests.fixtures.waiting import TIMEOUT_S, eventually


def scope_of(method: str, query: str) -> dict[str, Any]:
    return {
        "type": "http",
        "method": method,
        "path": "/socket.io/",
        "raw_path": b"/socket.io/",
        "query_string": f"EIO=4&transport=polling{query}".encode(),
        "headers": [(b"content-type", b"text/plain")],
        "scheme": "http",
        "http_version": "1.1",
        "server": ("localhost", 80),
        "client": ("localhost", 50000),
    }


def left_by(manager: Any) -> dict[str, Any]:
    """What a manager still knows of clients; not every version of python-socketio has all of these."""
    names = ("rooms", "callbacks", "pending_connect", "pending_disconnect", "_connected_at", "_room_aliases")
    return {name: value for name in names if (value := getattr(manager, name, None))}


class HangUps:
    """Clients inside the process that hang up once their connect handler runs."""

    def __init__(self, manager: AsyncPostgresManager, handle: Callable[[str, int], Awaitable[object]]) -> None:
        self.sio = socketio.AsyncServer(client_manager=manager, async_mode="asgi", ping_interval=1)
        self.disconnected: list[str] = []
        self._app = socketio.ASGIApp(self.sio)
        self._numbers = itertools.count()
        self._running: dict[int, asyncio.Event] = {}
        self._gone: dict[int, asyncio.Event] = {}
        self._ended: dict[int, asyncio.Event] = {}
        self._handle = handle
        self.sio.on("connect", self._connect)
        self.sio.on("disconnect", self._disconnect)

    async def _connect(self, sid: str, environ: dict[str, Any], auth: dict[str, int]) -> object:
        del environ
        number = auth["number"]
        self._running[number].set()
        await asyncio.wait_for(self._gone[number].wait(), TIMEOUT_S)
        try:
            return await self._handle(sid, number)
        finally:
            self._ended[number].set()

    async def _disconnect(self, sid: str, reason: str) -> None:
        assert reason in {"transport close", "client disconnect"}  # as python-socketio 5.17 and 5.15 have it
        self.disconnected.append(sid)

    async def _request(self, method: str, query: str, body: str) -> str:
        """As polling clients have it: the only way to hang up that python-socketio notices while a handler runs."""
        answer: list[bytes] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body.encode(), "more_body": False}

        async def send(message: dict[str, Any]) -> None:
            answer.append(message.get("body", b""))

        scope = scope_of(method, query)
        if body:
            scope["headers"].append((b"content-length", str(len(body)).encode()))
        await self._app(scope, receive, send)
        return b"".join(answer).decode()

    async def one(self) -> None:
        number = next(self._numbers)
        for events in (self._running, self._gone, self._ended):
            events[number] = asyncio.Event()
        opened = await self._request("GET", "", "")
        query = "&sid=" + json.loads(opened[1:])["sid"]
        connecting = asyncio.create_task(self._request("POST", query, f'40{{"number":{number}}}'))
        await asyncio.wait_for(self._running[number].wait(), TIMEOUT_S)
        await self._request("POST", query, "1")
        self._gone[number].set()
        await asyncio.wait_for(self._ended[number].wait(), TIMEOUT_S)
        await connecting
        for events in (self._running, self._gone, self._ended):
            del events[number]


@pytest.mark.timeout(600)  # it computes all the time, and takes its share of a machine that others use
async def test_ten_thousand_that_hang_up_inside_the_connect_handler(database: Database) -> None:
    manager = AsyncPostgresManager(database.dsn)

    async def handle(sid: str, number: int) -> None:
        await hang_ups.sio.enter_room(sid, f"room {number}")

    hang_ups = HangUps(manager, handle)
    await manager.start()
    for _ in range(50):
        await hang_ups.one()
    await eventually(lambda: left_by(manager) == {}, "they are gone")
    gc.collect()
    before = len(gc.get_objects())
    for _ in range(100):
        await asyncio.gather(*(hang_ups.one() for _ in range(100)))
    await eventually(lambda: left_by(manager) == {}, "they are gone")
    await eventually(lambda: len(hang_ups.disconnected) >= 10_050, "each was disconnected")
    assert len(hang_ups.disconnected) == len(set(hang_ups.disconnected)) == 10_050
    hang_ups.disconnected.clear()

    def is_flat() -> bool:
        gc.collect()
        return len(gc.get_objects()) < before + 10_000

    await eventually(is_flat, "nothing is left of them, nor of Engine.IO's last ping")
    async with AsyncEmitter(database.dsn) as io:
        irrelevant = manager.stats()["irrelevant"]
        await io.to("room 3").emit("hello")
        await eventually(lambda: manager.stats()["irrelevant"] > irrelevant, "the core knows that nobody is there")
    await manager.close()
    await hang_ups.sio.shutdown()


async def test_a_handler_that_refuses_or_fails_after_the_client_hung_up(
    database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(socketio_rooms, "GHOST_AGE", 0.3)
    manager = AsyncPostgresManager(database.dsn)

    async def handle(sid: str, number: int) -> object:
        await hang_ups.sio.enter_room(sid, "lobby")
        if number % 2:
            return False
        raise LookupError("no such user")

    hang_ups = HangUps(manager, handle)
    await manager.start()
    for _ in range(6):
        await hang_ups.one()
    await eventually(lambda: left_by(manager) == {}, "they are gone")
    assert hang_ups.disconnected == []
    caplog.clear()  # Engine.IO tells of the handlers that failed
    await manager.close()
    await hang_ups.sio.shutdown()


async def test_a_disconnect_handler_that_fails(
    database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(socketio_rooms, "GHOST_AGE", 0.3)

    async def fail(*_: object) -> None:
        raise LookupError("no such user")

    async with serving(database) as one:
        one.sio.on("disconnect", fail)
        client = await PythonClient.connect(one.url, auth={"rooms": ["lobby"]})
        await client.disconnect()
        await eventually(lambda: left_by(one.manager) == {}, "it is gone")
    caplog.clear()


async def test_a_disconnect_handler_that_fails_hides_no_other_namespace(
    database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """python-socketio does not come to the namespaces after it, and keeps what the web server said of the client."""
    monkeypatch.setattr(socketio_rooms, "GHOST_AGE", 0.3)
    told: list[object] = []

    async def fail(*_: object) -> None:
        raise LookupError("no such user")

    async def tell(sid: str, reason: str) -> None:
        told.append((sid, reason))

    async with serving(database) as one:
        one.sio.on("disconnect", fail)
        one.sio.on("connect", lambda *_: None, namespace="/chat")
        one.sio.on("disconnect", tell, namespace="/chat")
        client = socketio.AsyncClient(reconnection=False)
        await client.connect(one.url, namespaces=["/"], transports=["websocket"], wait_timeout=TIMEOUT_S)
        await client._send_packet(client.packet_class(0, namespace="/chat"))
        await eventually(lambda: "/chat" in one.manager.rooms, "it is in both")
        sid = next(iter(one.manager.rooms["/chat"][None]))
        await client.eio.disconnect(abort=True)
        await eventually(lambda: left_by(one.manager) == {}, "it is gone")
        await eventually(lambda: told == [(sid, "transport close")], "the other namespace was told")
        await eventually(lambda: one.sio.environ == {}, "python-socketio keeps nothing of it")
    caplog.clear()


async def test_a_slow_handler_keeps_its_client_for_a_while(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """And when it ends after that, nothing comes back."""
    manager = AsyncPostgresManager(database.dsn)
    found: list[bool] = []

    async def handle(sid: str, _: int) -> None:
        found.append(manager.is_pre_connected(sid, "/"))
        monkeypatch.setattr(socketio_rooms, "GHOST_AGE", 0.3)  # until then a minute
        await eventually(lambda: left_by(manager) == {}, "it is forgotten")

    hang_ups = HangUps(manager, handle)
    await manager.start()
    await hang_ups.one()
    await eventually(lambda: left_by(manager) == {}, "it is gone")
    assert found == [True]
    await manager.close()
    await hang_ups.sio.shutdown()


async def test_threads(database: Database) -> None:
    manager = PostgresManager(database.dsn)
    sio = socketio.Server(client_manager=manager, async_mode="threading")
    disconnected: list[str] = []
    running = threading.Semaphore(0)

    def connect(sid: str, environ: dict[str, Any], auth: object) -> None:
        del environ, auth
        running.release()
        deadline = time.monotonic() + TIMEOUT_S
        while not manager._node.sockets.is_gone(manager.eio_sid_from_sid(sid, "/")) and time.monotonic() < deadline:
            time.sleep(0.01)
        sio.enter_room(sid, "lobby")

    sio.on("connect", connect)
    sio.on("disconnect", lambda sid, _: disconnected.append(sid))
    web = make_server("127.0.0.1", 0, socketio.WSGIApp(sio), threaded=True)
    thread = threading.Thread(target=web.serve_forever, daemon=True)
    thread.start()

    def hang_up() -> None:
        url = f"http://127.0.0.1:{web.server_port}/socket.io/?EIO=4&transport=polling"
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
            url += "&sid=" + json.loads(answer.read()[1:])["sid"]

        def post(text: bytes) -> None:
            urllib.request.urlopen(url, text, timeout=TIMEOUT_S).close()  # noqa: S310

        connecting = threading.Thread(target=post, args=(b"40",))
        connecting.start()
        assert running.acquire(timeout=TIMEOUT_S)
        post(b"1")
        connecting.join(TIMEOUT_S)

    for _ in range(10):
        await asyncio.to_thread(hang_up)
    await eventually(lambda: len(disconnected) == 10, "each was disconnected")
    await eventually(lambda: left_by(manager) == {}, "they are gone")
    await asyncio.to_thread(manager.close)
    await asyncio.to_thread(sio.shutdown)
    web.shutdown()
    web.server_close()
    thread.join(TIMEOUT_S)
