"""The first screen of the README, followed to the letter: its server, started twice by its commands, is one cluster."""

from __future__ import annotations

import re
import shlex
from contextlib import AsyncExitStack
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
