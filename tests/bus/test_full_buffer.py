"""What happens to an emit for which the buffer has no room, and what a flush says afterwards."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from socketio_postgres import (
    AsyncEmitter,
    BufferFullError,
    ClosedError,
    CommitInDoubtError,
    ConnectionLostError,
    Emitter,
    Message,
    MessageType,
    OptionsError,
    SelfTestError,
)
from socketio_postgres._bus.handover import AsyncCalls
from tests.fixtures.bus import BusReader, publish, serving
from tests.fixtures.clients import PythonClient
from tests.fixtures.database import Database
from tests.fixtures.members import AsyncMember, SyncMember
from tests.fixtures.postgres import PUBLISHES, frozen_session
from tests.fixtures.waiting import TIMEOUT_S, eventually

NOWHERE = "host=127.0.0.1 port=1 connect_timeout=1"

BUFFER_AGE_S = 10.0
"""Until what was emitted to nowhere is given up: long enough that all is emitted before, and waited for."""


def test_raise_refuses_before_anything_is_sent() -> None:
    io = Emitter(NOWHERE, on_full="raise", buffer_count=2, buffer_age=BUFFER_AGE_S)
    io.emit("one")
    io.emit("two")
    with pytest.raises(BufferFullError) as caught:
        io.emit("three")
    assert caught.value.count == 2
    assert caught.value.bytes > 0
    with pytest.raises(ConnectionLostError) as lost:
        io.flush(TIMEOUT_S)
    assert lost.value.failed_count == 2
    io.close()


def test_drop_is_told_by_the_flush() -> None:
    io = Emitter(NOWHERE, on_full="drop", buffer_count=2, buffer_age=BUFFER_AGE_S)
    for number in range(5):
        io.emit("number", number)
    assert io._bus.stats()["publish_dropped"] == 3
    with pytest.raises((BufferFullError, ConnectionLostError)) as caught:
        io.flush(TIMEOUT_S)
    assert caught.value.failed_count == 5
    assert caught.value.in_doubt_count == 0
    io.close()


@pytest.mark.parametrize("on_full", ["raise", "drop"])
async def test_an_awaited_emit_is_told_either_way(on_full: Any) -> None:
    io = AsyncEmitter(NOWHERE, on_full=on_full, buffer_count=1, buffer_age=BUFFER_AGE_S)
    first = asyncio.create_task(io.emit("one"))
    await asyncio.sleep(0)
    with pytest.raises(BufferFullError):
        await io.emit("two")
    with pytest.raises(ConnectionLostError):
        await first
    await io.close()


async def test_waiting_keeps_the_order_of_the_calls(database: Database) -> None:
    """Tasks that come while others wait for room, or are just let go on, stand behind them."""
    timing: dict[str, Any] = {"heartbeat_interval": 60.0, "heartbeat_timeout": 120.0}
    async with serving(database, buffer_count=1, **timing) as one, BusReader(database) as reader:
        await one.manager.start()
        client = await PythonClient.connect(one.url)
        await one.sio.emit("n", -1)
        await one.manager.flush()
        with frozen_session(database, PUBLISHES):
            waiting = [asyncio.create_task(one.sio.emit("n", number)) for number in range(5)]
            await eventually(waiting[0].done, "the first had room")
            await asyncio.sleep(0.05)
            assert [task.done() for task in waiting] == [True] + [False] * 4
        while not all(task.done() for task in waiting[:5]):
            if len(waiting) < 500:  # each needs a commit of its own, and PostgreSQL may need its time for the first
                waiting.append(asyncio.create_task(one.sio.emit("n", len(waiting))))
            await asyncio.sleep(0)
        await asyncio.gather(*waiting)
        await reader.wait_for(len(waiting) + 1)
        in_order = [["n", number] for number in range(-1, len(waiting))]
        assert reader.packets == in_order
        await eventually(lambda: len(client.received("n")) == len(in_order))
        assert client.received("n") == [(number,) for _, number in in_order]
        await client.disconnect()


async def test_cancelling_the_wait_does_not_take_the_message_back(database: Database) -> None:
    async with BusReader(database) as reader:
        io = AsyncEmitter(database.dsn, buffer_count=1)
        await io.emit("first")
        with frozen_session(database, PUBLISHES):
            bus = io._bus
            for name in ("held", "waiting"):
                task = asyncio.create_task(publish(bus, Message(MessageType.BROADCAST, "/", packet=[name])))
                await asyncio.sleep(0.01)
            assert bus.stats()["buffer_count"] == 2
            task.cancel()
        await io.flush()
        await reader.wait_for(3)
        assert [packet[0] for packet in reader.packets] == ["first", "held", "waiting"]
        await io.close()


async def test_threads_wait_for_room_in_the_order_of_their_calls(database: Database) -> None:
    """Threads of one emitter, with room for one message: nothing is lost, each thread's own order is kept."""
    async with BusReader(database) as reader:
        io = Emitter(database.dsn, buffer_count=1)

        def emit(thread: int) -> None:
            for number in range(50):
                io.emit("n", thread, number)

        await asyncio.gather(*(asyncio.to_thread(emit, thread) for thread in range(4)))
        await asyncio.to_thread(io.close)
        seen = await reader.wait_for(200)
    for each in range(4):
        assert [number for _, thread, number in seen if thread == each] == list(range(50))


async def test_receivers_see_what_was_dropped(database: Database) -> None:
    async with BusReader(database) as reader:
        io = AsyncEmitter(database.dsn, on_full="drop", buffer_count=1)
        namespace: Any = io
        await io.emit("first")
        await reader.wait_for(1)
        bus = io._bus
        with frozen_session(database, PUBLISHES):
            waiting = asyncio.create_task(namespace.emit("held"))
            await eventually(lambda: bus.stats()["buffer_count"] == 1)
            message = Message(MessageType.BROADCAST, "/", packet=["dropped"])
            await publish(bus, message)
            await publish(bus, message)
        await waiting
        await io.emit("last")
        await reader.wait_for(3)
        assert [packet[0] for packet in reader.packets] == ["first", "held", "last"]
        assert [(gap.reason, gap.missing) for gap in reader.gap_infos] == [("hole", 2)]
        with pytest.raises(BufferFullError) as caught:
            await io.flush()
        assert caught.value.failed_count == 2
        await io.close()


async def test_a_manager_refuses_before_its_own_clients_get_it(database: Database) -> None:
    timing: dict[str, Any] = {"heartbeat_interval": 60.0, "heartbeat_timeout": 120.0}
    async with serving(database, on_full="raise", buffer_count=1, **timing) as one:
        await one.manager.start()
        client = await PythonClient.connect(one.url)
        await one.sio.emit("first")
        await one.manager.flush()
        with frozen_session(database, PUBLISHES):
            await one.sio.emit("second")
            with pytest.raises(BufferFullError):
                await one.sio.emit("third")
        await one.manager.flush()
        await one.sio.emit("fourth")
        await client.wait_for("fourth")
        assert client.received("third") == []
        await client.disconnect()


@pytest.mark.parametrize("kind", [AsyncMember, SyncMember])
async def test_a_chain_refuses_before_it_acts_here(database: Database, kind: type[AsyncMember | SyncMember]) -> None:
    timing: dict[str, Any] = {"heartbeat_interval": 60.0, "heartbeat_timeout": 120.0}
    ours = await kind("ours", database, ["/"], on_full="raise", buffer_count=1, **timing).start()
    client = await PythonClient.connect(ours.url, auth={"rooms": []})
    await ours.emit("first")
    await client.wait_for("first")
    await _flush(ours)
    with frozen_session(database, PUBLISHES):
        await ours.emit("second")
        for refused in (ours.emit("third"), ours.sockets_join(client.sid, "r"), ours.disconnect_sockets(client.sid)):
            with pytest.raises(BufferFullError):
                await refused
    await _flush(ours)
    await ours.emit("fourth")
    await client.wait_for("fourth")
    assert client.received("third") == []
    await _flush(ours)
    [socket] = await ours.fetch_sockets(client.sid, timeout=TIMEOUT_S)
    assert socket["rooms"] == [client.sid]
    await client.disconnect()
    await ours.close()


async def _flush(member: AsyncMember | SyncMember) -> None:
    if isinstance(member, AsyncMember):
        await member.manager.flush()
    else:
        await asyncio.to_thread(member.manager.flush)


async def test_a_commit_without_an_answer_is_in_doubt(database: Database) -> None:
    # Heartbeats are messages, too: none comes meanwhile. A session that is not frozen may be starved, and answers.
    timing: dict[str, Any] = {"heartbeat_interval": 11.9, "heartbeat_timeout": 12.0}
    async with serving(database, **timing) as one, BusReader(database) as reader:
        await one.manager.start()
        await one.sio.emit("first")
        await one.manager.flush()
        with frozen_session(database, PUBLISHES):
            await one.sio.emit("doubtful")
            with pytest.raises(CommitInDoubtError) as caught:
                await one.manager.flush()
            assert caught.value.may_be_sent
            assert (caught.value.failed_count, caught.value.in_doubt_count) == (1, 1)
            await one.sio.emit("second")
            await one.manager.flush()
        await eventually(lambda: ["second"] in reader.packets)
        names = [packet[0] for packet in reader.packets]
        # It may have been committed after all, late: then it is a repeated number, and order is kept.
        assert names in (["first", "second"], ["first", "doubtful", "second"])
        stats = one.manager.stats()
        assert (stats["publish_failed"], stats["publish_in_doubt"]) == (1, 1)
        assert any(isinstance(error, CommitInDoubtError) for error in one.errors)


async def test_closing_in_the_middle_of_a_commit_is_in_doubt(database: Database) -> None:
    io = AsyncEmitter(database.dsn)
    await io.emit("first")
    with frozen_session(database, PUBLISHES):
        waiting = asyncio.create_task(io.emit("doubtful"))
        await eventually(lambda: io._bus.stats()["buffer_count"] == 1)
        await io._bus.close(3.0)
        with pytest.raises(CommitInDoubtError):
            await waiting


async def test_two_databases_are_told_at_start(database: Database) -> None:
    other = database.dsn.replace(database.name, "postgres")
    async with serving(database, listen_dsn=other) as one:
        with pytest.raises(SelfTestError) as caught:
            await one.manager.start()
        assert caught.value.likely_cause == "other_database"


async def test_two_databases_are_told_in_the_background(database: Database) -> None:
    """Without `start`, the first message finds out."""
    other = database.dsn.replace(database.name, "postgres")
    async with serving(database, listen_dsn=other, heartbeat_interval=0.2, heartbeat_timeout=0.6) as one:
        client = await PythonClient.connect(one.url)
        await eventually(lambda: any(isinstance(error, SelfTestError) for error in one.errors), "it is noticed")
        await client.disconnect()


async def test_an_unreachable_listener_is_told_at_start(database: Database) -> None:
    async with serving(database, listen_dsn=NOWHERE) as one:
        with pytest.raises(ConnectionLostError):
            await one.manager.start()


@pytest.mark.parametrize("value", ["later", None, 1])
def test_bad_policies_are_refused(value: Any) -> None:
    with pytest.raises(OptionsError) as caught:
        Emitter("", on_full=value)
    assert caught.value.option == "on_full"
    assert "wait, raise, drop" in str(caught.value)


async def test_a_flush_does_not_wait_for_what_comes_after_it() -> None:
    """During an outage younger messages keep the buffer filled; the older ones have failed all the same."""
    io = AsyncEmitter(NOWHERE, buffer_age=5)
    await publish(io._bus, Message(MessageType.BROADCAST, "/", packet=["old"]))
    flushed = asyncio.create_task(io.flush())

    async def go_on() -> None:
        while True:
            await publish(io._bus, Message(MessageType.BROADCAST, "/", packet=["young"]))
            await asyncio.sleep(0.05)

    going_on = asyncio.create_task(go_on())
    with pytest.raises(ConnectionLostError):
        await asyncio.wait_for(flushed, TIMEOUT_S)
    going_on.cancel()
    await io._bus.close(0.0)


async def test_refused_emits_leave_nothing_behind() -> None:
    io = AsyncEmitter(NOWHERE, on_full="raise", buffer_count=1, buffer_age=60.0)
    first = asyncio.create_task(io.emit("one"))
    await asyncio.sleep(0)
    pending = AsyncCalls.of_running_loop()._pending
    before = len(pending)
    for _ in range(10):
        with pytest.raises(BufferFullError):
            await io.emit("two")
    assert len(pending) == before
    await io._bus.close(0.0)
    with pytest.raises(ClosedError):
        await first
