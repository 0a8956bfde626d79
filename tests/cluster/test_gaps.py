"""Whatever is lost is told: by whom, how much, since when; and nothing is told that was not lost."""

from __future__ import annotations

import asyncio
import contextlib
import json
import queue
import threading
import time
from typing import Any

import psycopg
import pytest
import socketio

from socketio_postgres import (
    AsyncEmitter,
    AsyncPostgresClient,
    Emitter,
    GapInfo,
    OperationTimeoutError,
    PostgresClient,
    PostgresManager,
)
from tests.fixtures.bus import BusReader, serving
from tests.fixtures.clients import PythonClient
from tests.fixtures.database import Database
from tests.fixtures.postgres import LISTENS
from tests.fixtures.waiting import TIMEOUT_S, eventually

CHANNEL = "socket.io#/"
QUIET: dict[str, Any] = {"heartbeat_interval": 60.0, "heartbeat_timeout": 120.0}


def broadcast(number: object, sender: str = "peer", **more: object) -> str:
    """A broadcast as another server of this package sends it."""
    packet = {"type": 2, "nsp": "/", "data": ["tick", number]}
    data = {"opts": {"rooms": [], "except": [], "flags": {}}, "packet": packet}
    return json.dumps({"type": 3, "uid": sender, "nsp": "/", "data": data, "n": number, **more})


def notify(database: Database, *payloads: str) -> None:
    with database.connect() as connection, connection.transaction():
        for payload in payloads:
            connection.execute("SELECT pg_notify(%s, %s)", (CHANNEL, payload))


async def test_a_hole_is_told_in_its_place(database: Database) -> None:
    async with BusReader(database) as reader:
        start = time.time()
        notify(database, broadcast(57))
        await reader.wait_for(1)
        seen = time.time()
        notify(database, broadcast(58), broadcast(62), broadcast(63))
        assert [packet[1] for packet in await reader.wait_for(4)] == [57, 58, 62, 63]
        [gap] = reader.gap_infos
        assert (gap.reason, gap.namespace, gap.sender, gap.missing) == ("hole", "/", "peer", 3)
        assert start <= seen <= gap.since + 1
        assert gap.since <= time.time()
        kinds = [item if isinstance(item, GapInfo) else item.packet()[1] for item in reader.items]
        assert kinds == [57, 58, gap, 62, 63], "before the message that revealed it"
        assert reader.stats["gaps"] == 1
        assert reader.stats["missing_messages"] == 3


async def test_senders_are_told_apart(database: Database) -> None:
    async with BusReader(database) as reader:
        notify(
            database,
            broadcast(1, "emitter", p="aaaaaaaa"),
            broadcast(1, "emitter", p="bbbbbbbb"),
            broadcast(2, "emitter", p="aaaaaaaa"),
            broadcast(5, "emitter", p="bbbbbbbb"),
            broadcast(1, "peer"),
        )
        await reader.wait_for(5)
        assert [(gap.sender, gap.missing) for gap in reader.gap_infos] == [("emitter/bbbbbbbb", 3)]


async def test_what_comes_twice_is_delivered_once(database: Database) -> None:
    async with BusReader(database) as reader:
        notify(database, broadcast(1), broadcast(2))
        notify(database, broadcast(2), broadcast(1), broadcast(3))
        await reader.wait_for(3)
        assert [packet[1] for packet in reader.packets] == [1, 2, 3]
        assert reader.stats["duplicates"] == 2
        assert reader.gap_infos == []


async def test_peers_without_numbers_are_never_missed(database: Database) -> None:
    """Node.js and Go send none, and whoever writes keys of these names may mean anything."""
    async with BusReader(database) as reader:
        odd = [broadcast(value, n=value) for value in ("x", 1.5, -1, None, [1], {"n": 1}, True)]
        plain = json.loads(broadcast(1))
        del plain["n"]
        notify(database, *odd, json.dumps(plain), json.dumps({**plain, "x": 1}))
        await reader.wait_for(9)
        assert reader.gap_infos == []
        assert reader.failures == []


async def test_numbers_that_somebody_made_up_overflow_nothing(database: Database) -> None:
    """The highest numbers there are, again and again: counters stay where they are, and the next hole is counted."""
    highest = 2**64 - 1
    async with BusReader(database) as reader:
        for _ in range(3):
            notify(database, broadcast(1), broadcast(highest))
        await reader.wait_for(6)
        assert [gap.missing for gap in reader.gap_infos] == [highest - 2] * 3
        assert reader.stats["missing_messages"] == highest
        notify(database, broadcast(highest + 1), broadcast(10**400), broadcast(1, "other"), broadcast(3, "other"))
        await reader.wait_for(10)
        assert reader.gap_infos[-1].missing == 1
        assert (reader.stats["missing_messages"], reader.failures) == (highest, [])


async def test_two_emitters_of_one_process_are_two_senders(database: Database) -> None:
    async with BusReader(database) as reader, AsyncEmitter(database.dsn) as one, AsyncEmitter(database.dsn) as two:
        for number in range(20):
            await one.emit("tick", number)
            await two.emit("tick", number)
        await reader.wait_for(40)
        assert reader.gap_infos == []
        assert reader.stats["duplicates"] == 0


async def test_a_lost_attachment_is_a_gap_in_its_place(database: Database) -> None:
    async with BusReader(database) as reader, AsyncEmitter(database.dsn) as io:
        await io.emit("tick", 0)
        await reader.wait_for(1)
        header = {"type": 3, "uid": "peer", "nsp": "/", "n": 8, "attachmentId": "424242"}
        notify(database, broadcast(7), json.dumps(header), broadcast(9))
        await reader.wait_for(3)
        [gap] = reader.gap_infos
        assert (gap.reason, gap.sender, gap.missing) == ("attachment", "peer", 1)
        kinds = [item if isinstance(item, GapInfo) else item.packet()[1] for item in reader.items]
        assert kinds == [0, 7, gap, 9]


async def test_an_attachment_larger_than_the_limit_is_never_read(database: Database) -> None:
    async with BusReader(database, max_payload=100_000) as reader, AsyncEmitter(database.dsn) as io:
        await io.emit("tick", "x" * 50_000)
        await io.emit("tick", "x" * 200_000)
        await io.emit("tick", "small")
        packets = await reader.wait_for(2)
        assert [len(packet[1]) for packet in packets] == [50_000, 5]
        [gap] = reader.gap_infos
        assert gap.reason == "attachment"
        assert "200" in str(reader.failures[0])
        assert reader.stats["attachments_missing"] == 1


async def test_many_large_attachments_come_in_order(database: Database) -> None:
    """More than one fetch takes: 24 MiB in a burst."""
    async with BusReader(database) as reader, AsyncEmitter(database.dsn) as io:
        bodies = [bytes([number]) * (3 << 20) for number in range(8)]
        await asyncio.gather(*(io.emit("tick", body) for body in bodies), io.emit("tick", "end"))
        packets = await reader.wait_for(9)
        assert [packet[1] for packet in packets] == [*bodies, "end"]
        assert reader.stats["held_bytes"] == 0


async def test_an_overflow_is_counted_exactly(database: Database) -> None:
    """Python takes nothing for a while: what does not fit is dropped, and the gap says whose and how many."""
    async with BusReader(database, receive_buffer_bytes=100_000) as reader, AsyncEmitter(database.dsn) as io:
        await io.emit("tick", 0)
        await reader.wait_for(1)
        async with reader.paused():
            for number in range(1, 301):
                await io.emit("tick", number, "x" * 1000)
            await eventually(lambda: reader.stats["overflowed"] > 0, "it overflows")
            await eventually(lambda: reader.stats["received"] + reader.stats["overflowed"] == 301, "all came")
            assert reader.stats["inbox_bytes"] <= 100_000
            assert reader.stats["inbox_age"] > 0
        await eventually(lambda: len(reader.packets) + sum(gap.missing or 0 for gap in reader.gap_infos) == 301)
        await eventually(lambda: reader.stats["inbox_age"] == 0, "everything is taken")
        [gap] = reader.gap_infos
        assert gap.reason == "overflow"
        assert gap.sender is not None
        assert gap.sender.startswith("emitter/")
        numbers = [packet[1] for packet in reader.packets]
        assert numbers == list(range(len(numbers)))
        await io.emit("tick", "after")
        await eventually(lambda: reader.packets[-1][1] == "after")
        assert len(reader.gap_infos) == 1, "a dropped message is not missed again as a hole"


async def test_messages_held_behind_an_attachment_are_bounded(database: Database) -> None:
    """The table is locked, so the attachment cannot be fetched, and everything behind it has to wait."""
    reader = BusReader(database, receive_buffer_bytes=50_000, heartbeat_timeout=60.0)
    async with reader, AsyncEmitter(database.dsn) as io:
        await io.emit("tick", b"create the table")
        await reader.wait_for(1)
        with psycopg.connect(database.dsn) as locking:
            await io.emit("tick", b"held")
            locking.execute("LOCK TABLE socket_io_attachments IN ACCESS EXCLUSIVE MODE")
            header = {"type": 3, "uid": "peer", "nsp": "/", "n": 1, "attachmentId": "1"}
            notify(database, json.dumps(header))
            for number in range(2, 302):
                notify(database, broadcast(number, x="x" * 500))
            await eventually(lambda: reader.stats["overflowed"] > 0)
            assert reader.stats["held_bytes"] + reader.stats["inbox_bytes"] <= 50_000
        # What was held is in the inbox now, and may fill it until it is taken.
        await eventually(lambda: reader.stats["held_bytes"] + reader.stats["inbox_bytes"] == 0)
        notify(database, broadcast(302))
        await eventually(lambda: reader.packets[-1][1] == 302)
        told = sum(gap.missing or 0 for gap in reader.gap_infos)
        assert len(reader.packets) + told == 2 + 301 + 1


async def test_on_gap_of_a_manager(database: Database) -> None:
    gaps: list[GapInfo] = []

    async def on_gap(gap: GapInfo) -> None:
        await one.sio.emit("resync", str(gap.missing))
        gaps.append(gap)

    async with serving(database, on_gap=on_gap, **QUIET) as one:
        await one.manager.start()
        client = await PythonClient.connect(one.url)
        notify(database, broadcast(1), broadcast(3))
        assert await client.wait_for("resync") == [("1",)]
        assert [gap.reason for gap in gaps] == ["hole"]
        assert one.errors == []
        await client.disconnect()


def test_on_gap_of_a_server_of_threads_may_wait(database: Database) -> None:
    """For what only the thread brings that told it of the gap."""
    is_heard = threading.Event()
    told: queue.Queue[bool] = queue.Queue()
    manager = PostgresManager(database.dsn, on_gap=lambda _: told.put(is_heard.wait(TIMEOUT_S)), **QUIET)
    socketio.Server(client_manager=manager, async_mode="threading")
    manager.on_server_side("hear", is_heard.set)
    manager.start()
    try:
        notify(database, broadcast(1), broadcast(3))
        with Emitter(database.dsn) as io:
            io.server_side_emit("hear")
        assert told.get(timeout=2 * TIMEOUT_S), "the thread went on meanwhile"
    finally:
        manager.close()


async def test_on_gap_that_raises_stops_nothing(database: Database) -> None:
    def on_gap(gap: GapInfo) -> None:
        raise ValueError(gap.reason)

    async with serving(database, on_gap=on_gap, **QUIET) as one:
        await one.manager.start()
        client = await PythonClient.connect(one.url)
        notify(database, broadcast(1), broadcast(3), broadcast(4))
        await client.wait_for("tick", 3)
        await eventually(lambda: [str(error) for error in one.errors] == ["hole"])
        await client.disconnect()


LISTENERS = f"FROM pg_stat_activity WHERE datname = current_database() AND {LISTENS} AND pid <> pg_backend_pid()"


async def test_a_reconnect_is_a_gap_after_listen_is_active(database: Database) -> None:
    seen: list[tuple[GapInfo, object]] = []
    ended: list[object] = []

    def on_gap(gap: GapInfo) -> None:
        # A session that was ended may be shown for a while.
        held = f"SELECT count(*) {LISTENERS} AND query ~ 'pg_listening_channels' AND pid <> ALL (%s::int[])"
        seen.append((gap, database.value(held, ended)))

    async with serving(database, on_gap=on_gap, **QUIET) as one:
        await one.manager.start()
        ended += database.value(f"SELECT array_agg(pid) {LISTENERS}")  # type: ignore[arg-type]
        database.value("SELECT count(pg_terminate_backend(pid)) FROM unnest(%s::int[]) AS t (pid)", ended)
        after = time.time()
        await eventually(lambda: seen, "the gap is told")
        [(gap, held)] = seen
        assert (gap.reason, gap.namespace, gap.sender, gap.missing) == ("reconnect", None, None, None)
        assert gap.since <= after + 1
        assert held == 1
        assert one.manager.stats()["is_listening"]


async def test_a_raw_client_is_told_of_an_overflow(database: Database) -> None:
    gaps: list[GapInfo] = []
    client = AsyncPostgresClient(database.dsn, on_gap=gaps.append, receive_buffer_bytes=10_000)
    async with client, AsyncPostgresClient(database.dsn) as other:
        await client.listen("jobs")
        for number in range(100):
            await other.notify("jobs", f"{number} " + "x" * 500)
        await other.notify("jobs", "end")
        await eventually(lambda: client._bus.inbox.dropped > 0)
        first = await client.wait_for_notification(TIMEOUT_S)
        assert first.payload.startswith("0 ")
        count = 1

        async def all_are_accounted_for() -> bool:
            nonlocal count
            with contextlib.suppress(OperationTimeoutError):
                await client.wait_for_notification(0.1)
                count += 1
            return count + sum(gap.missing or 0 for gap in gaps) == 101

        await eventually(all_are_accounted_for, "every notification came or is told missing")
        assert {gap.reason for gap in gaps} == {"overflow"}


async def test_nothing_that_is_told_stops_the_reader(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever goes wrong in dealing with a gap, a server must not go deaf over it."""
    async with serving(database, on_gap=lambda gap: gap, **QUIET) as one:
        await one.manager.start()
        client = await PythonClient.connect(one.url)

        def fail(_: object) -> None:
            raise RuntimeError("no more memory")

        monkeypatch.setattr(one.manager._node.reports, "gap", fail)
        notify(database, broadcast(1), broadcast(3))
        assert await client.wait_for("tick", 2) == [(1,), (3,)]
        await eventually(lambda: "no more memory" in [str(error) for error in one.errors])
        monkeypatch.undo()
        await client.disconnect()


END_LISTENERS = f"SELECT count(pg_terminate_backend(pid)) {LISTENERS}"


async def test_on_gap_of_a_client_may_be_a_coroutine_function(database: Database) -> None:
    gaps: asyncio.Queue[GapInfo] = asyncio.Queue()
    async with AsyncPostgresClient(database.dsn, on_gap=gaps.put) as client:
        await client.listen("jobs")
        database.value(END_LISTENERS)
        waiting = asyncio.create_task(client.wait_for_notification(TIMEOUT_S))
        gap = await asyncio.wait_for(gaps.get(), TIMEOUT_S)
        assert gap.reason == "reconnect"
        waiting.cancel()


def test_on_gap_of_a_blocking_client_may_be_one_too(database: Database) -> None:
    gaps: queue.Queue[GapInfo] = queue.Queue()

    async def note(gap: GapInfo) -> None:
        await asyncio.sleep(0)
        gaps.put(gap)

    with PostgresClient(database.dsn, on_gap=note) as client:
        client.listen("jobs")
        database.value(END_LISTENERS)
        while gaps.empty():
            with pytest.raises(OperationTimeoutError):
                client.wait_for_notification(0.1)
        assert gaps.get().reason == "reconnect"
