"""The manager under each ASGI server: what docs/asgi-servers.md says about them."""

from __future__ import annotations

import asyncio
import re
import signal
from contextlib import ExitStack

import pytest

from socketio_postgres import AsyncPostgresManager
from socketio_postgres.demo.embedded import free_port
from tests.fixtures.clients import PythonClient
from tests.fixtures.database import Database
from tests.fixtures.program import Program
from tests.fixtures.server import PythonServer
from tests.fixtures.waiting import TIMEOUT_S, eventually

APP = "tests.processes.asgi:app"
UVICORN = ("-m", "uvicorn", APP, "--ws")
COMMANDS: dict[str, tuple[str, ...]] = {
    "uvicorn websockets": (*UVICORN, "websockets", "--loop", "asyncio"),
    "uvicorn websockets-sansio uvloop": (*UVICORN, "websockets-sansio", "--loop", "uvloop"),
    "uvicorn wsproto": (*UVICORN, "wsproto", "--loop", "asyncio"),
    # In its other mode granian sometimes panics when it ends: its issue 884.
    "granian": ("-m", "granian", APP, "--interface", "asgi", "--runtime-mode", "st"),
}
TEXT = "é" * 40_000
BINARY = bytes(range(256)) * 1000
HEARTBEAT_TIMEOUT_S = 120.0
"""As the servers have it: one that ends without a goodbye is missed later than any test waits."""


def serving(name: str, database: Database, graceful: str = "40", **env: str) -> Program:
    """A server, to be entered; uvicorn gives connections so many seconds to end, and complains of those that do not."""
    port = free_port()
    command = ["-W", "ignore", *COMMANDS[name], "--port", str(port)]
    if name.startswith("uvicorn"):
        command += ["--timeout-graceful-shutdown", graceful]
    return Program(command, {"SIO_PG_TEST_DSN": database.dsn, **env}, f"http://127.0.0.1:{port}")


async def end(program: Program, mgr: AsyncPostgresManager, others: int, clients: list[PythonClient]) -> str:
    """Send SIGTERM: clients and the other servers are told, and the process ends; gives what it printed."""
    program.signal(signal.SIGTERM)
    await asyncio.gather(
        eventually(lambda: mgr.server_count() == others, "the server said goodbye"),
        *(client.wait_for_disconnect() for client in clients),
    )
    # uvicorn ends by the signal itself when its work is done.
    assert await program.wait() in {0, -signal.SIGTERM}
    return program.output


@pytest.mark.parametrize("name", COMMANDS)
async def test_two_servers(name: str, database: Database) -> None:
    mgr = AsyncPostgresManager(database.dsn, heartbeat_timeout=HEARTBEAT_TIMEOUT_S)
    async with PythonServer(mgr):
        await mgr.start()
        with ExitStack() as stack:
            programs = [stack.enter_context(serving(name, database)) for _ in range(2)]
            first, second = [
                await PythonClient.connect(program.url, label=program.url, auth={"rooms": ["kitchen"]})
                for program in programs
            ]
            outside = await PythonClient.connect(programs[1].url, label="outside")
            await eventually(lambda: mgr.server_count() == 1 + len(programs), "the servers know each other")

            contents: list[object] = ["short", TEXT, BINARY, {"both": [BINARY, TEXT]}]
            for sender, receiver in ((first, second), (second, first)):
                for content in contents:
                    await sender.emit("say", "kitchen", content)
                assert await receiver.wait_for("said", len(contents)) == [(content,) for content in contents]
                assert await sender.call("question", receiver.sid, BINARY) == BINARY
            await first.emit("say", None, "everybody")
            assert await outside.wait_for("said") == [("everybody",)], "nothing for the room came before"
            assert sorted(await mgr.timeout(TIMEOUT_S).emit_with_ack("question", 1)) == [1, 1, 1]

            output = await end(programs[0], mgr, 2, [first])
            assert not re.search("error|exception|traceback|warning", output, re.IGNORECASE), output
            await mgr.emit("hello", b"bytes", room="kitchen")
            assert await second.wait_for("hello") == [(b"bytes",)], "the other one goes on"
            for client in (first, second, outside):
                await client.disconnect()
        await mgr.close()


@pytest.mark.parametrize("name", COMMANDS)
async def test_a_poll_that_waits_does_not_prevent_an_end_in_order(name: str, database: Database) -> None:
    """What uvicorn cuts when its time is over, granian leaves open: it waits until Engine.IO answers it with a ping."""
    mgr = AsyncPostgresManager(database.dsn, heartbeat_timeout=HEARTBEAT_TIMEOUT_S)
    async with PythonServer(mgr):
        await mgr.start()
        with serving(name, database, "1", SIO_PG_TEST_PING_S="2" if name == "granian" else "25") as program:
            client = await PythonClient.connect(program.url, transports=["polling"])
            await eventually(lambda: mgr.server_count() == 2, "the servers know each other")
            await mgr.emit("hello", b"bytes")
            assert await client.wait_for("hello") == [(b"bytes",)]
            output = await end(program, mgr, 1, [client])
            assert not re.search("exception|traceback", output, re.IGNORECASE), output
            await client.disconnect()
        await mgr.close()
