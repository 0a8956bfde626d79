"""From one commit of many small events to the last one dealt with, beside a listener of asyncpg.

All are sent the very same frames, recorded from an Emitter, by one statement on a connection of its own: what is
measured is receiving. The last frame is a fence, and the clock stops when it arrives. For the manager "arrives"
means handed to Engine.IO, for asyncpg that its callback was called.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
import socketio
from pytest_benchmark.fixture import BenchmarkFixture

from benches.shared import CHANNEL, ROUNDS, Committed, Run
from socketio_postgres import AsyncPostgresManager, Emitter
from tests.fixtures.database import Database

asyncpg = pytest.importorskip("asyncpg")

GROUP = "receive small"


@pytest.fixture
def frames(database: Database, committed: Committed, count: int) -> Callable[[str], list[str]]:
    """Frames for one room, recorded, with a fence behind them."""

    def record(room: str) -> list[str]:
        def publish() -> None:
            with Emitter(database.dsn) as io:
                for number in range(count):
                    io.to(room).emit("chat", {"user": "ada", "text": "hello, world", "number": number})
                io.to("fence").emit("fence")

        return committed(publish, count + 1)

    return record


class Sender:
    """Sends frames in one transaction, from a thread: the loop is the receiver's.

    They wait in a table, so that sending costs this process next to nothing. Each time they are those of another
    emitter: of the same one they would be repetitions.
    """

    def __init__(self, database: Database, payloads: list[str]) -> None:
        self._connection = psycopg.connect(database.dsn, autocommit=True)
        self._connection.execute("CREATE TEMPORARY TABLE frames (n serial, payload text)")
        with self._connection.cursor() as cursor:
            cursor.executemany("INSERT INTO frames (payload) VALUES (%s)", [(payload,) for payload in payloads])
        self._emitter = str(json.loads(payloads[0])["p"])
        self._rounds = itertools.count(1)

    async def send(self) -> None:
        await asyncio.to_thread(
            self._connection.execute,
            "SELECT count(pg_notify(%s, replace(payload, %s, %s))) FROM (SELECT payload FROM frames ORDER BY n) AS t",
            (CHANNEL, self._emitter, f"{next(self._rounds):08}"),
        )

    def close(self) -> None:
        self._connection.close()


class Arrivals:
    """Counts what arrives, up to the fence."""

    def __init__(self) -> None:
        self.count = 0
        self.done = asyncio.Event()

    async def of(self, sender: Sender) -> int:
        self.count = 0
        self.done.clear()
        await sender.send()
        await asyncio.wait_for(self.done.wait(), 60)
        return self.count


class OneMember:
    """A server whose only client never leaves; what it is sent ends where Engine.IO would queue it."""

    def __init__(self, dsn: str, arrivals: Arrivals) -> None:
        self.manager = AsyncPostgresManager(dsn)
        self.sio = socketio.AsyncServer(client_manager=self.manager, async_mode="asgi")
        self.sio.manager_initialized = True
        self._arrivals = arrivals
        self.sio.eio.send_packet = self._send_packet
        self.sio.eio.sockets["eio1"] = SimpleNamespace(closed=False, closing=False)  # or the client would be forgotten

    async def _send_packet(self, eio_sid: str, packet: Any) -> None:  # noqa: ARG002
        if "fence" in packet.data:
            self._arrivals.done.set()
        else:
            self._arrivals.count += 1

    async def start(self) -> None:
        await self.manager.start()
        sid = await self.manager.connect("eio1", "/")
        for room in ("here", "fence"):
            await self.manager.enter_room(sid, "/", room)


@pytest.mark.parametrize("room", ["here", "elsewhere"], ids=["one member", "nobody here"])
def test_manager(
    *,
    benchmark: BenchmarkFixture,
    database: Database,
    frames: Callable[[str], list[str]],
    count: int,
    run: Run,
    room: str,
) -> None:
    arrivals = Arrivals()
    server = OneMember(database.dsn, arrivals)
    sender = Sender(database, frames(room))
    run(server.start())
    assert run(arrivals.of(sender)) == (count if room == "here" else 0)
    benchmark.group = GROUP
    benchmark.pedantic(lambda: run(arrivals.of(sender)), rounds=ROUNDS)
    run(server.manager.close())
    sender.close()


@pytest.mark.parametrize("is_decoding", [False, True], ids=["callback", "callback and json.loads"])
def test_asyncpg(
    *,
    benchmark: BenchmarkFixture,
    database: Database,
    frames: Callable[[str], list[str]],
    count: int,
    run: Run,
    is_decoding: bool,
) -> None:
    arrivals = Arrivals()

    def callback(connection: object, pid: int, channel: str, payload: str) -> None:
        del connection, pid, channel
        if is_decoding:
            json.loads(payload)
        if '["fence"]' in payload:
            arrivals.done.set()
        else:
            arrivals.count += 1

    sender = Sender(database, frames("here"))
    connection = run(asyncpg.connect(database.url))
    run(connection.add_listener(CHANNEL, callback))
    assert run(arrivals.of(sender)) == count
    benchmark.group = GROUP
    benchmark.pedantic(lambda: run(arrivals.of(sender)), rounds=ROUNDS)
    run(connection.close())
    sender.close()
