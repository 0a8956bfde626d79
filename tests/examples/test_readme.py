"""The first screen of the README, followed to the letter: its server, started twice by its commands, is one cluster."""

from __future__ import annotations

import re
import shlex
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path

import pytest

from socketio_postgres.demo.embedded import free_port
from tests.fixtures.clients import PythonClient
from tests.fixtures.database import Database
from tests.fixtures.program import ROOT, Program
from tests.fixtures.waiting import eventually


@pytest.mark.parametrize("document", ["README.md", "docs/quick-start.md"])
async def test_a_message_crosses_two_servers(document: str, database: Database, tmp_path: Path) -> None:
    text = (ROOT / document).read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    (server,) = (block for block in blocks if "\napp = socketio.ASGIApp" in block)
    (tmp_path / "app.py").write_text(re.sub(r'"postgresql://[^"]*"', repr(database.url), server))
    commands = re.findall(r"^    (uvicorn app:app .*?)(?: &)?$", text, re.MULTILINE)
    assert len(commands) == 2
    async with AsyncExitStack() as stack:
        clients = []
        for command in commands:
            port = str(free_port())
            words = [*shlex.split(re.sub(r"--port \d+", f"--port {port}", command)), "--app-dir", str(tmp_path)]
            program = Program(["-m", *words, "--timeout-graceful-shutdown", "1"], url=f"http://127.0.0.1:{port}")
            stack.enter_context(program)
            client = await PythonClient.connect(program.url, label=program.url)
            stack.push_async_callback(client.disconnect)
            clients.append(client)
        one, other = clients

        async def arrives() -> bool:
            await one.emit("chat", "hello")  # again: a server that has just started may listen a moment later
            return bool(other.received("chat"))

        await eventually(arrives, "a message crosses")
        assert other.received("chat")[0] == ("hello",)
        assert one.received("chat") == []


async def test_the_client_of_the_quick_start(database: Database, tmp_path: Path) -> None:
    """Two servers, and its client run by its commands: one listens, the other one speaks on the other server."""
    text = (ROOT / "docs" / "quick-start.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    (server,) = (block for block in blocks if "\napp = socketio.ASGIApp" in block)
    (client,) = (block for block in blocks if "AsyncSimpleClient" in block)
    (tmp_path / "app.py").write_text(re.sub(r'"postgresql://[^"]*"', repr(database.url), server))
    (tmp_path / "client.py").write_text(client)
    ports = {"8001": str(free_port()), "8002": str(free_port())}
    listen, say = (
        ["-u", str(tmp_path / "client.py"), *re.sub(r"800\d", lambda port: ports[port[0]], words).split()]
        for words in re.findall(r"^    python client.py (.*)$", text, re.MULTILINE)
    )
    with ExitStack() as stack:
        for port in ports.values():
            words = ["-m", "uvicorn", "app:app", "--app-dir", str(tmp_path), "--port", port]
            words += ["--timeout-graceful-shutdown", "1"]
            stack.enter_context(Program(words, url=f"http://127.0.0.1:{port}"))
        for port in ports.values():  # now they have joined the cluster, and answer a client soon
            await (await PythonClient.connect(f"http://127.0.0.1:{port}")).disconnect()
        listening = stack.enter_context(Program(listen))

        async def arrives() -> bool:
            with Program(say) as speaking:  # again: the other client may connect a moment later
                assert await speaking.wait() == 0, speaking.output
            return "chat hello\n" in listening.output

        await eventually(arrives, "a message crosses")
