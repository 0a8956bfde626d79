"""What others send, all at once. No sender can be too slow: the frames are made before the clock starts."""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import threading
from typing import Any, Protocol
from urllib.parse import urlsplit

import psycopg
from socketio.async_pubsub_manager import AsyncPubSubManager

from benches.load.commands import event, now_us
from benches.load.emitter import CHANNEL
from socketio_postgres import Emitter
from tests.fixtures.database import Database


class Flood(Protocol):
    """Frames for some room, ready to be sent again and again."""

    async def send(self) -> int:
        """Send them; the moment of the commit, or for Redis of the first byte, in microseconds."""


def bus_frames(database: Database, room: str, count: int, fence: str) -> list[str]:
    """What our emitter publishes: so many events for a room, then one for the fence."""
    with database.connect() as listener:
        listener.execute(f'LISTEN "{CHANNEL}"')
        with Emitter(database.dsn) as io:
            for number in range(count):
                io.to(room).emit("chat", event(number))
            io.to(fence).emit("chat", event(0))
        return [notify.payload for notify in listener.notifies(timeout=60, stop_after=count + 1)]


class _Recorder(AsyncPubSubManager):
    """python-socketio's messages between servers, kept."""

    def __init__(self) -> None:
        super().__init__(write_only=True)
        self.frames: list[str] = []

    async def _publish(self, data: Any) -> None:
        self.frames.append(json.dumps(data))


async def pubsub_frames(room: str, count: int, fence: str) -> list[str]:
    """What python-socketio's managers publish: so many events for a room, then one for the fence."""
    recorder = _Recorder()
    for number in range(count):
        await recorder.emit("chat", event(number), room=room)
    await recorder.emit("chat", event(0), room=fence)
    return recorder.frames


class NotifyFlood:
    """One transaction of many notifications, prepared by PostgreSQL itself."""

    def __init__(self, dsn: str, channel: str, frames: list[str]) -> None:
        self._connection = psycopg.connect(dsn)
        self._connection.execute("CREATE TEMPORARY TABLE frames (n serial, payload text)")
        with self._connection.cursor() as cursor, cursor.copy("COPY frames (payload) FROM STDIN") as copy:
            for frame in frames:
                copy.write_row((frame,))
        self._connection.commit()
        self._channel = channel
        # Each time they are those of another emitter: of the same one they would be repetitions, which ours drops.
        self._emitter = str(json.loads(frames[0]).get("p", "none of ours"))
        self._rounds = itertools.count(1)

    async def send(self) -> int:
        """As in Flood."""
        return await asyncio.to_thread(self._send)

    def _send(self) -> int:
        self._connection.execute(
            "SELECT count(pg_notify(%s, replace(payload, %s, %s))) FROM (SELECT payload FROM frames ORDER BY n) AS t",
            (self._channel, self._emitter, f"{next(self._rounds):08}"),
        )
        began = now_us()
        self._connection.commit()
        return began


class PublishFlood:
    """The same for Redis: commands in its protocol, in one pipeline."""

    def __init__(self, url: str, channel: str, frames: list[str]) -> None:
        parts = [("PUBLISH", channel, frame) for frame in frames]
        self._commands = b"".join(
            f"*{len(part)}\r\n".encode() + b"".join(f"${len(word.encode())}\r\n{word}\r\n".encode() for word in part)
            for part in parts
        )
        self._replies = len(parts)
        address = urlsplit(url)
        self._socket = socket.create_connection((str(address.hostname), int(address.port or 6379)))

    async def send(self) -> int:
        """As in Flood."""
        return await asyncio.to_thread(self._send)

    def _send(self) -> int:
        began = now_us()
        writer = threading.Thread(target=self._socket.sendall, args=(self._commands,))
        writer.start()
        missing = self._replies
        while missing:
            missing -= self._socket.recv(1 << 16).count(b"\n")
        writer.join()
        return began
