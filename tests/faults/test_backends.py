"""Sessions end: by an administrator, by a signal, in the middle of a commit."""

from __future__ import annotations

import asyncio
import os
import queue
import signal
import time
from pathlib import Path

import pytest
import socketio

from socketio_postgres import AsyncEmitter, GapInfo, PostgresManager
from tests.faults.conftest import Rounds
from tests.fixtures.database import Database
from tests.fixtures.history import Arrival
from tests.fixtures.postgres import LISTENS, PUBLISHES, OwnPostgres, frozen_session, sessions, terminate, the_session
from tests.fixtures.tables import Recovered
from tests.fixtures.waiting import TIMEOUT_S, eventually
from tests.fixtures.worker import EVENT, checksum_of
from tests.fixtures.workload import SHORT_ANSWER_S, SHORT_PROBE_INTERVAL_S, Receiver, Workload, at_rest

RECOVERY_S = 6.0
"""From the fault on. Four seconds until silence is noticed; then the first attempt follows at once."""


async def test_the_listener_is_terminated(database: Database, rounds: Rounds, recovered: Recovered) -> None:
    async with Receiver(database) as receiver, Workload(database) as work:
        await work.recover(receiver)
        for number in rounds(3):
            pid = await the_session(database, LISTENS)
            since = time.time()
            database.value("SELECT pg_terminate_backend(%s)", pid)
            await eventually(lambda number=number: receiver.reconnects() == number, "the gap is reported")  # type: ignore[misc]
            recovered(await work.recover(receiver, since), RECOVERY_S)
        verdict = await work.check(receiver)
        assert verdict.failed == 0, "nothing happened to the senders"
        assert receiver.stats["listener_reconnects"] == receiver.reconnects()
        assert receiver.stats["gaps"] == len(receiver.gaps)
    await at_rest(database)
    await eventually(lambda: sessions(database) == [], "all sessions end")


async def test_the_publishers_are_terminated_in_the_middle_of_a_group(
    database: Database, rounds: Rounds, recovered: Recovered
) -> None:
    """What the senders are told is true, and nothing but a commit under way is in doubt."""
    async with Receiver(database) as receiver, Workload(database, rate=1000) as work:
        await work.recover(receiver)
        for _ in rounds(10):
            since = time.time()
            # Most of the time a commit is under way somewhere.
            terminate(database, PUBLISHES)
            recovered(await work.recover(receiver, since), RECOVERY_S)
        verdict = await work.check(receiver)
    assert verdict.lost == 0, "the receiver was not concerned"
    assert verdict.failed == verdict.in_doubt, "none failed for sure: what was not under way was sent later"
    assert receiver.reconnects() == 0
    await at_rest(database)


async def test_everybody_is_terminated(database: Database, rounds: Rounds, recovered: Recovered) -> None:
    async with Receiver(database) as receiver, Workload(database) as work:
        await work.recover(receiver)
        for _ in rounds(5):
            since = time.time()
            terminate(database)
            recovered(await work.recover(receiver, since), RECOVERY_S)
        await work.check(receiver)
    await at_rest(database)


@pytest.mark.parametrize("whose", [LISTENS, PUBLISHES], ids=["listener", "publisher"])
async def test_a_backend_is_killed(postgres: OwnPostgres, whose: str, rounds: Rounds, recovered: Recovered) -> None:
    """PostgreSQL ends all sessions then and recovers: notifications on their way and attachments are gone."""
    database = postgres.database
    async with Receiver(database) as receiver, Workload(database) as work:
        await work.recover(receiver)
        for _ in rounds(2):
            before = receiver.reconnects()
            # A publisher that lost its session in the last round may only just connect.
            [pid, *_] = await eventually(lambda: sessions(database, whose), "there is one") or []
            since = time.time()
            os.kill(pid, signal.SIGKILL)
            # Who connects before the server knows is thrown out once more.
            await eventually(lambda before=before: receiver.reconnects() > before, "the gap is reported")  # type: ignore[misc]
            recovered(await work.recover(receiver, since), RECOVERY_S)
        await work.check(receiver)
    await at_rest(database)


async def test_the_listener_is_frozen(database: Database, rounds: Rounds, recovered: Recovered) -> None:
    """SIGSTOP: nothing is closed, and nobody answers."""
    async with Receiver(database, probe_interval=SHORT_PROBE_INTERVAL_S) as receiver, Workload(database) as work:
        await work.recover(receiver)
        for _ in rounds(2):
            before = receiver.reconnects()
            with frozen_session(database, LISTENS):
                since = time.time()
                await eventually(lambda before=before: receiver.reconnects() > before, "the gap is reported")  # type: ignore[misc]
                recovered(await work.recover(receiver, since), RECOVERY_S)
            await the_session(database, LISTENS)  # the old one ends, too
        verdict = await work.check(receiver)
        assert verdict.failed == 0
    await at_rest(database)


async def test_a_frozen_publisher_is_replaced(database: Database, rounds: Rounds, recovered: Recovered) -> None:
    """What the frozen session was to commit is in doubt, and committed late; the receiver must not take it then."""
    work = Workload(database, kinds=["manager"], rate=1000, answer=SHORT_ANSWER_S)
    async with Receiver(database) as receiver, work:
        await work.recover(receiver)
        for _ in rounds(2):
            with frozen_session(database, PUBLISHES):
                since = time.time()  # what is emitted from now on cannot come by that session
                recovered(await work.recover(receiver, since), RECOVERY_S)
        verdict = await work.check(receiver)
        assert verdict.in_doubt > 0
        assert verdict.failed == verdict.in_doubt
        assert verdict.lost == 0
    await at_rest(database)


async def test_idle_sessions_are_ended_by_the_server(database: Database) -> None:
    """`idle_session_timeout`: the listener is always idle and must not be meant; the publisher connects again."""
    with database.connect() as connection:
        connection.execute(f"ALTER DATABASE {database.name} SET idle_session_timeout = '4s'")
    async with Receiver(database) as receiver, AsyncEmitter(database.dsn) as io:
        for number in range(3):
            # That its session was ended may be heard later.
            await eventually(lambda number=number: _has_connected(io, number), "it connects again")  # type: ignore[misc]
            await io.emit(EVENT, "a", number, 0, f"{checksum_of(''):010}", "")
            for pid in sessions(database, PUBLISHES):
                # Not its row in `pg_stat_activity`, which goes before the connection does.
                process = Path(f"/proc/{pid}")
                await eventually(lambda: not process.exists(), "the publisher's session is ended")  # noqa: B023
        await eventually(lambda: receiver.stream == [Arrival("a", number) for number in range(3)], "all are in")
        assert receiver.gaps == []
        assert receiver.stats["listener_reconnects"] == 0


async def _has_connected(io: AsyncEmitter, reconnects: int) -> bool:
    await io.start()
    return io.stats()["publisher_reconnects"] >= reconnects  # more, if the next one was idle for too long as well


async def test_a_server_of_threads_is_told(database: Database) -> None:
    """The blocking twin of the manager: the handler runs in a thread, once the server listens again."""
    told: queue.Queue[tuple[GapInfo, bool]] = queue.Queue()
    manager = PostgresManager(
        database.dsn, on_gap=lambda gap: told.put((gap, manager.stats()["is_listening"])), heartbeat_timeout=60.0
    )
    socketio.Server(client_manager=manager, async_mode="threading")
    await asyncio.to_thread(manager.start)
    try:
        for _ in range(3):
            database.value("SELECT pg_terminate_backend(%s)", await the_session(database, LISTENS))
            gap, is_listening = await asyncio.to_thread(told.get, timeout=TIMEOUT_S)
            assert (gap.reason, gap.missing) == ("reconnect", None)
            assert is_listening
        assert manager.stats()["gaps"] == 3
    finally:
        await asyncio.to_thread(manager.close)
