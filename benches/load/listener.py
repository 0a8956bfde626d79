"""A process that listens to everything and throws it away, as cheaply as Python can, so that a server sends it.

It speaks just enough of PostgreSQL's protocol, and of Redis', to subscribe and to count.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import threading
import time
from urllib.parse import urlsplit

from psycopg.conninfo import conninfo_to_dict

from benches.load.commands import answer_commands
from benches.load.emitter import CHANNEL

LIMIT_S = 120.0
RECEIVE_BYTES = 1 << 20
READY = b"Z"
NOTIFICATION = ord("A")


def _message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!I", len(body) + 4) + body


def _subscribe_postgres(dsn: str) -> socket.socket:
    """A session without a password that listens."""
    part = conninfo_to_dict(dsn)
    connection = socket.create_connection((str(part["host"]), int(part["port"] or 5432)))
    words = ("user", str(part["user"]), "database", str(part["dbname"]), "")
    start = struct.pack("!I", 196_608) + b"".join(word.encode() + b"\0" for word in words)
    connection.sendall(_message(b"", start))
    _until(connection, READY + struct.pack("!I", 5))
    connection.sendall(_message(b"Q", f'LISTEN "{CHANNEL}"'.encode() + b"\0"))
    _until(connection, READY + struct.pack("!I", 5))
    return connection


def _subscribe_redis(url: str) -> socket.socket:
    address = urlsplit(url)
    connection = socket.create_connection((str(address.hostname), int(address.port or 6379)))
    connection.sendall(b"SUBSCRIBE socketio\r\n")
    _until(connection, b":1\r\n")
    return connection


def _until(connection: socket.socket, end: bytes) -> None:
    seen = b""
    while end not in seen:
        data = connection.recv(RECEIVE_BYTES)
        if not data:
            raise ConnectionError(seen.decode(errors="replace"))
        seen += data


class Listener:
    """What the commands do."""

    def __init__(self) -> None:
        self._count = self._expected = 0

    async def listen(self, address: str) -> None:
        """Subscribe, and read from now on in a thread."""
        is_redis = address.startswith("redis:")
        connection = _subscribe_redis(address) if is_redis else _subscribe_postgres(address)
        read = self._read_redis if is_redis else self._read_postgres
        threading.Thread(target=read, args=(connection,), daemon=True).start()

    def _read_postgres(self, connection: socket.socket) -> None:
        rest = b""
        while data := connection.recv(RECEIVE_BYTES):
            data = rest + data
            at, end = 0, len(data)
            while end - at >= 5:
                stop = at + 1 + int.from_bytes(data[at + 1 : at + 5], "big")
                if stop > end:
                    break
                self._count += data[at] == NOTIFICATION
                at = stop
            rest = data[at:]

    def _read_redis(self, connection: socket.socket) -> None:
        word, rest = b"\nmessage\r", b""
        while data := connection.recv(RECEIVE_BYTES):
            data = rest + data
            self._count += data.count(word)
            rest = data[-len(word) + 1 :]

    async def expect(self, count: int) -> None:
        """Begin to count."""
        self._count, self._expected = 0, count

    async def collect(self) -> int:
        """How many have arrived, once it is as many as expected, or time is over."""
        deadline = time.monotonic() + LIMIT_S
        while self._count < self._expected and time.monotonic() < deadline:  # noqa: ASYNC110  (a thread counts)
            await asyncio.sleep(0.01)
        return self._count


async def _main() -> None:
    listener = Listener()
    await answer_commands({"listen": listener.listen, "expect": listener.expect, "collect": listener.collect})
    os._exit(0)


if __name__ == "__main__":
    asyncio.run(_main())
