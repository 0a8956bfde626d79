"""Python does not take what arrives: PostgreSQL is read anyway, memory is bounded, and what is dropped is told."""

from __future__ import annotations

import os
import resource
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from socketio_postgres import GapInfo
from tests.faults.conftest import SOAK_S
from tests.fixtures.bus import serving
from tests.fixtures.clients import PythonClient
from tests.fixtures.database import Database
from tests.fixtures.history import Gap
from tests.fixtures.postgres import queue_usage
from tests.fixtures.waiting import eventually
from tests.fixtures.workload import CHANNEL, Receiver, Workload, at_rest

STALL_S = 30.0 if SOAK_S else 3.0


FLOOD_COUNT = 10_000
FLOOD = """
    SELECT count(pg_notify(%s, format('{"uid":"emitter","type":3,"data":{"opts":{"rooms":[],"except":[]},'
        '"packet":{"type":2,"data":["flood",%%s,"%%s"],"nsp":"/"}}}', n, repeat('x', 7800))))
    FROM generate_series(1, %s) AS n
"""
"""80 MB, as a server of another language would send them: without numbers."""


def sleep() -> None:
    """A handler that blocks, as they all do one day."""
    time.sleep(STALL_S)


def hold_the_gil() -> None:
    """Worse: no other thread of Python runs either, but for moments. Nothing interrupts a long multiplication."""
    end = time.monotonic() + STALL_S
    number = 7**500_000
    while time.monotonic() < end:
        number * number


def stand_still_until(condition: Callable[[], object], what: str) -> None:
    """Block the event loop for longer, until something has happened without it."""
    end = time.monotonic() + 90
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.01)


@contextmanager
def watching(database: Database) -> Iterator[dict[str, float]]:
    """Look at PostgreSQL while our event loop stands still; gives the worst of what was seen."""
    worst = {"usage": 0.0, "looked": 0}
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(0.1):
            worst["usage"] = max(worst["usage"], queue_usage(database))
            worst["looked"] += 1

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield worst
    finally:
        is_over.set()
        thread.join()


@pytest.mark.parametrize("stall", [sleep, hold_the_gil])
async def test_a_stall_loses_nothing_that_fits(database: Database, stall: Callable[[], None]) -> None:
    # 64 MB of buffer, and messages of 8 kB on average.
    async with Receiver(database) as receiver, Workload(database, rate=600 / STALL_S) as work:
        await work.recover(receiver)
        with watching(database) as worst:
            stall()
            stand_still_until(lambda: worst["looked"], "PostgreSQL is looked at")
        await work.recover(receiver)
        verdict = await work.check(receiver)
        assert (verdict.lost, verdict.failed) == (0, 0)
        assert receiver.gaps == []
        assert receiver.stats["listener_reconnects"] == 0
        assert worst["usage"] < 0.01, "PostgreSQL's queue did not wait for Python"
    await at_rest(database)


async def test_a_stall_that_is_too_long_is_told_exactly(database: Database) -> None:
    """Five times as much comes as there is room for; every sender's loss is counted, at its place in the order."""
    async with Receiver(database, receive_buffer_bytes=1_500_000) as receiver, Workload(database) as work:
        await work.recover(receiver)
        for _ in range(2):
            before = receiver.stats["overflowed"]
            stand_still_until(lambda before=before: receiver.stats["overflowed"] > before + 100, "much is dropped")  # type: ignore[misc]
            await work.recover(receiver)
        verdict = await work.check(receiver)
        assert verdict.lost == receiver.stats["overflowed"] == receiver.stats["missing_messages"]
        assert verdict.lost > 0, "or there was no stall"
        assert {gap.reason for gap in receiver.gaps} == {"overflow"}
    await at_rest(database)


def memory_bytes() -> int:
    """Resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs /proc")  # noqa: PTH110 - at import
async def test_memory_is_bounded_under_a_flood(database: Database) -> None:
    """80 MB arrive while nobody takes them, and a buffer of 1 MB is all there is."""
    limit = 1_000_000
    # On a busy machine the server may say nothing for a second; a new session would have missed a part of the flood.
    async with Receiver(database, probe_interval=30.0, receive_buffer_bytes=limit) as receiver:
        before = memory_bytes()
        with watching(database) as worst:
            database.value(FLOOD, CHANNEL, FLOOD_COUNT)  # blocks the loop
            stand_still_until(lambda: queue_usage(database) == 0, "the queue is emptied while Python stands still")
            # What PostgreSQL has handed over is not all read yet.
            stand_still_until(
                lambda: receiver.stats["received"] + receiver.stats["overflowed"] == FLOOD_COUNT, "everything is read"
            )
            stand_still_until(lambda: worst["looked"], "PostgreSQL is looked at")
        grown = memory_bytes() - before
        assert receiver.stats["inbox_bytes"] <= limit
        await eventually(lambda: receiver.gaps, "the loss is told")
        stats = receiver.stats
        assert stats["received"] + stats["overflowed"] == FLOOD_COUNT
        assert receiver.gaps == [Gap("overflow", "emitter", stats["overflowed"])]
        assert grown < 32_000_000, f"{grown} bytes more than before"
    await at_rest(database)


async def test_an_application_is_told(database: Database) -> None:
    gaps: list[GapInfo] = []
    async with serving(database, receive_buffer_bytes=100_000, on_gap=gaps.append) as one:
        await one.manager.start()
        client = await PythonClient.connect(one.url)
        began = time.time()
        database.value(FLOOD, CHANNEL, 1000)

        def is_read() -> bool:
            stats = one.manager.stats()
            return int(stats["received"]) + int(stats["overflowed"]) >= 1000

        # Or there would be room for some more, and so another gap, again and again.
        stand_still_until(is_read, "everything is read while Python stands still")

        def is_accounted_for() -> bool:
            return int(one.manager.stats()["received"]) + sum(gap.missing or 0 for gap in gaps) == 1000

        await eventually(is_accounted_for, "what came and what is told are all")
        # Not for each message.
        assert 0 < len(gaps) < 10
        for gap in gaps:
            assert (gap.reason, gap.namespace, gap.sender) == ("overflow", "/", "emitter")
            assert began - 1 < gap.since < time.time()
        received = one.manager.stats()["received"]
        await client.wait_for("flood", received)
        await client.disconnect()
