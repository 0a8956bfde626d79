"""Run by the Python of a bare environment, where the package was installed and nothing of this repository is.

Imports all of it, and uses each part once against the database whose DSN is given. Every warning is an error.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import pkgutil
import socketserver
import sys
import threading
import typing
import urllib.request
import wsgiref.simple_server

import socketio

import socketio_postgres

WITH_AN_EXTRA = (
    "socketio_postgres.cli.",
    "socketio_postgres.demo.",
    "socketio_postgres.opentelemetry",
    "socketio_postgres.prometheus",
)
PROGRAMS = "socketio_postgres.__main__"
LIMIT = 20.0


def import_everything() -> None:
    """All names, and all modules that need no extra."""
    for name in socketio_postgres.__all__:
        getattr(socketio_postgres, name)
    for module in pkgutil.walk_packages(socketio_postgres.__path__, "socketio_postgres."):
        if not module.name.startswith((*WITH_AN_EXTRA, PROGRAMS)):
            importlib.import_module(module.name)
    typing.get_type_hints(socketio_postgres.Emitter.__init__)


class QuietHandler(wsgiref.simple_server.WSGIRequestHandler):
    def log_message(self, *_: object) -> None:
        """Nothing."""


class WebServer(socketserver.ThreadingMixIn, wsgiref.simple_server.WSGIServer):
    daemon_threads = True  # requests that a client of long-polling has open


class Client:
    """Socket.IO by long-polling, with nothing but the standard library."""

    def __init__(self, url: str) -> None:
        self._packets: list[str] = []
        self._url = f"{url}/socket.io/?EIO=4&transport=polling"
        opened = json.loads(self._request()[0].removeprefix("0"))
        self._url += "&sid=" + opened["sid"]
        self._request("40")
        assert self.next().startswith("40")

    def next(self) -> str:
        """The next packet that is no ping."""
        while not self._packets:
            packets = self._request()
            if "2" in packets:
                self._request("3")
            self._packets += [packet for packet in packets if packet != "2"]
        return self._packets.pop(0)

    def _request(self, body: str | None = None) -> list[str]:
        data = None if body is None else body.encode()
        with urllib.request.urlopen(self._url, data, timeout=LIMIT) as answer:  # noqa: S310 - an http URL of ours
            text: str = answer.read().decode()
            return text.split("\x1e")


def use_managers(dsn: str) -> None:
    """A server with a client; an emitter and the manager of another server reach it."""
    mgr = socketio_postgres.PostgresManager(dsn)
    sio = socketio.Server(client_manager=mgr, async_mode="threading")
    mgr.start()
    with wsgiref.simple_server.make_server(
        "127.0.0.1", 0, socketio.WSGIApp(sio), server_class=WebServer, handler_class=QuietHandler
    ) as web:
        thread = threading.Thread(target=web.serve_forever, daemon=True)
        thread.start()
        client = Client(f"http://127.0.0.1:{web.server_port}")
        with socketio_postgres.Emitter(dsn) as io:
            io.install_sql()  # the statements are files of the package
            io.uninstall_sql()
            io.emit("hello", "world")
        assert client.next() == '42["hello","world"]'
        asyncio.run(use_async(dsn))
        assert client.next() == '42["from","an emitter"]'
        assert client.next() == '42["from","a server"]'
        web.shutdown()
        thread.join()
    sio.shutdown()
    mgr.close()


async def use_async(dsn: str) -> None:
    """The same, for asyncio."""
    async with socketio_postgres.AsyncEmitter(dsn) as io:
        await io.emit("from", "an emitter")
    mgr = socketio_postgres.AsyncPostgresManager(dsn)
    sio = socketio.AsyncServer(client_manager=mgr, async_mode="asgi")
    await mgr.start()
    await sio.emit("from", "a server")
    await mgr.flush()
    await mgr.close()


async def use_event_stores(dsn: str) -> None:
    """What one writes the other reads."""
    event = socketio_postgres.Event("OrderPlaced", "order-1", {"total": 5})
    with socketio_postgres.EventStore(dsn) as store:
        store.store(event, expected=socketio_postgres.NO_STREAM)
    async with socketio_postgres.AsyncEventStore(dsn) as store:
        async for found in store.subscribe(after=socketio_postgres.START):
            assert (found.id, found.data) == (event.id, {"total": 5})
            break


def main(dsn: str) -> None:
    """All of it."""
    import_everything()
    use_managers(dsn)
    asyncio.run(use_event_stores(dsn))
    sys.stdout.write("well\n")


main(sys.argv[1])
