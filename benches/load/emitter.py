"""One Python process without a server that emits, by any of the libraries."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg
import socketio

from benches.load.commands import answer_commands, event, now_us
from socketio_postgres import AsyncEmitter, Emitter
from tests.fixtures.database import Database

CHANNEL = "socket.io#/"
Run = Callable[[str, int], Awaitable[None]]
"""Emits to a room so many events and returns when the last one is committed, or with Redis: taken."""


async def _ours(address: str) -> Run:
    io = Emitter(address)
    io.start()

    async def run(room: str, count: int) -> None:
        to = io.to(room)
        for number in range(count):
            to.emit("chat", event(number))
        io.flush()

    return run


async def _ours_many(address: str) -> Run:
    io = Emitter(address)
    io.start()

    async def run(room: str, count: int) -> None:
        io.to(room).emit_many(("chat", event(number)) for number in range(count))
        io.flush()

    return run


async def _redis(address: str) -> Run:
    manager = socketio.RedisManager(address, write_only=True)

    async def run(room: str, count: int) -> None:
        for number in range(count):
            manager.emit("chat", event(number), room=room)

    return run


def _awaiting(emit: Callable[[str, int], Awaitable[Any]], tasks: int) -> Run:
    """Tasks, of which each awaits every emit of its own."""

    async def run(room: str, count: int) -> None:
        async def task(first: int) -> None:
            for number in range(first, count, tasks):
                await emit(room, number)

        await asyncio.gather(*(task(first) for first in range(tasks)))

    return run


async def _ours_awaited(address: str, tasks: int) -> Run:
    io = AsyncEmitter(address)
    await io.start()
    return _awaiting(lambda room, number: io.to(room).emit("chat", event(number)), tasks)


async def _redis_awaited(address: str, tasks: int) -> Run:
    manager = socketio.AsyncRedisManager(address, write_only=True)
    return _awaiting(lambda room, number: manager.emit("chat", event(number), room=room), tasks)


async def _asyncpg(address: str) -> Run:
    connection = await asyncpg.connect(Database(address).url)

    async def emit(room: str, number: int) -> None:
        packet = {"type": 2, "data": ["chat", event(number)], "nsp": "/"}
        opts = {"rooms": [room], "except": [], "flags": {}}
        message = {"uid": "emitter", "nsp": "/", "type": 3, "data": {"packet": packet, "opts": opts}}
        await connection.execute("SELECT pg_notify($1, $2)", CHANNEL, json.dumps(message, separators=(",", ":")))

    return _awaiting(emit, 1)


KINDS: dict[str, Callable[[str], Awaitable[Run]]] = {
    "ours": _ours,
    "ours, many": _ours_many,
    "ours, 100 tasks": lambda address: _ours_awaited(address, 100),
    "ours, 1 task": lambda address: _ours_awaited(address, 1),
    "redis": _redis,
    "redis, 100 tasks": lambda address: _redis_awaited(address, 100),
    "redis, 1 task": lambda address: _redis_awaited(address, 1),
    "asyncpg": _asyncpg,
}


class Process:
    """What the commands do."""

    async def open(self, kind: str, address: str) -> None:
        """Connect."""
        self._run = await KINDS[kind](address)

    async def emit(self, room: str, count: int) -> dict[str, float]:
        """Emit; seconds, and CPU seconds of this process."""
        began, cpu = now_us(), time.process_time()
        await self._run(room, count)
        return {"seconds": (now_us() - began) / 1e6, "cpu_s": time.process_time() - cpu}

    async def pace(self, room: str, rate: float, seconds: float) -> None:
        """Emit at a steady rate, a hundredth of a second's worth at a time."""
        loop = asyncio.get_running_loop()
        start, sent = loop.time(), 0
        while (elapsed := loop.time() - start) < seconds:
            due = int(elapsed * rate)
            if due > sent:
                await self._run(room, due - sent)
                sent = due
            await asyncio.sleep(0.01)


async def _main() -> None:
    process = Process()
    await answer_commands({"open": process.open, "emit": process.emit, "pace": process.pace})
    os._exit(0)  # the bench is over: nobody waits for goodbyes


if __name__ == "__main__":
    asyncio.run(_main())
