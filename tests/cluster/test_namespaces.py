"""Joining and leaving: LISTEN before the client is told, a goodbye at the end, nothing left behind."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import socketio_postgres
from socketio_postgres import AsyncEmitter
from socketio_postgres.demo.embedded import free_port
from tests.fixtures.bus import acquainted, serving
from tests.fixtures.clients import PythonClient
from tests.fixtures.database import Database
from tests.fixtures.members import AsyncMember, SyncMember
from tests.fixtures.spy import spying
from tests.fixtures.waiting import TIMEOUT_S, eventually

PACKAGE = os.fspath(Path(socketio_postgres.__file__).parent)
CHANNELS = ("socket.io#/", "socket.io#/a", "socket.io#/b")


def sessions(database: Database) -> object:
    return database.value(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )


async def test_a_namespace_is_joined_with_its_first_client(database: Database) -> None:
    async with spying(database, CHANNELS) as spy, serving(database, ["/", "/a", "/b"]) as ours:
        assert ours.manager.stats() == {"peers": {}}, "nothing happens before"
        client = await PythonClient.connect(ours.url, namespace="/a")
        await eventually(lambda: set(ours.manager.stats()["peers"]) == {"/", "/a", "/b"}, "all served ones are joined")
        await client.disconnect()
        await spy.wait_for(lambda frame: frame.header["type"] == 1, 3)


async def test_a_namespace_nobody_named_is_joined_when_it_is_asked_for(database: Database) -> None:
    async with serving(database) as ours:
        await acquainted(ours)
        ours.sio.on("connect", _accept, namespace="/late")
        assert "/late" not in ours.manager.stats()["peers"]
        client = await PythonClient.connect(ours.url, namespace="/late")
        assert "/late" in ours.manager.stats()["peers"]
        async with AsyncEmitter(database.dsn) as io:
            await io.of("/late").emit("hello")
        await client.wait_for("hello")
        await client.disconnect()


@pytest.mark.parametrize("kind", [AsyncMember, SyncMember])
async def test_a_namespace_that_is_not_served_is_left_after_its_last_client(
    database: Database, kind: type[AsyncMember | SyncMember]
) -> None:
    """With `namespaces="*"` clients name what they like; nothing of it stays."""
    errors: list[Exception] = []
    options: dict[str, Any] = {"heartbeat_timeout": 60.0, "error_handler": errors.append}
    ours = kind("ours", database, ["/"], **options)
    ours.sio.namespaces = "*"

    later = itertools.count(time.monotonic() + 100.0, 100.0)

    # Its own thread does this, too.
    lock, tick = threading.RLock(), ours.manager._node.tick

    def one_by_one(now: float) -> float:
        with lock:
            return tick(now)

    ours.manager._node.tick = one_by_one  # type: ignore[method-assign]

    def is_joined() -> bool:
        """Whether it still is, later by more than the minute after which an unused one is left."""
        ours.manager._node.tick(next(later))
        return "/a" in ours.manager.stats()["peers"]

    async with spying(database, CHANNELS) as spy, AsyncEmitter(database.dsn) as io:
        await ours.start()
        for round_number in (1, 2):  # it can be joined again
            client = await PythonClient.connect(ours.url, namespace="/a")
            assert is_joined()
            await io.of("/a").emit("hello")
            await client.wait_for("hello")
            await client.disconnect()
            await eventually(lambda: not is_joined(), "it is left")
            await spy.wait_for(lambda frame: (frame.header["type"], frame.header["nsp"]) == (13, "/a"), round_number)
            await eventually(lambda: ours.manager.stats()["channels"] == 1, "UNLISTEN")
        assert "/" in ours.manager.stats()["peers"], "this one is served, with or without clients"
        assert (errors, ours.manager.stats()["gaps"]) == ([], 0)
        await ours.close()


def _accept(sid: str, environ: object, auth: object) -> None:
    """Let a client in."""


async def test_listen_is_active_before_the_client_is_told(database: Database) -> None:
    """Ten servers, and for each an event sent from elsewhere in the instant in which its first client connects."""
    async with AsyncEmitter(database.dsn) as io:
        for number in range(10):
            async with serving(database, ["/", "/a"]) as ours:
                client = await PythonClient.connect(ours.url, namespace="/a" if number % 2 else "/")
                await io.of(client.namespace).to(client.sid).emit("welcome", number)
                assert await client.wait_for("welcome") == [(number,)]
                await client.disconnect()


async def test_an_announcement_follows_listening(database: Database) -> None:
    """Whoever answers the announcement is heard: two servers that meet for the first time know each other at once."""
    async with serving(database, heartbeat_interval=60.0, heartbeat_timeout=120.0) as one:
        await one.manager.start()
        for _ in range(5):
            async with serving(database, heartbeat_interval=60.0, heartbeat_timeout=120.0) as other:
                await other.manager.start()
                await eventually(lambda other=other: other.manager.server_count() == 2, "it is answered")  # type: ignore[misc]
                assert one.manager.server_count() == 2
            await eventually(lambda: one.manager.server_count() == 1, "its goodbye is heard")


async def test_a_server_whose_loop_hangs_is_no_longer_counted(database: Database) -> None:
    """Its connection is well, and its lock would be held for ever; but nobody there takes what arrives."""
    timing: dict[str, Any] = {"heartbeat_interval": 0.5, "heartbeat_timeout": 3.0}
    async with serving(database, **timing) as ours, serving(database, **timing) as other:
        await acquainted(ours, other)
        for task in (other.manager._node.runner.reader, other.manager._node.runner.ticker):
            assert task is not None
            task.cancel()
        await eventually(lambda: ours.manager.server_count() == 1, "it is no longer counted")


async def test_close_says_goodbye_in_every_namespace(database: Database) -> None:
    async with spying(database, CHANNELS) as spy:
        async with serving(database, ["/", "/a", "/b"]) as ours:
            await ours.manager.start()
            uid = ours.manager.host_id
            await ours.sio.emit("last", b"")
            await ours.manager.close()
            await ours.manager.close()
        frames = await spy.wait_for(lambda frame: frame.header["type"] == 13, 3)
        assert {frame.channel for frame in frames} == set(CHANNELS)
        assert {frame.header["uid"] for frame in frames} == {uid}
        order = [frame.header["type"] for frame in spy.frames if frame.channel == "socket.io#/"]
        assert order[-2:] == [3, 13], "what was emitted before is committed before"
    await eventually(lambda: sessions(database) == 0, "all sessions are closed")


async def test_close_leaves_no_task_and_no_connection(database: Database) -> None:
    threads = {thread.name for thread in threading.enumerate()}
    for _ in range(3):
        async with serving(database) as ours:
            await acquainted(ours)
            client = await PythonClient.connect(ours.url)
            assert _our_tasks(), "or the test below would prove nothing"
            await client.disconnect()
    await eventually(lambda: not _our_tasks(), "no task is left")
    await eventually(lambda: sessions(database) == 0, "no session is left")

    def is_left() -> set[str]:
        return {thread.name for thread in threading.enumerate() if "socketio" in thread.name} - threads

    await eventually(lambda: not is_left(), "no thread is left")


def _our_tasks() -> list[object]:
    tasks = asyncio.all_tasks()
    return [task for task in tasks if PACKAGE in task.get_coro().cr_code.co_filename]  # type: ignore[union-attr]


SERVER = """
    import sys
    import socketio, uvicorn
    from socketio_postgres import AsyncPostgresManager
    from socketio_postgres._cluster import async_node, runner
    runner.GOODBYE_LIMIT = async_node.CLOSE_LIMIT = 40.0  # PostgreSQL may be slow
    dsn, port = sys.argv[1], int(sys.argv[2])
    mgr = AsyncPostgresManager(dsn)
    sio = socketio.AsyncServer(client_manager=mgr, async_mode="asgi")
    sio.on("connect", lambda sid, environ, auth: None, namespace="/")
    sio.on("connect", lambda sid, environ, auth: None, namespace="/a")
    hook = {"on_shutdown": mgr.close} if sys.argv[3] == "hook" else {}
    uvicorn.run(socketio.ASGIApp(sio, **hook), host="127.0.0.1", port=port, log_level="warning",
                timeout_graceful_shutdown=1)
"""


@pytest.mark.parametrize(
    ("stop", "hook"),
    [
        (signal.SIGINT, "no hook"),  # Ctrl-C: nobody calls the manager, and still everybody hears that it leaves
        (signal.SIGINT, "hook"),
        # uvicorn ends the process by this signal at once; only its own hook comes before
        (signal.SIGTERM, "hook"),
    ],
)
async def test_the_end_of_uvicorn_says_goodbye(
    database: Database, tmp_path: Path, stop: signal.Signals, hook: str
) -> None:
    script = tmp_path / "server.py"
    script.write_text(textwrap.dedent(SERVER))
    port = free_port()
    async with spying(database, CHANNELS) as spy:
        process = subprocess.Popen(  # noqa: ASYNC220 - it starts at once, and is waited for in a thread
            [sys.executable, os.fspath(script), database.dsn, str(port), hook],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            client = await _connected(port)
            await spy.wait_for(lambda frame: frame.header["type"] == 1, 2)
            process.send_signal(stop)
            _, errors = await asyncio.to_thread(process.communicate, timeout=TIMEOUT_S)
            await client.wait_for_disconnect()
            await client.disconnect()
        finally:
            process.kill()
            process.wait()
        frames = await spy.wait_for(lambda frame: frame.header["type"] == 13, 2)
        assert sorted(frame.channel for frame in frames) == ["socket.io#/", "socket.io#/a"]
        assert "never retrieved" not in errors, errors
        assert "was destroyed" not in errors, errors
    await eventually(lambda: sessions(database) == 0, "all sessions are closed")


async def _connected(port: int) -> PythonClient:
    """Connect as soon as the server is there."""

    async def is_there() -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            return False
        writer.close()
        return True

    await eventually(is_there, "the server is there")
    return await PythonClient.connect(f"http://127.0.0.1:{port}")
