"""Processes fork, are killed, and are stopped; the others go on, and PostgreSQL is not held up."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from tests.faults import sender
from tests.faults.receiver import PROBE_INTERVAL_S
from tests.fixtures.database import Database
from tests.fixtures.history import Arrival, Batch, Sent, check
from tests.fixtures.postgres import LISTENS, OwnPostgres, sessions, the_session
from tests.fixtures.program import ROOT, Program, environment
from tests.fixtures.tables import Recovered
from tests.fixtures.waiting import TIMEOUT_S, eventually
from tests.fixtures.worker import label_of
from tests.fixtures.workload import CHANNEL, Receiver, Workload, at_rest


async def test_a_fork_after_the_start(database: Database) -> None:
    """The parent's buffer holds messages then: each is sent once, by the parent. Every child is a sender of its own."""
    counts = {"parent": 2 * sender.COUNT, **{f"child-{child}": sender.COUNT for child in range(sender.CHILDREN)}}
    async with Receiver(database) as receiver:
        with Program(["-m", "tests.faults.sender"], {"SIO_PG_TEST_DSN": database.dsn}) as program:
            assert await program.wait() == 0, program.output
        last = {Arrival(name, count - 1) for name, count in counts.items()}
        await eventually(lambda: last <= set(receiver.stream), "the last ones are in")
        sent = {name: Sent(range(count), [Batch(count)]) for name, count in counts.items()}
        verdict = check(sent, receiver.stream)
        assert verdict.received == verdict.sent
        assert receiver.gaps == []
    await at_rest(database)


async def test_a_sender_is_killed(database: Database) -> None:
    """What it had committed came, in order and once; nobody else is concerned; its session ends."""
    async with Receiver(database) as receiver, Workload(database) as work:
        await work.recover(receiver)
        before = len(sessions(database))
        victim = work.kill()
        await work.recover(receiver)
        await eventually(lambda: len(sessions(database)) == before - 1, "its session is gone")
        await work.recover(receiver)  # what it had committed is in by then
        survivors = [item for item in receiver.stream if item.sender != victim]
        came = [item.label for item in receiver.stream if isinstance(item, Arrival) and item.sender == victim]
        assert came == [label_of(number) for number in range(len(came))]
        assert survivors
        receiver.stream[:] = survivors
        verdict = await work.check(receiver)
        assert (verdict.lost, verdict.failed) == (0, 0)
        assert receiver.gaps == []
    await at_rest(database)


async def test_a_sender_is_stopped_for_a_while(database: Database) -> None:
    """SIGSTOP: a laptop is closed, a container is paused. It goes on where it was."""
    async with Receiver(database) as receiver, Workload(database) as work:
        await work.recover(receiver)
        pid = work.pid(work.names[0])
        os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(3)
        os.kill(pid, signal.SIGCONT)
        await work.recover(receiver)
        verdict = await work.check(receiver)
        assert verdict.lost == 0
        assert verdict.failed == verdict.in_doubt, "an answer that came while it slept may count as late"
    await at_rest(database)


class Remote:
    """A receiver in a process of its own."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def stats(self) -> dict[str, Any]:
        """Statistics, as the process knows them now."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")
        return await self._answer()

    async def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        answer: dict[str, Any] = json.loads(await asyncio.wait_for(self.process.stdout.readline(), TIMEOUT_S))
        return answer

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        os.kill(self.process.pid, number)


@asynccontextmanager
async def remote_receiver(database: Database) -> AsyncIterator[Remote]:
    """Listens when the block is entered."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.faults.receiver"),
        cwd=ROOT,
        env=environment({"SIO_PG_TEST_DSN": database.dsn}),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    remote = Remote(process)
    try:
        await remote._answer()
        yield remote
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def test_a_stopped_receiver_does_not_hold_up_the_database(postgres: OwnPostgres, recovered: Recovered) -> None:
    """Its socket fills, and its session cannot go on writing: it would hold back vacuum and the queue, for ever."""
    database = postgres.database
    async with remote_receiver(database) as remote:
        pid = await the_session(database, LISTENS)
        # More than the sockets of both ends hold.
        flood = "SELECT count(pg_notify(%s, n || repeat('x', 7900))) FROM generate_series(1, 3000) AS n"
        with database.connect() as sending, sending.transaction():
            sending.execute(flood, (CHANNEL,))
            # Only the commit comes after it: it is not to be given up as silent before it is stuck.
            remote.signal(signal.SIGSTOP)
            since = time.time()
        stuck = f"SELECT count(*) FROM pg_stat_activity WHERE pid = {pid} AND wait_event = 'ClientWrite'"
        await eventually(lambda: database.value(stuck) == 1, "it is stuck, or this test shows nothing")
        await eventually(lambda: pid not in sessions(database), "PostgreSQL gives it up")
        recovered(time.time() - since, 4 * PROBE_INTERVAL_S + 4)
        await at_rest(database)
        remote.signal(signal.SIGCONT)

        async def listens_again() -> bool:
            stats = await remote.stats()
            return bool(stats["is_listening"] and stats["reconnects"])

        await eventually(listens_again, "it comes back, and says that something may be missing")


async def test_a_killed_receiver_leaves_nothing_behind(database: Database) -> None:
    async with Workload(database, kinds=["emitter"]) as work, remote_receiver(database) as remote:
        remote.signal(signal.SIGKILL)
        await eventually(lambda: sessions(database, LISTENS) == [], "its session ends")
        await work.stop()
    await at_rest(database)
