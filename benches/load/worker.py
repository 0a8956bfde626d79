"""A process of the bench as its driver sees it: commands go in as JSON lines, answers come out."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

from typing_extensions import Self

ROOT = Path(__file__).parents[2]
NODE_MODULES = ROOT / "tests" / "peers" / "node" / "node_modules"
LIMIT_S = 180.0
"""Longest that one command may take."""


class WorkerError(Exception):
    """A command failed, or took too long."""


class Worker:
    """Runs while the `async with` block does.

    Args:
        module: A module of this package, or a JavaScript file in its folder.
        arguments: Its command line.
    """

    def __init__(self, module: str, *arguments: str) -> None:
        self.module = module
        self._arguments = arguments
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Start."""
        if self.module.endswith(".js"):
            command = ["node", str(Path(__file__).parent / self.module)]
        else:
            command = [sys.executable, "-m", f"benches.load.{self.module}"]
        self._process = await asyncio.create_subprocess_exec(
            *command,
            *self._arguments,
            cwd=ROOT,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=64 * 1024 * 1024,
            env={**os.environ, "NODE_PATH": str(NODE_MODULES), "PYTHONUNBUFFERED": "1"},
        )
        self._reader = asyncio.create_task(self._read(self._process))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop: workers end with their standard input, and are killed if they do not."""
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._reader is not None
        self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), 15)
        except asyncio.TimeoutError:
            self._process.kill()
            await self._process.wait()
        self._reader.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._reader

    def start(self, command: str, **arguments: Any) -> asyncio.Future[Any]:
        """Send a command now; the future has its answer."""
        assert self._process is not None
        assert self._process.stdin is not None
        if self._reader is None or self._reader.done():
            raise WorkerError(f"{self.module} has ended")
        number = next(self._numbers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        line = json.dumps({"id": number, "command": command, "arguments": arguments})
        self._process.stdin.write(line.encode() + b"\n")
        return answer

    async def call(self, command: str, **arguments: Any) -> Any:
        """Run a command to its end.

        Raises:
            WorkerError: It failed, or took longer than `LIMIT_S`.
        """
        return await self.wait(self.start(command, **arguments), command)

    async def wait(self, answer: asyncio.Future[Any], command: str = "") -> Any:
        """The answer of a command that was started."""
        try:
            return await asyncio.wait_for(answer, LIMIT_S)
        except asyncio.TimeoutError:
            raise WorkerError(f"{self.module} did not answer {command} within {LIMIT_S} s") from None

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while line := await process.stdout.readline():
            answer = json.loads(line)
            future = self._answers.pop(answer["id"])
            if future.done():
                continue
            if "error" in answer:
                future.set_exception(WorkerError(f"{self.module}: {answer['error']}"))
            else:
                future.set_result(answer["ok"])
        for future in self._answers.values():
            if not future.done():
                future.set_exception(WorkerError(f"{self.module} ended"))
