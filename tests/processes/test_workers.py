"""Servers with several worker processes: each is a server of the cluster."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence

import pytest

from socketio_postgres import AsyncPostgresManager
from socketio_postgres.demo.embedded import free_port
from tests.fixtures.clients import PythonClient
from tests.fixtures.database import Database
from tests.fixtures.program import Program
from tests.fixtures.server import PythonServer
from tests.fixtures.waiting import eventually

WORKERS = 2
ASGI = "tests.processes.asgi:app"
WSGI = "tests.processes.wsgi:app"
GUNICORN = ("-m", "gunicorn", "--workers", str(WORKERS), "--graceful-timeout", "1")
COMMANDS: dict[str, tuple[str, ...]] = {
    "uvicorn": ("-m", "uvicorn", "--workers", str(WORKERS), "--timeout-graceful-shutdown", "1", ASGI),
    "gunicorn uvicorn": (*GUNICORN, "-k", "uvicorn_worker.UvicornWorker", ASGI),
    "gunicorn uvicorn preload": (*GUNICORN, "--preload", "-k", "uvicorn_worker.UvicornWorker", ASGI),
    "gunicorn gevent": (*GUNICORN, "-k", "gevent", WSGI),
    "gunicorn gevent preload": (*GUNICORN, "--preload", "-k", "gevent", WSGI),
    "gunicorn threads": (*GUNICORN, "-k", "gthread", "--threads", "20", WSGI),
    "gunicorn threads preload": (*GUNICORN, "--preload", "-k", "gthread", "--threads", "20", WSGI),
}


def _command(arguments: Sequence[str], port: int) -> list[str]:
    where = ["--port", str(port)] if arguments[1] == "uvicorn" else ["--bind", f"127.0.0.1:{port}"]
    return ["-W", "ignore", *arguments, *where]


@pytest.mark.parametrize("name", COMMANDS)
async def test_workers(name: str, database: Database) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    env = {"SIO_PG_TEST_DSN": database.dsn, "SIO_PG_TEST_MODE": "gevent" if "gevent" in name else "threading"}
    mgr = AsyncPostgresManager(database.dsn)
    async with PythonServer(mgr) as here:
        await mgr.start()
        with Program(_command(COMMANDS[name], port), env, url) as program:
            observer = await PythonClient.connect(here.url)
            first = await PythonClient.connect(url)
            pid = await first.call("whoami")
            assert isinstance(pid, int)
            # The kernel gives a new connection to whichever worker takes it: to the other one while this one cannot.
            os.kill(pid, signal.SIGSTOP)
            try:
                second = await PythonClient.connect(url)
                assert await second.call("whoami") != pid
            finally:
                os.kill(pid, signal.SIGCONT)
            clients = [first, second]
            await eventually(lambda: mgr.server_count() == 1 + WORKERS, "each worker is a server")
            await observer.wait_for("asked", len(clients))
            await mgr.emit("hello", b"bytes")
            for client in clients:
                assert await client.wait_for("hello") == [(b"bytes",)]
            answers = await mgr.timeout(10).emit_with_ack("question", 1)
            assert answers == [1] * (len(clients) + 1)
            assert len(observer.received("asked")) == len(clients), "each event once"
            if "uvicorn" not in name:
                # Gunicorn kills workers whose clients stay; the lifespan of ASGI ends before that.
                await mgr.disconnect_sockets(close=True)
                for client in clients:
                    await client.wait_for_disconnect()
            program.signal(signal.SIGTERM)
            # Told, not found out: the heartbeat's time-out is longer.
            await eventually(lambda: mgr.server_count() == 1, "the workers said goodbye", 6.0)
            await program.wait()
            for client in (*clients, observer):
                await client.disconnect()
        await mgr.close()
