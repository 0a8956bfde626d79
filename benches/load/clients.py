"""Websocket clients that do next to nothing, the same for all servers: they count packets and keep them.

One process, one thread, no library: a client costs a server's machine less than the server pays for it. What arrived
is checked when the clock has stopped.
"""

from __future__ import annotations

import base64
import json
import os
import selectors
import socket
import sys
import time
from typing import Any

RECEIVE_BYTES = 1 << 18
BINARY, WEBSOCKET_PING = 2, 9
LIMIT_S = 120.0
PING, PONG = b"2", b"3"


class Client:
    """One connection, past its handshake."""

    def __init__(self, port: int, rooms: list[str]) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._rest = self._header = b""
        self.arrivals: list[tuple[int, bytes]] = []
        """Nanoseconds and frame of every event; of one with binary the text, once the binary is there."""
        self.binary_bytes = 0
        key = base64.b64encode(os.urandom(16)).decode()
        self.socket.sendall(
            "GET /socket.io/?EIO=4&transport=websocket HTTP/1.1\r\n"
            f"Host: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        head = b""
        while b"\r\n\r\n" not in head:
            head += self._receive()
        head, _, self._rest = head.partition(b"\r\n\r\n")
        if b" 101 " not in head.splitlines()[0]:
            raise ConnectionError(head.decode(errors="replace"))
        self._send(b"40" + json.dumps({"rooms": rooms}).encode())
        frames = self._frames(b"")
        while not any(frame.startswith(b"40") for _, frame in frames):
            frames = self._frames(self._receive())

    def _receive(self) -> bytes:
        data = self.socket.recv(RECEIVE_BYTES)
        if not data:
            raise ConnectionError("the server closed the connection")
        return data

    def _send(self, text: bytes, kind: bytes = b"\x81") -> None:
        mask = b"\0\0\0\0"
        length = bytes([0x80 | len(text)]) if len(text) < 126 else bytes([0xFE, *len(text).to_bytes(2, "big")])
        self.socket.sendall(kind + length + mask + text)

    def _frames(self, data: bytes) -> list[tuple[int, bytes]]:
        """Complete frames: type and content."""
        if self._rest:
            data = self._rest + data
        frames, at, end = [], 0, len(data)
        while end - at >= 2:
            size, start = data[at + 1], at + 2
            if size == 126:
                size, start = int.from_bytes(data[at + 2 : at + 4], "big"), at + 4
            elif size == 127:
                size, start = int.from_bytes(data[at + 2 : at + 10], "big"), at + 10
            if start > end or start + size > end:
                break
            frames.append((data[at] & 0x0F, data[start : start + size]))
            at = start + size
        self._rest = data[at:]
        return frames

    def read(self) -> int:
        """Take what is there; events that are complete now."""
        frames = self._frames(self._receive())
        now = time.monotonic_ns()
        before = len(self.arrivals)
        for kind, frame in frames:
            if kind == WEBSOCKET_PING:
                self._send(frame, b"\x8a")
            elif kind == BINARY:
                self.arrivals.append((now, self._header))
                self.binary_bytes += len(frame)
            elif frame.startswith(b"42"):
                self.arrivals.append((now, frame))
            elif frame.startswith(b"45"):
                self._header = frame
            elif frame == PING:
                self._send(PONG)
            else:
                raise ConnectionError(f"unexpected frame {frame[:50]!r}")
        return len(self.arrivals) - before


def _argument(frame: bytes) -> Any:
    """The first one of an event."""
    return json.loads(frame[frame.index(b"[") :])[1]


def _number(argument: Any) -> int:
    """Of an event; with binary it is the first argument itself."""
    return int(argument["number"] if isinstance(argument, dict) else argument)


class Clients:
    """All of them, and the commands of the driver on standard input."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._clients: list[Client] = []
        self._collecting: dict[str, Any] | None = None
        self._expected = self._arrived = 0
        self._last: int | None = None
        self._deadline = 0.0

    def run(self) -> None:
        """Until standard input ends."""
        os.set_blocking(0, False)
        self._selector.register(0, selectors.EVENT_READ, None)
        partial = b""
        while True:
            for key, _ in self._selector.select(0.1):
                if key.data is not None:
                    self._arrived += key.data.read()
                    continue
                data = os.read(0, 1 << 16)
                if not data:
                    return
                *lines, partial = (partial + data).split(b"\n")
                for line in lines:
                    self._obey(json.loads(line))
            if self._collecting is not None and (self._is_all_there() or time.monotonic() > self._deadline):
                request, self._collecting = self._collecting, None
                self._answer(request, ok=self._result())

    def _obey(self, request: dict[str, Any]) -> None:
        given = request["arguments"]
        try:
            match request["command"]:
                case "connect":
                    self._connect(**given)
                    self._answer(request, ok=None)
                case "expect":
                    self._expect(**given)
                    self._answer(request, ok=None)
                case "collect":  # answered when all is there, or the time is over
                    limit = given.get("limit_s", LIMIT_S)
                    self._collecting, self._deadline = request, time.monotonic() + limit
                case "close":
                    self._close()
                    self._answer(request, ok=None)
        except OSError as error:
            self._answer(request, error=f"{type(error).__name__}: {error}")

    def _expect(self, count: int, last: int | None = None) -> None:
        """So many events for each client, or however many until the one with the number `last`."""
        self._arrived, self._expected, self._last = 0, count * len(self._clients), last
        for client in self._clients:
            client.arrivals.clear()
            client.binary_bytes = 0

    def _connect(self, port: int, count: int, rooms: list[str]) -> None:
        for _ in range(count):
            client = Client(port, rooms)
            client.socket.setblocking(False)
            self._clients.append(client)
            self._selector.register(client.socket, selectors.EVENT_READ, client)

    def _close(self) -> None:
        for client in self._clients:
            self._selector.unregister(client.socket)
            client.socket.close()
        self._clients.clear()

    def _is_all_there(self) -> bool:
        return self._arrived >= self._expected and self._is_last_there()

    def _is_last_there(self) -> bool:
        if self._last is None:
            return True
        return all(
            client.arrivals and _number(_argument(client.arrivals[-1][1])) == self._last for client in self._clients
        )

    def _result(self) -> dict[str, Any]:
        """Whether everything arrived, in which order, and when."""
        first = self._clients[0].arrivals
        frames = [frame for _, frame in first]
        arguments = [_argument(frame) for frame in frames]
        numbers = [_number(given) for given in arguments]
        last = max((client.arrivals[-1][0] for client in self._clients if client.arrivals), default=0)
        return {
            "arrived": self._arrived,
            "last_us": last // 1000,
            "is_alike": all([frame for _, frame in client.arrivals] == frames for client in self._clients),
            "is_complete": self._arrived == self._expected and sorted(numbers) == list(range(len(numbers))),
            "is_last_there": self._is_last_there(),
            "is_in_order": numbers == sorted(numbers),
            "binary_bytes": sum(client.binary_bytes for client in self._clients),
            "latencies_us": [
                at // 1000 - given["sent"]
                for (at, _), given in zip(first, arguments, strict=True)
                if isinstance(given, dict)
            ],
        }

    def _answer(self, request: dict[str, Any], **values: Any) -> None:
        sys.stdout.write(json.dumps({"id": request["id"], **values}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    Clients().run()
