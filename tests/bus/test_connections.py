"""Broken sessions: the listener listens again and says so, the publisher goes on where it was."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
from collections import Counter
from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from socketio_postgres import AsyncEmitter, AsyncPostgresClient, ConnectionLostError, Emitter
from socketio_postgres.demo.embedded import EmbeddedPostgres
from tests.fixtures.bus import BusReader, acquainted, serving
from tests.fixtures.clients import PythonClient
from tests.fixtures.database import Database
from tests.fixtures.postgres import LISTENS, sessions, terminate, the_session
from tests.fixtures.spy import spying
from tests.fixtures.waiting import eventually

SLEEPS = "wait_event = 'PgSleep'"


async def test_the_listener_listens_again(database: Database) -> None:
    async with BusReader(database, ("/", "/chat")) as reader, AsyncEmitter(database.dsn) as io:
        await io.emit("tick", 1)
        await reader.wait_for(1)
        for round_ in (1, 2):
            database.value("SELECT pg_terminate_backend(%s)", await the_session(database, LISTENS))
            await eventually(lambda round_=round_: reader.gaps == round_, "it says that there was a gap")  # type: ignore[misc]
            await io.emit("tick", round_)
            await io.of("/chat").emit("tick", round_)
            await reader.wait_for(1 + 2 * round_)
        assert reader.packets == [["tick", 1], ["tick", 1], ["tick", 1], ["tick", 2], ["tick", 2]]
        assert reader.stats["listener_reconnects"] == 2
        assert reader.stats["is_listening"]
        assert reader.failures, "and why is reported"
        counts = Counter(map(str, reader.failures))
        assert max(counts.values()) <= 2, f"once for each time: {counts}"


async def test_a_server_survives_the_loss_of_all_its_sessions(database: Database) -> None:
    async with serving(database) as ours, serving(database) as other:
        await acquainted(ours, other)
        client = await PythonClient.connect(ours.url)
        for number in range(1, 4):
            terminate(database)
            for manager in (ours.manager, other.manager):
                await eventually(
                    lambda manager=manager, number=number: manager.stats()["listener_reconnects"] == number,  # type: ignore[misc]
                    "it listens again",
                )
            async with AsyncEmitter(database.dsn) as io:
                await io.emit("tick", number, b"")
                await io.emit("tock", number)
            assert await client.wait_for("tock", number) == [(n,) for n in range(1, number + 1)]
            assert len(client.received("tick")) == number
            await eventually(lambda: ours.manager.server_count() == 2, "they still know each other")
        await client.disconnect()


async def test_attachments_have_a_session_of_their_own_once_there_are_any(database: Database) -> None:
    def count() -> int:
        return len(sessions(database))

    async with serving(database) as one, AsyncEmitter(database.dsn) as io:
        await one.manager.start()
        client = await PythonClient.connect(one.url)
        await one.manager.emit("of our own", b"binary")
        await one.manager.flush()
        await io.emit("of others", 1)
        await client.wait_for("of others")
        assert count() == 3, "the server's publisher and listener, and the emitter"
        await io.emit("large", b"binary")
        await client.wait_for("large")
        assert count() == 4
        await client.disconnect()


async def test_the_publisher_goes_on(database: Database) -> None:
    async with spying(database) as spy, AsyncEmitter(database.dsn) as io:
        await io.emit("tick", 0)
        pids = {frame.pid for frame in await spy.wait_for_broadcast("tick")}
        for number in range(1, 4):
            database.value("SELECT count(pg_terminate_backend(pid)) FROM unnest(%s::int[]) AS t(pid)", list(pids))
            # The end may be noticed before or after the next message leaves: it is then sent, or in doubt.
            for failure in await asyncio.gather(io.emit("tick", number), return_exceptions=True):
                if failure is not None:
                    assert isinstance(failure, ConnectionLostError)
                    assert failure.may_be_sent
                    await io.emit("tick", number)
            frames = await spy.wait_for_broadcast("tick", number + 1)
            pids = {frame.pid for frame in frames}
        numbers = [frame.message["data"]["packet"]["data"][1] for frame in frames]
        assert sorted(set(numbers)) == [0, 1, 2, 3]
        assert numbers == sorted(numbers)


async def test_what_was_buffered_is_sent_after_a_restart() -> None:
    with EmbeddedPostgres() as postgres:
        database = Database(f"host=127.0.0.1 port={postgres.port} user=postgres dbname=postgres")
        async with BusReader(database) as reader:
            with Emitter(database.dsn, buffer_age=120.0) as io:  # which a server that starts slowly must not exceed
                io.emit("tick", 0, b"")
                await asyncio.to_thread(io.flush)
                await reader.wait_for(1)
                await asyncio.to_thread(postgres.stop)
                # Only the one group whose commit was under way may be in doubt; here none is.
                await eventually(lambda: _cannot_connect(io), "it has heard that its session ended")
                for number in range(1, 101):
                    io.emit("tick", number, b"" if number % 2 else None)
                await eventually(lambda: not reader.stats["is_listening"], "the listener notices")
                await asyncio.to_thread(postgres.start)
                await eventually(lambda: reader.gaps, "it listens again")
                await asyncio.to_thread(io.flush)
                io.emit("end")
                await asyncio.to_thread(io.flush)
            await eventually(lambda: ["end"] in reader.packets, "the last event is in")
            numbers = [packet[1] for packet in reader.packets if packet[0] == "tick"]
            assert numbers == sorted(numbers), "whatever arrives, arrives in order"


async def _cannot_connect(io: Emitter) -> bool:
    try:
        await asyncio.to_thread(io.start)
    except ConnectionLostError:
        return True
    return False


async def test_many_restarts_leave_no_sessions_behind(database: Database) -> None:
    async with BusReader(database) as reader, AsyncEmitter(database.dsn) as io:
        for number in range(1, 6):
            await io.emit("tick", number, b"")
            await reader.wait_for(number)
            database.value("SELECT pg_terminate_backend(%s)", await the_session(database, LISTENS))
            await eventually(lambda number=number: reader.gaps == number, "it listens again")  # type: ignore[misc]
        await eventually(lambda: len(sessions(database)) == 3, "a listener and a fetcher, a publisher: no more")
    await eventually(lambda: not sessions(database), "all are closed")


@pytest.fixture
def slow_commits(database: Database) -> None:
    """Make every attachment take its time, so that a session can be ended in the middle of a commit."""
    with database.connect() as connection:
        connection.execute(
            "CREATE TABLE socket_io_attachments"
            " (id bigserial UNIQUE, created_at timestamptz DEFAULT now(), payload bytea);"
            "CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS"
            " 'BEGIN PERFORM pg_sleep(60); RETURN NEW; END';"
            "CREATE TRIGGER dawdle BEFORE INSERT ON socket_io_attachments FOR EACH ROW EXECUTE FUNCTION dawdle()"
        )


async def test_a_commit_under_way_is_in_doubt_and_what_waits_is_not(database: Database, slow_commits: None) -> None:
    async with spying(database) as spy, AsyncEmitter(database.dsn) as io:
        first = asyncio.create_task(io.emit("first", b""))
        await eventually(lambda: sessions(database, SLEEPS), "it is under way")
        second = asyncio.create_task(io.emit("second"))
        await asyncio.sleep(0)
        terminate(database, SLEEPS)
        with pytest.raises(ConnectionLostError) as caught:
            await first
        assert caught.value.may_be_sent
        await second  # it was not under way: sent on the next connection
        await spy.wait_for_broadcast("second")
        assert [frame.message["data"]["packet"]["data"][0] for frame in spy.frames] == ["second"]
        stats = io._bus.stats()
        assert (stats["published"], stats["publish_failed"], stats["publisher_reconnects"]) == (1, 1, 1)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux' list of descriptors")
async def test_small_messages_are_sent_at_once(database: Database) -> None:
    """TCP_NODELAY, on every connection to PostgreSQL, as docs/operations.md says."""
    dsn = make_conninfo(database.dsn, host="127.0.0.1")
    port = int(conninfo_to_dict(dsn)["port"] or 0)

    def options() -> dict[int, int]:
        """Whether it is set, by the local port of each connection."""
        found = {}
        for file in Path("/proc/self/fd").iterdir():
            try:
                descriptor = os.dup(int(file.name))
            except OSError:  # of the listing itself
                continue
            if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                os.close(descriptor)
                continue
            # Some lead nowhere.
            with socket.socket(fileno=descriptor) as each, contextlib.suppress(OSError):
                if each.family == socket.AF_INET and each.getpeername()[1] == port:
                    found[each.getsockname()[1]] = each.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        return found

    before = options()
    async with AsyncPostgresClient(dsn) as client:
        await client.listen("channel")
        attachment_id = await client.insert_attachment(b"body")
        assert await client.get_attachment(attachment_id) == b"body"
        opened = {port: option for port, option in options().items() if port not in before}
    assert len(opened) == 3, "publisher, listener, attachments"
    assert all(opened.values())
