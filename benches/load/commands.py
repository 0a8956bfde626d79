"""The side of a worker process: reads commands and answers them."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import sys
import time
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

Command = Callable[..., Awaitable[Any]]


def now_us() -> int:
    """Microseconds of the machine's monotonic clock, which all processes read alike."""
    return time.monotonic_ns() // 1000


def event(number: int, size: int = 60) -> dict[str, Any]:
    """The argument of a `chat` event; with 60 letters of text the packet has some 130 bytes."""
    return {"number": number, "sent": now_us(), "user": "ada", "text": "x" * size}


def resident_bytes() -> int:
    """Memory of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


async def usage() -> dict[str, float]:
    """CPU seconds of this process so far, all threads, and its memory now."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {"cpu_s": used.ru_utime + used.ru_stime, "rss_bytes": resident_bytes()}


async def answer_commands(commands: dict[str, Command]) -> None:
    """Answer one command after the other until standard input ends."""
    commands = {"usage": usage, **commands}
    reader = asyncio.StreamReader(limit=64 * 1024 * 1024)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        request = json.loads(line)
        answer: dict[str, Any] = {"id": request["id"]}
        try:
            answer["ok"] = await commands[request["command"]](**request["arguments"])
        except Exception as error:  # noqa: BLE001  (the driver is told, whatever it is)
            traceback.print_exc()
            answer["error"] = f"{type(error).__name__}: {error}"
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
