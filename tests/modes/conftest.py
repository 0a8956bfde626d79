"""A sync server of every mode, once per mode, and an async one beside it."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from socketio_postgres import AsyncPostgresManager
from socketio_postgres.demo.embedded import free_port
from tests.fixtures.clients import PythonClient
from tests.fixtures.database import new_database
from tests.fixtures.patience import patience
from tests.fixtures.program import Program
from tests.fixtures.server import PythonServer
from tests.fixtures.waiting import eventually

__all__ = ["MODES", "Pair", "Served", "pair", "patience", "served", "sync_server", "transport"]

MODES = ("threading", "gevent", "gevent patched", "eventlet", "eventlet patched", "gevent_uwsgi")


def sync_server(mode: str, dsn: str, heartbeat_timeout: float = 30.0) -> Program:
    """The server of `tests/modes/server.py`, to be entered."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    env = {"SIO_PG_TEST_MODE": mode, "SIO_PG_TEST_DSN": dsn, "SIO_PG_TEST_PORT": str(port)}
    env["SIO_PG_TEST_HEARTBEAT_TIMEOUT"] = str(heartbeat_timeout)
    if mode != "gevent_uwsgi":
        # Eventlet warns at import that it is deprecated.
        return Program(["-W", "ignore", "-m", "tests.modes.server"], env, url)
    uwsgi = Path(sys.executable).with_name("uwsgi")
    if not uwsgi.exists():
        pytest.skip("uWSGI is not installed; it is built from source: pip install uwsgi")
    options = ["--gevent", "100", "--master", "--need-app", "--die-on-term", "--module", "tests.modes.server:app"]
    return Program([str(uwsgi), "--http-socket", f"127.0.0.1:{port}", "-H", sys.prefix, *options], env, url)


@dataclass
class Served:
    """A sync server and the database that it shares with whoever joins it."""

    program: Program
    dsn: str


@pytest.fixture(scope="session", params=MODES)
def served(request: pytest.FixtureRequest, postgres_dsn: str) -> Iterator[Served]:
    """One server process for all tests of a mode."""
    with ExitStack() as stack:
        dsn = stack.enter_context(new_database(postgres_dsn)).dsn
        yield Served(stack.enter_context(sync_server(request.param, dsn)), dsn)


@dataclass
class Pair:
    """A cluster of a sync server in its own process and an async server here, a client on each."""

    there: Program
    here: PythonServer
    mgr: AsyncPostgresManager
    client_there: PythonClient
    client_here: PythonClient


@pytest.fixture
def transport() -> str:
    """How clients connect; a test may parametrize it."""
    return "websocket"


@pytest.fixture
async def pair(served: Served, transport: str) -> AsyncIterator[Pair]:
    """Both clients are in room "both", and in "there" or "here"."""
    mgr = AsyncPostgresManager(served.dsn, heartbeat_timeout=30.0)
    async with AsyncExitStack() as stack:
        here = await stack.enter_async_context(PythonServer(mgr))
        stack.push_async_callback(mgr.close)
        await mgr.start()
        clients = []
        for label, url in (("there", served.program.url), ("here", here.url)):
            client = await PythonClient.connect(
                url, label=label, auth={"rooms": ["both", label]}, transports=[transport]
            )
            stack.push_async_callback(client.disconnect)
            clients.append(client)

        async def know_each_other() -> bool:
            return mgr.server_count() == 2 == await served.program.ask("mgr.server_count()")

        await eventually(know_each_other, "the servers know each other")
        yield Pair(served.program, here, mgr, *clients)
