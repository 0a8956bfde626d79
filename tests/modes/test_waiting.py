"""Nobody is frozen while somebody waits for PostgreSQL, Ctrl-C ends every wait, and leaving is said aloud."""

from __future__ import annotations

import contextlib
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from socketio_postgres import AsyncPostgresManager
from tests.fixtures.clients import PythonClient
from tests.fixtures.database import Database
from tests.fixtures.postgres import OwnPostgres
from tests.fixtures.program import Program
from tests.fixtures.server import PythonServer
from tests.fixtures.waiting import eventually
from tests.modes.conftest import MODES, Served, sync_server


@pytest.fixture(scope="module")
def own_postgres() -> Iterator[OwnPostgres]:
    """A PostgreSQL that may be stopped without harming other tests."""
    with OwnPostgres() as server:
        yield server


@contextmanager
def frozen(server: OwnPostgres) -> Iterator[None]:
    """No process of PostgreSQL does anything while the block runs."""
    try:
        server.freeze()
        yield
    finally:
        server.thaw()


async def ticks_go_on(program: Program) -> None:
    """A background task of the server runs, and its HTTP endpoint answers."""
    begin = int(await program.get("/alive"))

    async def went_on() -> bool:
        return int(await program.get("/alive")) >= begin + 20

    await eventually(went_on, "the server's background task runs")


WAITS = {
    "flush": "lambda: (mgr.emit('event', 1), mgr.flush())",
    "space": "lambda: [small.emit('event', number) for number in range(20)]",
    "flush of an emitter": "lambda: (emitter.emit('event', 1), emitter.flush())",
    "a new namespace": "lambda: mgr.of('/new').fetch_sockets()",
    "a query": "lambda: raw.cleanup_attachments()",
    "a notification": "lambda: raw.wait_for_notification(60).payload",
}


@pytest.mark.parametrize("mode", MODES)
async def test_others_run_while_somebody_waits(mode: str, own_postgres: OwnPostgres) -> None:
    with sync_server(mode, own_postgres.dsn(), heartbeat_timeout=120.0) as program:
        await program.ask("mgr.start()")
        await program.ask("globals().update(small=Emitter(DSN, buffer_count=2), raw=PostgresClient(DSN))")
        await program.ask("(small.start(), emitter.start(), raw.start(), raw.ensure_table(), raw.listen('raw'))")
        await ticks_go_on(program)  # while the listener waits for something to happen
        for trouble in ("frozen", "down"):
            await program.ask("results.clear()")
            if trouble == "frozen":
                with frozen(own_postgres):
                    for name, wait in WAITS.items():
                        await program.ask(f"start({name!r}, {wait})")
                    await ticks_go_on(program)
                    assert await program.ask("results") == {}  # nothing can end it
            else:
                own_postgres.stop("immediate")
                try:
                    for name in ("flush", "space", "flush of an emitter"):
                        await program.ask(f"start({name!r}, {WAITS[name]})")
                    await ticks_go_on(program)
                    assert await program.ask("results") == {}
                finally:
                    own_postgres.start()
            await program.ask("(raw.notify('raw', 'hello'), None)[1]")
            count = len(WAITS) if trouble == "frozen" else 3

            async def all_done(count: int = count) -> object:
                return await program.ask("len(results)") == count

            await eventually(all_done, f"everything goes on after PostgreSQL was {trouble}")
            results = await program.ask("results")
            assert isinstance(results, dict)
            # When the connection broke during the commit, a flush says that it does not know.
            assert not [value for value in results.values() if isinstance(value, str) and "Timeout" in value]


GOODBYE_ONLY_S = 120.0
"""A heartbeat's time-out so long that no test waits for it: a server that is missed before has said goodbye."""


async def interrupted(program: Program, seconds: float = 5.0) -> int:
    """Press Ctrl-C until the program ends. Greenlets share a thread: whichever runs at that moment hears of it.

    Those of Engine.IO keep it to themselves.
    """
    for _ in range(4):
        program.signal(signal.SIGINT)
        with contextlib.suppress(AssertionError):
            return await program.wait(seconds)
    return await program.wait(seconds)


@pytest.mark.parametrize("what", ["start", "flush", "emit", "wait_for_notification"])
@pytest.mark.parametrize("library", ["threading", "gevent", "eventlet"])
async def test_ctrl_c_ends_a_wait(library: str, what: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = str(silent.getsockname()[1])
        arguments = ["-W", "ignore", "-m", "tests.modes.waiter", library, what, port]
        with Program(arguments) as program:
            await eventually(lambda: "others run" in program.output, "threads or greenlets run meanwhile")
            assert await interrupted(program) == 3, program.output
            assert program.output.splitlines()[-1] == "interrupted"


@pytest.mark.parametrize("mode", MODES)
async def test_ctrl_c_ends_a_server_that_says_goodbye(mode: str, database: Database) -> None:
    mgr = AsyncPostgresManager(database.dsn, heartbeat_timeout=GOODBYE_ONLY_S)
    async with PythonServer(mgr):
        await mgr.start()
        with sync_server(mode, database.dsn) as program:
            client = await PythonClient.connect(program.url)
            await eventually(lambda: mgr.server_count() == 2, "the servers know each other")

            async def is_at_rest() -> bool:
                return bool(await program.ask("mgr.server_count()") == 2)

            # A signal interrupts whatever greenlet runs, also the one that is just hearing of the other server.
            await eventually(is_at_rest, "the other one does, too")
            code = await interrupted(program, 20.0)  # a goodbye may take a while, and is not to be interrupted
            await eventually(lambda: mgr.server_count() == 1, "the goodbye was heard")
            assert code in {0, 1}, program.output
            assert "Fatal" not in program.output
            # gevent shows where the application was interrupted; it was not inside of us.
            assert "/socketio_postgres/" not in program.output
            await client.disconnect()
        await mgr.close()


async def test_a_thread_that_waits_does_not_disturb_the_end_of_the_process() -> None:
    script = (
        "import sys, threading, time\n"
        "from socketio_postgres import PostgresClient\n"
        "client = PostgresClient('postgresql://app@127.0.0.1:1/app')\n"
        "for _ in range(8): threading.Thread(target=client.wait_for_notification, daemon=True).start()\n"
        "time.sleep(0.2)\n"
    )
    for _ in range(3):
        with Program(["-c", script]) as program:
            assert await program.wait() == 0, program.output
            assert program.output == ""


async def test_closing(served: Served) -> None:
    """Leaves at once, says so, and leaves no thread behind; twice is once."""
    mgr = AsyncPostgresManager(served.dsn, heartbeat_timeout=GOODBYE_ONLY_S)
    async with PythonServer(mgr):
        await mgr.start()
        await served.program.ask("mgr.start()")
        await eventually(lambda: mgr.server_count() == 2, "the servers know each other")
        await served.program.ask("open_another()")
        await eventually(lambda: mgr.server_count() == 3, "another manager is another server")
        assert await served.program.ask("close_another()") == []
        await eventually(lambda: mgr.server_count() == 2, "it said goodbye")
        with pytest.raises(AssertionError, match="ClosedError"):
            await served.program.ask("another.emit('event', 1)")
        await mgr.close()


async def test_closing_while_postgres_does_not_answer(own_postgres: OwnPostgres) -> None:
    with sync_server("threading", own_postgres.dsn()) as program:
        await program.ask("open_another()")
        await program.ask("setattr(node, 'CLOSE_LIMIT', 5.0)")
        with frozen(own_postgres):
            # Five seconds for what is buffered, which here is the goodbye.
            assert await program.ask("close_another()") == []
