"""One python-socketio server with any of the client managers, under the ASGI server that its argument names."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import socketio
import uvicorn

from benches.load.commands import answer_commands, event, now_us
from socketio_postgres.demo.embedded import free_port


def _ours(address: str) -> socketio.AsyncManager:
    from socketio_postgres import AsyncPostgresManager  # noqa: PLC0415  (a peer's process has only what it needs)

    return AsyncPostgresManager(address)


def _redis(address: str) -> socketio.AsyncManager:
    return socketio.AsyncRedisManager(address)


def _pg_manager(address: str) -> socketio.AsyncManager:
    from socketio_pg_manager import AsyncPgManager  # noqa: PLC0415  (likewise)

    return AsyncPgManager(address)


MANAGERS: dict[str, Callable[[str], socketio.AsyncManager]] = {
    "ours": _ours,
    "redis": _redis,
    "pg-manager": _pg_manager,
    "stock": lambda _: socketio.AsyncManager(),
}


@dataclass(frozen=True)
class Host:
    """An ASGI server.

    Attributes:
        websockets: Implementation of uvicorn, or None for granian.
        is_uvloop: Whether its event loop is uvloop.
    """

    websockets: Literal["auto", "websockets", "websockets-sansio", "wsproto"] | None
    is_uvloop: bool = False


HOSTS = {
    "default": Host("auto"),
    "websockets": Host("websockets"),
    "sansio": Host("websockets-sansio", is_uvloop=True),
    "wsproto": Host("wsproto"),
    "granian": Host(None, is_uvloop=True),
}


async def host_uvicorn(app: socketio.ASGIApp, websockets: Any) -> tuple[asyncio.Task[None], int]:
    """Serve with uvicorn; gives the port."""
    # uvicorn makes the socket itself, as it does for users: on one that is handed in, asyncio leaves Nagle's
    # algorithm on, and every connection takes 40 ms.
    config = uvicorn.Config(app, port=0, lifespan="off", log_level="warning", backlog=4096, ws=websockets)
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110  (uvicorn tells nobody)
        await asyncio.sleep(0.01)
    return serving, int(server.servers[0].sockets[0].getsockname()[1])


async def host_granian(app: socketio.ASGIApp) -> tuple[asyncio.Task[None], int]:
    """Serve with granian, embedded, because the commands need the application in this process; gives the port."""
    from granian.constants import Interfaces  # noqa: PLC0415  (only its own rows need it)
    from granian.server.embed import Server as Granian  # noqa: PLC0415

    port = free_port()
    server = Granian(app, port=port, interface=Interfaces.ASGINL, backlog=4096, log_enabled=False)
    serving = asyncio.create_task(server.serve())
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except ConnectionRefusedError:
            await asyncio.sleep(0.01)
        else:
            writer.close()
            return serving, port


class Server:
    """What the commands do."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._serving: asyncio.Task[None] | None = None

    async def serve(self, kind: str, address: str) -> int:
        """Start; gives the port. Clients join the rooms that their auth names."""
        self.manager = MANAGERS[kind](address)
        # `cors_allowed_origins` spares each connection a check that raw clients would fail.
        self.sio = socketio.AsyncServer(client_manager=self.manager, async_mode="asgi", cors_allowed_origins="*")

        async def connect(sid: str, environ: object, auth: dict[str, Any] | None) -> None:
            del environ
            for room in (auth or {}).get("rooms", []):
                await self.sio.enter_room(sid, room)

        self.sio.on("connect", connect)
        app = socketio.ASGIApp(self.sio)
        if self._host.websockets is None:
            self._serving, port = await host_granian(app)
        else:
            self._serving, port = await host_uvicorn(app, self._host.websockets)
        return port

    async def burst(
        self, room: str, count: int, size: int = 60, *, first: int = 0, binary: bool = False
    ) -> dict[str, int]:
        """Emit and await one event after the other; `first` is the number of the first."""
        packed = os.urandom(size) if binary else None
        began = now_us()
        for number in range(first, first + count):
            await self.sio.emit("chat", event(number, size) if packed is None else (number, packed), room=room)
        return {"began": began, "ended": now_us()}

    async def pace(self, room: str, count: int, rate: float) -> dict[str, int]:
        """Emit at a steady rate."""
        began = now_us()
        loop = asyncio.get_running_loop()
        start = loop.time()
        for number in range(count):
            await asyncio.sleep(max(start + number / rate - loop.time(), 0))
            await self.sio.emit("chat", event(number), room=room)
        return {"began": began, "ended": now_us()}

    async def flush(self) -> None:
        """Wait for the commit of what was emitted; only ours can."""
        if hasattr(self.manager, "flush"):
            await self.manager.flush()

    async def enter_rooms(self, count: int) -> None:
        """Let the first client enter so many rooms of its own."""
        sid = next(iter(self.manager.rooms["/"][None]))
        for number in range(count):
            await self.sio.enter_room(sid, f"room {number}")


async def _main(host: Host) -> None:
    server = Server(host)
    commands = (server.serve, server.burst, server.pace, server.flush, server.enter_rooms)
    await answer_commands({command.__name__: command for command in commands})
    os._exit(0)  # the bench is over: nobody waits for goodbyes


if __name__ == "__main__":
    chosen = HOSTS[sys.argv[1]]
    if chosen.is_uvloop:
        import uvloop

        uvloop.run(_main(chosen))
    else:
        asyncio.run(_main(chosen))
