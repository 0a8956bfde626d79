"""A sync server for workers of any kind; everything is made at import, nothing starts before the workers do."""

# mypy: disable-error-code="untyped-decorator"

import os

import socketio

from socketio_postgres import PostgresManager
from socketio_postgres._bus import bus

bus.EXIT_LIMIT = 30.0  # type: ignore[misc]  # a busy machine may need more than the usual five seconds

# A server that goes without a goodbye is missed later than any test waits.
mgr = PostgresManager(os.environ["SIO_PG_TEST_DSN"], heartbeat_timeout=120)
sio = socketio.Server(client_manager=mgr, async_mode=os.environ["SIO_PG_TEST_MODE"])
app = socketio.WSGIApp(sio)


@sio.event
def whoami(sid: str) -> int:
    sio.emit("asked", (os.getpid(), sid))
    return os.getpid()
