"""An async server for workers of any kind; everything is made at import, nothing starts before the workers do."""

# mypy: disable-error-code="untyped-decorator"

import os

import socketio

from socketio_postgres import AsyncPostgresManager

mgr = AsyncPostgresManager(os.environ["SIO_PG_TEST_DSN"])
sio = socketio.AsyncServer(client_manager=mgr, async_mode="asgi")
app = socketio.ASGIApp(sio, on_startup=mgr.start, on_shutdown=mgr.close)


@sio.event
async def whoami(sid: str) -> int:
    await sio.emit("asked", (os.getpid(), sid))
    return os.getpid()
