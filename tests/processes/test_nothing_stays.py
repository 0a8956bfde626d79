"""Closing leaves no thread, no descriptor and no session behind, whatever the way out."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys

import psycopg
import pytest

from tests.fixtures.database import Database
from tests.fixtures.postgres import sessions
from tests.fixtures.program import ROOT, environment
from tests.fixtures.waiting import TIMEOUT_S, eventually

SEEN = """
import asyncio, os, sys, time
import socketio
from socketio_postgres import *
from socketio_postgres._bus import bus
from socketio_postgres._cluster import async_emitter, async_node, runner
from socketio_postgres._cluster._sync import emitter, node

bus.EXIT_LIMIT = runner.GOODBYE_LIMIT = 30.0  # a busy machine may need more than the usual seconds
for module in (async_emitter, async_node, emitter, node):
    module.CLOSE_LIMIT = 30.0

def threads():
    return len(os.listdir("/proc/self/task"))

def descriptors():
    return len(os.listdir("/proc/self/fd"))

dsn = sys.argv[1]
"""

BLOCKING = """
def use():
    with Emitter(dsn) as io:
        io.emit("hello", b"binary")
        io.flush()
    with PostgresClient(dsn) as client:
        client.listen("jobs")
    mgr = PostgresManager(dsn)
    sio = socketio.Server(client_manager=mgr, async_mode="threading")
    mgr.start()
    mgr.close()
"""

ASYNC = """
async def use_all():
    async with AsyncEmitter(dsn) as io:
        await io.emit("hello", b"binary")
    async with AsyncPostgresClient(dsn) as client:
        await client.listen("jobs")
    mgr = AsyncPostgresManager(dsn)
    sio = socketio.AsyncServer(client_manager=mgr, async_mode="asgi")
    await mgr.start()
    await mgr.close()
    assert len(asyncio.all_tasks()) == 1, asyncio.all_tasks()

def use():
    asyncio.run(use_all())
"""

COMPARE = """
before = descriptors()
for _ in range(3):
    use()
import gc
gc.collect()
deadline = time.monotonic() + 25
while (threads() > 1 or descriptors() > before) and time.monotonic() < deadline:
    time.sleep(0.05)  # the background thread ends on its own time
assert threads() == 1, threads()
assert descriptors() <= before, (descriptors(), before)
"""

# No `close` anywhere: the process ends by itself, by an exception, or by a signal.
SERVING = """
async def main():
    mgr = AsyncPostgresManager(dsn)
    sio = socketio.AsyncServer(client_manager=mgr, async_mode="asgi")
    await mgr.start()
    await sio.emit("last", 1)
    print("ready", flush=True)
    how = sys.argv[2]
    if how == "raise":
        raise SystemExit(7)
    if how == "cancel":
        asyncio.get_running_loop().call_later(0.1, asyncio.current_task().cancel)
    if how != "end":
        await asyncio.sleep(60)

try:
    asyncio.run(main())
except (asyncio.CancelledError, KeyboardInterrupt):
    pass
"""


def check_sessions_end(database: Database) -> None:
    """A server process ends a moment after its connection has."""
    asyncio.run(eventually(lambda: sessions(database) == [], "its sessions are gone"))


def notified(spy: psycopg.Connection, count: int) -> list[str]:
    """The next notifications that are no heartbeats, of which a slow process may send some."""
    found: list[str] = []
    for notify in spy.notifies(timeout=TIMEOUT_S):
        if not notify.payload.startswith('{"type":2,'):
            found.append(notify.payload)
        if len(found) == count:
            break
    return found


@pytest.mark.parametrize("script", [BLOCKING, ASYNC], ids=["blocking", "async"])
def test_closing_leaves_nothing_behind(database: Database, script: str) -> None:
    command = [sys.executable, "-c", SEEN + script + COMPARE, database.dsn]
    done = subprocess.run(
        command, env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    check_sessions_end(database)


DROPPING = {
    "emitter": """
def use():
    Emitter(dsn).emit("last")
""",
    "async emitter": """
async def emit():
    await AsyncEmitter(dsn).emit("last")

def use():
    asyncio.run(emit())
""",
    "listening client": """
def use():
    client = PostgresClient(dsn)
    client.listen("jobs")
    client.notify("socket.io#/", '"last"')
""",
    "write-only manager": """
def use():
    PostgresManager(dsn, write_only=True).emit("last", 1)
""",
}


@pytest.mark.parametrize("script", DROPPING.values(), ids=DROPPING)
def test_what_is_dropped_without_closing_ends_by_itself(database: Database, script: str) -> None:
    """And what it had buffered is sent, and python -X dev tells who forgot to close."""
    with database.connect() as spy:
        spy.execute('LISTEN "socket.io#/"')
        code = SEEN + script + COMPARE
        command = [sys.executable, "-W", "always::ResourceWarning", "-c", code, database.dsn]
        done = subprocess.run(
            command, env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("ResourceWarning: unclosed connection to ") == 3
        assert database.dsn not in done.stderr
        payloads = notified(spy, 3)
    assert ['"last"' in payload for payload in payloads] == [True] * 3
    check_sessions_end(database)


def test_the_end_of_the_process_waits_for_what_was_dropped(database: Database) -> None:
    with database.connect() as spy:
        spy.execute('LISTEN "socket.io#/"')
        command = [sys.executable, "-c", SEEN + 'Emitter(dsn).emit("last")', database.dsn]
        subprocess.run(command, env=environment(), cwd=ROOT, timeout=TIMEOUT_S, check=True)
        assert ['"last"' in payload for payload in notified(spy, 1)] == [True]


@pytest.mark.parametrize(("how", "code"), [("end", 0), ("raise", 7), ("cancel", 0), ("interrupt", 0)])
def test_a_process_that_ends_without_closing_says_goodbye(database: Database, how: str, code: int) -> None:
    with database.connect() as spy:
        spy.execute('LISTEN "socket.io#/"')
        with subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", SEEN + SERVING, database.dsn, how],
            env=environment(),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            if how == "interrupt":
                process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=TIMEOUT_S)
        assert (process.returncode, errors) == (code, "")
        payloads = notified(spy, 3)
    assert ['"type":1' in payloads[0], '"last"' in payloads[1], '"type":13' in payloads[2]] == [True] * 3
    check_sessions_end(database)
