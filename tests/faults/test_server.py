"""The whole server goes: it crashes, is restarted, is frozen, or was never there."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import time
from pathlib import Path
from subprocess import PIPE

import pytest

from socketio_postgres import (
    AsyncEmitter,
    AsyncPostgresManager,
    CommitInDoubtError,
    ConnectionLostError,
    Emitter,
    GapInfo,
    SocketIOPostgresError,
)
from socketio_postgres.demo.embedded import StopMode, free_port
from tests.faults.conftest import Rounds
from tests.fixtures.bus import BusReader, serving
from tests.fixtures.clients import PythonClient
from tests.fixtures.postgres import OwnPostgres, sessions
from tests.fixtures.program import Program, environment
from tests.fixtures.tables import Recovered
from tests.fixtures.waiting import TIMEOUT_S, eventually
from tests.fixtures.worker import EVENT
from tests.fixtures.workload import SHORT_ANSWER_S, SHORT_PROBE_INTERVAL_S, Receiver, Workload, at_rest

CLOSE_S = 9.0
"""Five seconds for what is buffered, and the farewells."""
SLACK_S = 20.0
"""For a busy machine."""
RECOVERY_S = 8.0
"""Once the server is back: the longest back-off is 5 s."""


@pytest.mark.parametrize("mode", ["immediate", "fast"])
async def test_it_is_stopped_and_started(
    postgres: OwnPostgres, mode: StopMode, rounds: Rounds, recovered: Recovered
) -> None:
    database = postgres.database
    async with Receiver(database) as receiver, Workload(database) as work:
        await work.recover(receiver)
        for number in rounds(2):
            await asyncio.to_thread(postgres.stop, mode)
            await eventually(lambda: not receiver.stats["is_listening"], "the receiver notices")
            await asyncio.sleep(0.5 * number)  # messages pile up
            await asyncio.to_thread(postgres.start)
            recovered(await work.recover(receiver), RECOVERY_S)
            await eventually(lambda number=number: receiver.reconnects() == number, "the gap is told once")  # type: ignore[misc]
        verdict = await work.check(receiver)
    assert verdict.failed == verdict.in_doubt, "what was not under way was sent later"
    await at_rest(database)


async def test_it_is_frozen(postgres: OwnPostgres, rounds: Rounds, recovered: Recovered) -> None:
    """Connections are accepted by the system, and nobody answers: neither are old sessions any use nor new ones."""
    database = postgres.database
    working = Workload(database, kinds=["manager", "manager"], answer=SHORT_ANSWER_S)
    async with Receiver(database, probe_interval=SHORT_PROBE_INTERVAL_S) as receiver, working as work:
        await work.recover(receiver)
        for _ in rounds(1):
            before = receiver.reconnects()
            postgres.freeze()
            await eventually(lambda: not receiver.stats["is_listening"], "the receiver notices")
            await asyncio.sleep(1)
            postgres.thaw()
            recovered(await work.recover(receiver), RECOVERY_S)
            await eventually(lambda before=before: receiver.reconnects() > before, "the gap is told")  # type: ignore[misc]
        verdict = await work.check(receiver)
    assert verdict.failed == verdict.in_doubt
    await at_rest(database)


async def test_an_outage_is_bridged_and_told(postgres: OwnPostgres) -> None:
    """What is emitted during an outage arrives afterwards, and applications hear of the gap when they can act on it."""
    gaps: list[GapInfo] = []
    states: list[str] = []

    async def on_gap(gap: GapInfo) -> None:
        gaps.append(gap)
        states.append(one.manager.stats()["state"])

    database = postgres.database
    server = serving(database, heartbeat_interval=0.5, on_gap=on_gap)
    async with server as one, AsyncEmitter(database.dsn) as io:
        await one.manager.start()
        client = await PythonClient.connect(one.url)
        began = time.time()
        await io.emit("before")
        await client.wait_for("before")
        await asyncio.to_thread(postgres.stop)
        await eventually(lambda: one.manager.stats()["state"] == "connecting", "it says so")
        noticed = time.time()
        # Local clients are served all the time.
        await one.manager.emit("during", 1)
        await client.wait_for("during")
        await asyncio.to_thread(postgres.start)
        await eventually(lambda: gaps, "the gap is told")
        await io.emit("after")
        await client.wait_for("after")
        with contextlib.suppress(CommitInDoubtError):  # a heartbeat may have been under way when the server stopped
            await one.manager.flush()
        assert [gap.reason for gap in gaps] == ["reconnect"]
        assert began <= gaps[0].since <= noticed, "the last sign of life before the outage"
        assert gaps[0].missing is None
        assert gaps[0].namespace is None
        assert states == ["listening"]
        await client.disconnect()


async def test_nobody_is_there() -> None:
    """A server that cannot be reached is an error at once, and not a silence."""
    dsn = f"host=127.0.0.1 port={free_port()} user=postgres connect_timeout=2"
    manager = AsyncPostgresManager(dsn)
    with pytest.raises(ConnectionLostError):
        await asyncio.wait_for(manager.start(), TIMEOUT_S)
    await manager.close()
    with contextlib.closing(Emitter(dsn)) as io, pytest.raises(ConnectionLostError):
        await asyncio.to_thread(io.start)


async def test_it_comes_later(postgres: OwnPostgres) -> None:
    """Without `start` nobody is in a hurry: what is emitted waits for the server."""
    database = postgres.database
    await asyncio.to_thread(postgres.stop)
    with contextlib.closing(Emitter(database.dsn)) as io:
        io.emit("early")
        await eventually(lambda: io._bus.stats()["buffer_count"] == 1, "it waits")
        await asyncio.to_thread(postgres.start)
        await asyncio.to_thread(io.flush, TIMEOUT_S)
        assert io._bus.stats()["published"] == 1


async def test_closing_takes_bounded_time_whatever_the_server_does(postgres: OwnPostgres) -> None:
    """It is frozen, and messages wait: what could not be committed is told, and the process can end."""
    database = postgres.database
    server = serving(database)
    async with server as one:
        await one.manager.start()
        emitter, async_emitter = Emitter(database.dsn), AsyncEmitter(database.dsn)
        await asyncio.to_thread(emitter.start)
        await async_emitter.start()
        postgres.freeze()
        try:
            await one.manager.emit("late", 1)
            emitter.emit("late", 1)
            waiting = asyncio.create_task(async_emitter.emit("late", 1))
            await asyncio.sleep(0.1)
            closing = (asyncio.to_thread(emitter.close), async_emitter.close(), one.manager.close())
            ends = await asyncio.wait_for(asyncio.gather(*closing, return_exceptions=True), CLOSE_S + SLACK_S)
            assert isinstance(ends[0], SocketIOPostgresError), "a message was not committed"
            assert (ends[1], ends[2]) == (None, None), "told in other ways"
            with pytest.raises(CommitInDoubtError):
                await waiting
        finally:
            postgres.thaw()
    await eventually(lambda: sessions(database) == [], "all sessions end")


GIVEN_UP = """
import asyncio, gc, sys
from socketio_postgres import AsyncPostgresManager
from socketio_postgres._bus import bus

bus.EXIT_LIMIT = 30.0  # a busy machine takes its time

async def main():
    mgr = AsyncPostgresManager(sys.argv[1], write_only=True)
    await mgr.emit("tick", "before")
    await mgr.flush()
    print("ready")
    await asyncio.to_thread(sys.stdin.readline)
    for number in range(300):
        await mgr.emit("tick", number)
    closing = asyncio.create_task(mgr.close())
    await asyncio.sleep(0.1)
    closing.cancel()
    await asyncio.wait([closing])

asyncio.run(main())
gc.collect()
print("dropped")
"""


async def test_a_close_that_is_given_up_loses_nothing(postgres: OwnPostgres) -> None:
    """The server says nothing, closing is cancelled, and the object dropped: what was buffered is still committed."""
    command = [sys.executable, "-u", "-c", GIVEN_UP, postgres.database.dsn]
    async with BusReader(postgres.database, heartbeat_timeout=4 * TIMEOUT_S) as reader:
        program = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, env=environment())
        assert program.stdin is not None
        assert program.stdout is not None
        try:
            assert await asyncio.wait_for(program.stdout.readline(), TIMEOUT_S) == b"ready\n"
            postgres.freeze()
            program.stdin.write(b"\n")
            assert await asyncio.wait_for(program.stdout.readline(), TIMEOUT_S) == b"dropped\n"
            postgres.thaw()
            assert await asyncio.wait_for(program.wait(), TIMEOUT_S) == 0
        finally:
            if program.returncode is None:
                program.kill()
        await reader.wait_for(301)


async def test_a_script_ends_in_bounded_time_whatever_the_server_does(postgres: OwnPostgres) -> None:
    script = (
        "import os, logging; from socketio_postgres import Emitter; logging.basicConfig()\n"
        "io = Emitter(os.environ['DSN']); io.start(); print('started'); io.emit('late')\n"
        "os.kill(os.getpid(), 19); io.emit('later')"
    )
    with Program(["-c", script], {"DSN": postgres.database.dsn}) as program:
        state = Path(f"/proc/{program.pid}/stat")
        await eventually(lambda: state.read_text().rpartition(") ")[2].startswith("T"), "it has stopped itself")
        postgres.freeze()
        try:
            program.signal(signal.SIGCONT)
            assert await program.wait(CLOSE_S + SLACK_S) == 0
        finally:
            postgres.thaw()
        assert "were not committed before the process ended" in program.output


async def test_ids_of_attachments_do_not_come_again_after_a_crash(postgres: OwnPostgres) -> None:
    """Who still looks for one of before must not find another message under its id."""
    database = postgres.database
    last = "SELECT last_value FROM socket_io_attachments_id_seq"
    async with AsyncEmitter(database.dsn) as io:
        for _ in range(3):
            await io.emit(EVENT, "x" * 10_000)
        await io.flush()
        before = database.value(last)
        with database.connect() as admin:
            admin.execute("CHECKPOINT")  # what was committed last may not be on disk yet
        postgres.stop("immediate")
        postgres.start()

        async def is_sent() -> bool:
            with contextlib.suppress(SocketIOPostgresError):  # the session is gone
                await io.emit(EVENT, "y" * 10_000)
            return bool(database.value("SELECT count(*) FROM socket_io_attachments"))

        await eventually(is_sent, "the table is empty after a crash, and used again")
        assert int(str(database.value(last))) > int(str(before))
