"""Plain ASGI: a chat whose rooms span all server processes, and requests to all of them.

pip install socketio-postgres 'uvicorn[standard]'
export DATABASE_URL=postgresql://app@localhost/app
uvicorn examples.asgi_app:app --ws websockets-sansio --workers 2
"""

import os
from typing import Any

import socketio

from socketio_postgres import AsyncPostgresManager

# The manager connects later: `--workers` and `--preload` import this module before they start the worker processes.
mgr = AsyncPostgresManager(os.environ["DATABASE_URL"])
sio = socketio.AsyncServer(client_manager=mgr, async_mode="asgi", cors_allowed_origins=[])

# `start` raises at once if the database cannot be used; `close` tells the other servers that this server leaves.
app = socketio.ASGIApp(sio, on_startup=mgr.start, on_shutdown=mgr.close)


@sio.event
async def connect(sid: str, environ: dict[str, Any], auth: dict[str, Any] | None = None) -> None:
    await sio.enter_room(sid, (auth or {}).get("room", "lobby"))


@sio.event
async def chat(sid: str, room: str, text: str) -> None:
    # To all clients in the room, on all servers, except the sender.
    await sio.emit("chat", text, room=room, skip_sid=sid)


@sio.event
async def who(sid: str, room: str) -> list[str]:
    # A request to all servers (Python, Node.js, Go); the client receives the result as its acknowledgement.
    return [socket.id for socket in await mgr.to(room).fetch_sockets()]


@sio.event
async def vote(sid: str, question: str) -> list[Any]:
    # One answer per client of the whole cluster; clients that do not answer in time are left out.
    return await mgr.timeout(2.0).emit_with_ack("vote", question, partial=True)


@sio.event
async def processes(sid: str) -> list[int]:
    # The other servers return what their handlers of this event return; this server adds its own process id.
    return [os.getpid(), *await mgr.server_side_emit_with_ack("pid", timeout=2.0)]


@mgr.on_server_side("pid")
async def pid() -> int:
    return os.getpid()
