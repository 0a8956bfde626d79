"""An async server for workers of any kind; everything is made at import, nothing starts before the workers do."""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import os
from typing import Any

import socketio

from socketio_postgres import AsyncPostgresManager
from socketio_postgres._cluster import async_node

async_node.CLOSE_LIMIT = 30.0  # type: ignore[misc]  # a busy machine may need more than the usual five seconds

# A server that goes without a goodbye is missed later than any test waits.
mgr = AsyncPostgresManager(os.environ["SIO_PG_TEST_DSN"], heartbeat_timeout=120)
# Engine.IO answers a waiting poll at the latest when it pings.
sio = socketio.AsyncServer(
    client_manager=mgr, async_mode="asgi", ping_interval=float(os.environ.get("SIO_PG_TEST_PING_S", "25"))
)
app = socketio.ASGIApp(sio, on_startup=mgr.start, on_shutdown=mgr.close)


@sio.event
async def connect(sid: str, _environ: object, auth: dict[str, Any] | None = None) -> None:
    for room in (auth or {}).get("rooms", []):
        await sio.enter_room(sid, room)


@sio.event
async def whoami(sid: str) -> int:
    await sio.emit("asked", (os.getpid(), sid))
    return os.getpid()


@sio.event
async def say(sid: str, room: str | None, content: object) -> None:
    await sio.emit("said", content, room=room, skip_sid=sid)


@sio.event
async def question(sid: str, other: str, content: object) -> object:
    return await sio.call("question", content, to=other, timeout=20)
