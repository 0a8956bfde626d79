"""From a Python call to the commit of a small event, beside asyncpg doing it by hand."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benches.shared import CHANNEL, ROUNDS, Committed, Run
from benches.test_codec import envelope
from socketio_postgres import AsyncEmitter, Emitter
from tests.fixtures.database import Database

asyncpg = pytest.importorskip("asyncpg")

GROUP = "publish small"
GROUPED = 1000
"""Messages to a transaction where asyncpg sends groups; the most that ours puts into one."""


def packet(number: int) -> list[Any]:
    return ["chat", {"user": "ada", "text": "hello, world", "number": number}]


def numbers(payloads: list[str]) -> list[int]:
    """What was published, from the notifications."""
    return [json.loads(payload)["data"]["packet"]["data"][1]["number"] for payload in payloads]


def measure(benchmark: BenchmarkFixture, publish: Callable[[], object]) -> None:
    benchmark.group = GROUP
    benchmark.pedantic(publish, rounds=ROUNDS)


def test_emitter_buffered(benchmark: BenchmarkFixture, database: Database, committed: Committed, count: int) -> None:
    with Emitter(database.dsn) as io:

        def publish() -> None:
            for number in range(count):
                io.emit(*packet(number))
            io.flush()

        assert numbers(committed(publish, count)) == list(range(count))
        measure(benchmark, publish)


@pytest.mark.parametrize("tasks", [1, 100])
def test_async_emitter_awaited(
    *,
    benchmark: BenchmarkFixture,
    database: Database,
    committed: Committed,
    count: int,
    run: Run,
    tasks: int,
) -> None:
    io = AsyncEmitter(database.dsn)

    async def task(first: int) -> None:
        for number in range(first, count, tasks):
            await io.emit(*packet(number))

    async def all_tasks() -> None:
        await asyncio.gather(*(task(first) for first in range(tasks)))

    run(io.start())
    assert sorted(numbers(committed(lambda: run(all_tasks()), count))) == list(range(count))
    measure(benchmark, lambda: run(all_tasks()))
    run(io.close())


@pytest.mark.parametrize("size", [1, GROUPED], ids=["one by one", "grouped"])
def test_asyncpg(
    *,
    benchmark: BenchmarkFixture,
    database: Database,
    committed: Committed,
    count: int,
    run: Run,
    size: int,
) -> None:
    connection = run(asyncpg.connect(database.url))

    async def publish() -> None:
        for first in range(0, count, size):
            payloads = [
                json.dumps(envelope(packet(number)), separators=(",", ":"))
                for number in range(first, min(first + size, count))
            ]
            if size == 1:
                await connection.execute("SELECT pg_notify($1, $2)", CHANNEL, payloads[0])
            else:
                await connection.fetchval(
                    "SELECT count(pg_notify($1, payload)) FROM unnest($2::text[]) AS t(payload)", CHANNEL, payloads
                )

    assert numbers(committed(lambda: run(publish()), count)) == list(range(count))
    measure(benchmark, lambda: run(publish()))
    run(connection.close())
