"""One chat server of the demo: `python -m socketio_postgres.demo.server NAME PORT OTHER_URL`.

Browsers send `join`, `leave` and `message`; they get `welcome`, `notice`, `message` and, from the emitter, `tick`.
A message is a dict with `id`, `name` and either `text` or `image` (bytes) and its `type`; `room` or `to` (a sid)
narrow its audience. The server adds `server`, `sender` (sid) and `at` (seconds since 1970) and passes it on.
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import socketio
import uvicorn

from socketio_postgres import AsyncPostgresManager
from socketio_postgres.demo.process import READY, dsn_from_parent, when_parent_ends
from socketio_postgres.exceptions import SocketIOPostgresError

try:
    from uvloop import run  # faster; see docs/asgi-servers.md
except ImportError:  # no wheel for this Python
    from asyncio import run  # type: ignore[assignment]  # it has other keywords

if TYPE_CHECKING:
    import socket

PAGE = Path(__file__).with_name("page.html")
# Shorter than a sid: every client is alone in the room named by its own, and nobody may enter another's.
_ROOM_MAX_LENGTH = 19
_MESSAGE_KEYS = {"id", "name", "text", "image", "type", "room", "to"}


def create_server(name: str, other_url: str, manager: socketio.AsyncManager) -> socketio.AsyncServer:
    """Make the chat server.

    Args:
        name: How people tell the servers apart.
        other_url: Address of the other server's page, for a link.
        manager: What joins it to the other servers.
    """
    sio = socketio.AsyncServer(client_manager=manager, async_mode="asgi")

    async def connect(sid: str, _environ: dict[str, Any]) -> None:
        await sio.emit("welcome", {"server": name, "sid": sid, "otherUrl": other_url}, room=sid)

    async def join(sid: str, room: str) -> None:
        await sio.enter_room(sid, _checked_room(room))
        await sio.emit("notice", {"text": f"Somebody on {name} joined #{room}"}, room=room, skip_sid=sid)

    async def leave(sid: str, room: str) -> None:
        await sio.leave_room(sid, _checked_room(room))
        await sio.emit("notice", {"text": f"Somebody on {name} left #{room}"}, room=room)

    async def message(sid: str, received: dict[str, Any]) -> dict[str, str]:
        room, to = received.get("room"), received.get("to")
        if room is not None and room not in sio.rooms(sid):
            return {"error": f"join #{room} before you write there"}
        if to is not None and not isinstance(to, str):
            return {"error": f"a private message goes to a sid (got {to!r})"}
        sent = {key: value for key, value in received.items() if key in _MESSAGE_KEYS}
        sent |= {"server": name, "sender": sid, "at": time.time()}
        audience = [to, sid] if to is not None else room  # None is everybody, on every server
        await sio.emit("message", sent, room=audience)
        return {"server": name}

    for handler in (connect, join, leave, message):
        sio.on(handler.__name__, handler)
    return sio


def _checked_room(room: object) -> str:
    if not isinstance(room, str) or not 0 < len(room) <= _ROOM_MAX_LENGTH:
        raise ValueError(f"a room is a name of 1 to {_ROOM_MAX_LENGTH} characters (got {room!r})")
    return room


class _Server(uvicorn.Server):
    """Says so when it accepts connections."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        print(READY, flush=True)

    def stop(self) -> None:
        """End `serve` in order."""
        self.should_exit = True


async def _serve(name: str, port: int, other_url: str) -> None:
    manager = AsyncPostgresManager(dsn_from_parent())
    sio = create_server(name, other_url, manager)
    page = {"filename": str(PAGE), "content_type": "text/html; charset=utf-8"}
    app = socketio.ASGIApp(sio, static_files={"/": page})
    config = uvicorn.Config(
        app, port=port, ws="websockets-sansio", log_level="warning", lifespan="off", timeout_graceful_shutdown=2
    )
    server = _Server(config)
    loop = asyncio.get_running_loop()
    when_parent_ends(lambda: loop.call_soon_threadsafe(server.stop))
    await manager.start()
    try:
        await server.serve()
    finally:
        await manager.close()


if __name__ == "__main__":
    try:
        run(_serve(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
    except SocketIOPostgresError as error:
        sys.exit(f"{sys.argv[1]}: {error}")
