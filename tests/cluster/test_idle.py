"""An idle cluster is silent: nothing is written, everybody is counted, and who dies is missed in time."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import psycopg
import pytest
import socketio
from psycopg import sql
from psycopg.conninfo import make_conninfo

from socketio_postgres import AsyncPostgresManager, PostgresManager, _core
from socketio_postgres.demo.embedded import EmbeddedPostgres
from tests.cluster.servers import FakePeer
from tests.fixtures.database import SETTINGS, Database
from tests.fixtures.program import Program
from tests.fixtures.spy import Spy, spying
from tests.fixtures.waiting import TIMEOUT_S as WAITING_S
from tests.fixtures.waiting import eventually, started

Manager = AsyncPostgresManager | PostgresManager

NAMESPACES = ("/", "/a", "/b")
CHANNELS = [f"socket.io#{namespace}" for namespace in NAMESPACES]

INTERVAL_S, TIMEOUT_S = 0.2, 2.0
TIMING = {"heartbeat_interval": INTERVAL_S, "heartbeat_timeout": TIMEOUT_S}

IDLE_S = 2.5 * TIMEOUT_S
"""How long nothing must happen."""

LIMIT_S = 100.0
"""How long may pass before nothing happens. A starved server is missed by the others, rightly, and speaks again."""

ATTEMPTS = 4
"""How often a test begins anew of which some steps must be quick."""

pytestmark = pytest.mark.timeout(400)

NODE_CLEANUP_S = 1.0
"""How often the Node adapter looks for silent peers: so much later than its time-out it drops one at the latest."""

# Nothing but the cluster writes: no vacuum, no checkpoint, no snapshots for standbys.
QUIET = {"autovacuum": "off", "wal_level": "minimal", "max_wal_senders": "0", "checkpoint_timeout": "1h"}

INITIAL_HEARTBEAT, HEARTBEAT = 1, 2


@pytest.fixture(scope="module")
def postgres_dsn() -> Iterator[str]:
    """A server of its own, in which nobody else writes."""
    settings = {**SETTINGS, **QUIET}
    with EmbeddedPostgres(bin_dir=os.environ.get("SIO_PG_TEST_BIN_DIR"), settings=settings) as server:
        yield server.dsn("postgres")


@asynccontextmanager
async def member(
    dsn: str, namespaces: Sequence[str] = NAMESPACES, **options: Any
) -> AsyncIterator[AsyncPostgresManager]:
    """A server on this event loop."""
    manager = AsyncPostgresManager(dsn, **{**TIMING, **options})
    socketio.AsyncServer(client_manager=manager, async_mode="asgi", namespaces=list(namespaces))
    try:
        await started(manager.start)
        yield manager
    finally:
        await manager.close()


@asynccontextmanager
async def threaded_member(dsn: str, **options: Any) -> AsyncIterator[PostgresManager]:
    """A server in a thread."""
    manager = PostgresManager(dsn, **{**TIMING, **options})
    socketio.Server(client_manager=manager, async_mode="threading", namespaces=list(NAMESPACES))
    try:
        await started(lambda: asyncio.to_thread(manager.start))
        yield manager
    finally:
        await asyncio.to_thread(manager.close)


CHILD = f"""
import sys, threading, socketio
from socketio_postgres import PostgresManager
manager = PostgresManager(sys.argv[1], heartbeat_interval={INTERVAL_S}, heartbeat_timeout={TIMEOUT_S})
socketio.Server(client_manager=manager, async_mode="threading", namespaces={list(NAMESPACES)!r})
manager.start()
threading.Event().wait()
"""


class Trio:
    """Three members, one of them in a thread, and what is written."""

    def __init__(self, database: Database, spy: Spy, managers: Sequence[Manager], observer: psycopg.Connection) -> None:
        self.database = database
        self.spy = spy
        self.managers = managers
        self._observer = observer

    async def count(self, count: int) -> None:
        """Wait until all count so many servers, everywhere."""
        await eventually(lambda: self.counts == {count}, f"all count {count}")

    @property
    def counts(self) -> set[int]:
        """Numbers of servers that they know of."""
        return {manager.server_count(namespace) for manager in self.managers for namespace in NAMESPACES}

    def written(self) -> tuple[object, ...]:
        """Whatever changes when somebody writes: the next transaction id, the end of the WAL, the messages."""
        query = "SELECT pg_snapshot_xmax(pg_current_snapshot())::text, pg_current_wal_insert_lsn()::text"
        row = self._observer.execute(query).fetchone()
        assert row is not None
        return (*row, len(self.spy.frames))

    async def silence(self) -> tuple[object, ...]:
        """Wait until nothing was written for a while."""
        before = self.written()

        async def is_silent() -> bool:
            nonlocal before
            await asyncio.sleep(2 * INTERVAL_S)
            last, before = before, self.written()
            return last == before

        await eventually(is_silent, "silence", LIMIT_S)
        return before

    async def has_stayed(self, count: int, seconds: float) -> bool:
        """All count so many servers, for so long."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            assert self.counts == {count}
            await asyncio.sleep(0.01)
        return True

    async def has_idled(self, count: int, seconds: float) -> bool:
        """They do so without anything being written."""
        before = self.written()
        await self.has_stayed(count, seconds)
        return self.written() == before

    async def stays(self, count: int, seconds: float) -> None:
        """All come to count so many servers, for so long."""
        await eventually(lambda: self.has_stayed(count, seconds), f"all count {count} for {seconds} s", LIMIT_S)

    async def idles(self, count: int, seconds: float) -> None:
        """They come to do so without anything being written."""
        await eventually(lambda: self.has_idled(count, seconds), f"nothing is written for {seconds} s", LIMIT_S)


@asynccontextmanager
async def open_trio(database: Database, **options: Any) -> AsyncIterator[Trio]:
    """Three members that count each other."""
    async with AsyncExitStack() as stack:
        spy = await stack.enter_async_context(spying(database, CHANNELS))
        managers: list[Manager] = [
            await stack.enter_async_context(member(database.dsn, **options)),
            await stack.enter_async_context(member(database.dsn, **options)),
            await stack.enter_async_context(threaded_member(database.dsn, **options)),
        ]
        trio = Trio(database, spy, managers, stack.enter_context(database.connect()))
        await trio.count(3)
        yield trio


@pytest.fixture
async def trio(database: Database) -> AsyncIterator[Trio]:
    async with open_trio(database) as servers:
        yield servers


@pytest.fixture
async def patient_trio(database: Database) -> AsyncIterator[Trio]:
    """None of them takes another one for dead, or cleans up by itself."""
    async with open_trio(database, heartbeat_timeout=20.0, cleanup_interval=86_400.0) as servers:
        yield servers


def kinds(spy: Spy, *wanted: int) -> list[str]:
    """Namespaces in which messages of some types were sent, in order."""
    return [frame.header["nsp"] for frame in spy.frames if frame.header["type"] in wanted]


# ---------------------------------------------------------------------------------------------------------- silence


async def test_an_idle_cluster_writes_nothing(trio: Trio) -> None:
    await trio.idles(3, IDLE_S)


async def test_after_a_message_it_is_silent_again(trio: Trio) -> None:
    await trio.silence()
    manager = trio.managers[0]
    assert isinstance(manager, AsyncPostgresManager)
    await manager.emit("hello", 1)
    await trio.spy.wait_for_broadcast("hello")
    await trio.idles(3, 1.5 * TIMEOUT_S)


async def test_a_namespace_served_later_is_silent_as_well(trio: Trio) -> None:
    first, second = trio.managers[:2]
    assert isinstance(first, AsyncPostgresManager)
    assert isinstance(second, AsyncPostgresManager)
    for attempt in range(ATTEMPTS):
        await trio.silence()
        late = f"/late{attempt}"
        async with spying(trio.database, [f"socket.io#{late}"]) as spy:
            for manager in (first, second):
                manager.server.on("connect", lambda *_: None, namespace=late)  # or it would be left, unused as it is
                await manager._node.join(late)
            await eventually(lambda: first.server_count(late) == second.server_count(late) == 2, "they meet")  # noqa: B023
            await trio.silence()
            count = len(kinds(spy, INITIAL_HEARTBEAT, HEARTBEAT))
            await trio.idles(3, IDLE_S)
            await eventually(lambda: first.server_count(late) == second.server_count(late) == 2, "they still do")  # noqa: B023
        # Two announcements and the answer; the third server, which is not there, was asked for once more at most.
        if count <= 7:
            break
    assert count <= 7


# ------------------------------------------------------------------------------------------------------- foreigners


async def test_while_a_foreigner_is_there_all_namespaces_speak_at_once(trio: Trio) -> None:
    await trio.silence()
    peers = [FakePeer(trio.spy, "foreigner", namespace) for namespace in NAMESPACES]
    manager = trio.managers[0]

    async def speak() -> None:
        while True:
            for peer in peers:
                await asyncio.to_thread(peer.say, HEARTBEAT)
            await asyncio.sleep(TIMEOUT_S / 4)

    speaking = asyncio.create_task(speak())
    await trio.count(4)
    await asyncio.sleep(TIMEOUT_S)

    async def goes_together() -> bool:
        before = manager.stats()
        await asyncio.sleep(5 * INTERVAL_S)
        after = manager.stats()
        groups = after["publish_groups"] - before["publish_groups"]
        published = after["published"] - before["published"]
        return bool(published == len(NAMESPACES) * groups and groups >= 2)

    await eventually(goes_together, "heartbeats of all namespaces are one transaction")
    speaking.cancel()
    await trio.count(3)
    await trio.idles(3, 1.5 * TIMEOUT_S)


# ------------------------------------------------------------------------------------------------------- who is gone


async def test_a_killed_process_is_dropped_as_fast_as_by_node(trio: Trio) -> None:
    for _ in range(ATTEMPTS):
        with Program(["-c", CHILD, trio.database.dsn]) as child:
            await trio.count(4)
            await trio.idles(4, 1.5 * TIMEOUT_S)
            child.signal(signal.SIGKILL)
            killed_at = time.monotonic()
            await trio.count(3)
            seconds = time.monotonic() - killed_at
        await trio.silence()
        if seconds < TIMEOUT_S + NODE_CLEANUP_S:
            break
    assert seconds < TIMEOUT_S + NODE_CLEANUP_S


async def test_a_frozen_process_is_dropped(trio: Trio) -> None:
    """Its backend lives on, and TCP still acknowledges; the server ends the session because nothing is asked."""
    with Program(["-c", CHILD, trio.database.dsn]) as child:
        await trio.count(4)
        await trio.silence()
        child.signal(signal.SIGSTOP)
        await trio.count(3)
        child.signal(signal.SIGCONT)
        await trio.count(4)
    await trio.count(3)


async def test_a_server_whose_python_hangs_is_dropped_and_comes_back(trio: Trio) -> None:
    """Its background thread, and so its session, is well."""
    manager = trio.managers[0]
    assert isinstance(manager, AsyncPostgresManager)
    await trio.silence()
    others = trio.managers[1:]

    def count(count: int) -> bool:
        return {other.server_count(namespace) for other in others for namespace in NAMESPACES} == {count}

    for task in (manager._node.runner.reader, manager._node.runner.ticker):
        assert task is not None
        task.cancel()
    await eventually(lambda: count(2), "the others miss it")
    manager._node.runner.open()
    await eventually(lambda: count(3), "the others count it again")
    await trio.count(3)
    await trio.idles(3, 1.5 * TIMEOUT_S)


@pytest.mark.parametrize("kind", ["event loop", "thread"])
async def test_blocked_servers_come_back_at_once_and_miss_nobody(
    kind: str, trio: Trio, caplog: pytest.LogCaptureFixture
) -> None:
    """What others said meanwhile is unread, and no silence of theirs; they missed us, and are told that we are back."""
    caplog.set_level(logging.INFO)
    thread = trio.managers[2]
    blocked, running = (trio.managers[:2], [thread]) if kind == "event loop" else ([thread], trio.managers[:2])
    ended: list[bool] = []

    def block() -> None:
        began = time.monotonic()

        def are_missed() -> bool:
            return {manager.server_count() for manager in running} == {3 - len(blocked)}

        while not are_missed() and time.monotonic() < began + WAITING_S:
            time.sleep(0.01)
        time.sleep(max(began + 1.5 * TIMEOUT_S - time.monotonic(), 0.1))
        ended.append(are_missed())

    for _ in range(ATTEMPTS):
        await trio.silence()
        caplog.clear()
        ended.clear()
        if kind == "event loop":
            block()
        else:
            failure = thread._node.reports.failure
            thread._node.reports.failure = lambda _: block()  # type: ignore[method-assign,assignment]  # as a logger that hangs
            trio.spy.notify("socket.io#/", {"type": 99})  # the background thread reports it
            await eventually(lambda: ended, "it was blocked", 2 * WAITING_S)
            thread._node.reports.failure = failure  # type: ignore[method-assign]
        assert ended == [True], "the running ones missed it"

        ended_at = time.monotonic()
        await trio.count(3)
        seconds = time.monotonic() - ended_at
        await trio.idles(3, 1.5 * TIMEOUT_S)
        texts = [record.getMessage() for record in caplog.records]
        missed = [text for text in texts if "fell silent" in text]
        assert missed
        wrongly = [text for text in missed if any(manager.host_id in text for manager in running)]
        # Sooner than they would be asked for because of their locks.
        if seconds < TIMEOUT_S / 2 and not wrongly:
            break
    assert not wrongly
    assert seconds < TIMEOUT_S / 2


# ------------------------------------------------------------------------------------------------- who is still there


async def test_a_server_that_cannot_listen_is_kept(trio: Trio) -> None:
    """While its lock is gone it sends heartbeats."""
    database = trio.database
    role = "listener_of_a_test"
    quoted = sql.Identifier(role)
    with database.connect() as admin:
        admin.execute(sql.SQL("CREATE ROLE {} LOGIN").format(quoted))
        try:
            async with member(database.dsn, listen_dsn=make_conninfo(database.dsn, user=role)) as outcast:
                await trio.count(4)
                await trio.silence()
                admin.execute(sql.SQL("ALTER ROLE {} NOLOGIN").format(quoted))
                admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", [role])
                await trio.stays(4, 2 * TIMEOUT_S)
                assert not outcast.stats()["is_listening"]
                admin.execute(sql.SQL("ALTER ROLE {} LOGIN").format(quoted))
                await eventually(lambda: outcast.stats()["is_listening"], "it listens again")
                await eventually(lambda: outcast.server_count("/b") == 4, "it counts the others again")
                await trio.idles(4, 1.5 * TIMEOUT_S)
        finally:
            admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", [role])
            admin.execute(sql.SQL("DROP ROLE {}").format(quoted))


@asynccontextmanager
async def holding_lock(database: Database, uid: str) -> AsyncIterator[None]:
    """Hold the lock that a server of ours would hold, and be as busy as one."""
    digest = hashlib.sha256(b"socketio-postgres cluster socket.io").digest()
    cluster = int.from_bytes(digest[:4], "big")
    # The function takes signed numbers.
    signed = [number - 2**32 if number >= 2**31 else number for number in (cluster, _core.member_lock(uid))]
    async with await psycopg.AsyncConnection.connect(database.dsn, autocommit=True) as session:
        await session.execute("SELECT pg_advisory_lock_shared(%s::int, %s::int)::text", signed)

        async def probe() -> None:
            while True:
                await session.execute("SELECT")
                await asyncio.sleep(TIMEOUT_S / 4)

        probing = asyncio.create_task(probe())
        try:
            yield
        finally:
            probing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await probing


async def test_a_server_whose_announcement_was_lost_is_asked_for(trio: Trio) -> None:
    """It holds its lock, and nobody has ever heard of it."""
    for attempt in range(ATTEMPTS):
        await trio.silence()
        trio.spy.frames.clear()
        async with holding_lock(trio.database, f"unheard{attempt}"):
            await eventually(lambda: set(kinds(trio.spy, INITIAL_HEARTBEAT)) == set(NAMESPACES), "it is asked for")
            await trio.silence()
            times = Counter(kinds(trio.spy, INITIAL_HEARTBEAT))
            peers = [FakePeer(trio.spy, f"unheard{attempt}", namespace) for namespace in NAMESPACES]

            async def is_kept(peers: list[FakePeer] = peers) -> bool:
                for peer in peers:
                    peer.say(HEARTBEAT)
                await trio.count(4)
                await trio.silence()
                return await trio.has_idled(4, IDLE_S)

            await eventually(is_kept, "its lock is enough", LIMIT_S)
        await trio.count(3)
        if max(times.values()) <= len(trio.managers):
            break
    assert max(times.values()) <= len(trio.managers)


# ---------------------------------------------------------------------------------------------------------- clean-up


async def test_one_server_deletes_old_attachments(patient_trio: Trio) -> None:
    trio = patient_trio
    by_lock = sorted(trio.managers, key=lambda manager: _core.member_lock(manager.host_id))
    sender = [manager for manager in by_lock if isinstance(manager, AsyncPostgresManager)][-1]  # not the first

    async def send(namespace: str = "/") -> None:
        readers = [manager for manager in trio.managers if manager is not sender]
        before = [manager.stats()["attachments_skipped"] for manager in readers]
        await sender.emit("large", "x" * 9000, namespace=namespace)
        await sender.flush()
        if namespace == "/":
            after = [count + 1 for count in before]
            # They have no clients. Of an emitter's attachments nobody else may know.
            await eventually(
                lambda: [manager.stats()["attachments_skipped"] for manager in readers] == after, "the others saw it"
            )

    def who_deletes(managers: Sequence[Manager]) -> list[Manager]:
        return [manager for manager in managers if manager._node.must_clean_up()]

    def all_see_each_other() -> bool:
        adapters = [adapter for each in trio.managers for adapter in each._node.peers.adapters.values()]
        return all(len(adapter.peer_locks) == len(trio.managers) - 1 for adapter in adapters)

    await eventually(all_see_each_other, "they have seen each other's locks")
    assert who_deletes(by_lock) == []
    await send()
    assert who_deletes(by_lock) == by_lock[:1]  # its row is too young
    assert who_deletes(by_lock) == by_lock[:1]
    assert who_deletes(by_lock) == []

    # To a namespace that it does not serve: nobody else may know.
    await send("/elsewhere")
    assert who_deletes(by_lock) == [sender]
    assert who_deletes(by_lock) == [sender]
    assert who_deletes(by_lock) == []

    # The one that it is left to crashes before it does so.
    await send()
    first, *rest = by_lock
    assert who_deletes(by_lock) == [first]
    assert who_deletes(rest) == []
    await asyncio.to_thread(first.close) if isinstance(first, PostgresManager) else await first.close()
    await eventually(lambda: all(manager.server_count() == 2 for manager in rest), "the others know")
    assert who_deletes(rest) == rest[:1]
    assert who_deletes(rest) == []
