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
from tests.fixtures.waiting import TIMEOUT_S, eventually

WORKERS = 2
ASGI = "tests.processes.asgi:app"
WSGI = "tests.processes.wsgi:app"
# Gunicorn kills workers that have not said goodbye when this time is over.
GUNICORN = ("-m", "gunicorn", "--workers", str(WORKERS), "--graceful-timeout", "40", "--timeout", "120")
# Uvicorn asks its workers whether they live, and kills one that does not answer in time. Here one is stopped.
UVICORN = ("-m", "uvicorn", "--workers", str(WORKERS), "--timeout-worker-healthcheck", "120")
COMMANDS: dict[str, tuple[str, ...]] = {
    "uvicorn": (*UVICORN, "--timeout-graceful-shutdown", "1", ASGI),
    "granian": ("-m", "granian", "--interface", "asgi", "--runtime-mode", "st", "--workers", str(WORKERS), ASGI),
    "gunicorn uvicorn": (*GUNICORN, "-k", "uvicorn_worker.UvicornWorker", ASGI),
    "gunicorn uvicorn preload": (*GUNICORN, "--preload", "-k", "uvicorn_worker.UvicornWorker", ASGI),
    "gunicorn gevent": (*GUNICORN, "-k", "gevent", WSGI),
    "gunicorn gevent preload": (*GUNICORN, "--preload", "-k", "gevent", WSGI),
    "gunicorn threads": (*GUNICORN, "-k", "gthread", "--threads", "20", WSGI),
    "gunicorn threads preload": (*GUNICORN, "--preload", "-k", "gthread", "--threads", "20", WSGI),
}


def _command(arguments: Sequence[str], port: int) -> list[str]:
    where = ["--port", str(port)] if arguments[1] != "gunicorn" else ["--bind", f"127.0.0.1:{port}"]
    return ["-W", "ignore", *arguments, *where]


async def _client_of_another(pid: int, url: str, *, is_balanced: bool) -> PythonClient:
    """Connect to another worker than the one with this process id."""

    async def connect() -> PythonClient | None:
        client = await PythonClient.connect(url)
        if await client.call("whoami") != pid:
            return client
        await client.disconnect()
        return None

    if is_balanced:
        # Each worker listens for itself, and the kernel deals the connections out.
        client = await eventually(connect, "the kernel chooses the other worker")
    else:
        # The kernel gives a new connection to whichever worker takes it: to the other one while this one cannot.
        os.kill(pid, signal.SIGSTOP)
        try:
            client = await connect()
        finally:
            os.kill(pid, signal.SIGCONT)
    assert client is not None, "it is another worker"
    return client


@pytest.mark.parametrize("name", COMMANDS)
async def test_workers(name: str, database: Database) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    env = {"SIO_PG_TEST_DSN": database.dsn, "SIO_PG_TEST_MODE": "gevent" if "gevent" in name else "threading"}
    mgr = AsyncPostgresManager(database.dsn, heartbeat_timeout=120)
    async with PythonServer(mgr) as here:
        await mgr.start()
        with Program(_command(COMMANDS[name], port), env, url) as program:
            observer = await PythonClient.connect(here.url)
            first = await PythonClient.connect(url)
            pid = await first.call("whoami")
            assert isinstance(pid, int)
            second = await _client_of_another(pid, url, is_balanced=name == "granian")
            clients = [first, second]
            await eventually(lambda: mgr.server_count() == 1 + WORKERS, "each worker is a server")
            await observer.wait_for("asked", len(clients))
            await mgr.emit("hello", b"bytes")
            for client in clients:
                assert await client.wait_for("hello") == [(b"bytes",)]

            async def only_these() -> bool:
                return len(await mgr.timeout(TIMEOUT_S).fetch_sockets()) == len(clients) + 1

            await eventually(only_these, "clients that left are gone")
            answers = await mgr.timeout(TIMEOUT_S).emit_with_ack("question", 1)
            assert answers == [1] * (len(clients) + 1)
            asked = [args[1] for args in observer.received("asked")]
            assert len(asked) == len(set(asked)), "each event once"
            if name.startswith("gunicorn") and "uvicorn" not in name:
                # Gunicorn kills workers whose clients stay; the lifespan of ASGI ends before that.
                await mgr.disconnect_sockets(close=True)
                for client in clients:
                    await client.wait_for_disconnect()
            program.signal(signal.SIGTERM)
            # Told, not found out: the heartbeat's time-out is longer.
            await eventually(lambda: mgr.server_count() == 1, "the workers said goodbye")
            await program.wait()
            for client in (*clients, observer):
                await client.disconnect()
        await mgr.close()
