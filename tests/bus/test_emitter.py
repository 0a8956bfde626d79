"""Emitters on a real database: what is emitted is committed, once, in call order."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import psycopg
import pytest

from socketio_postgres import (
    AsyncEmitter,
    AsyncPostgresManager,
    ClosedError,
    ConnectionLostError,
    DatabaseError,
    Emitter,
    EncodeError,
    OptionsError,
    PayloadTooLargeError,
)
from tests.fixtures.database import Database
from tests.fixtures.postgres import PUBLISHES, frozen_session
from tests.fixtures.spy import Frame, Spy, spying
from tests.fixtures.waiting import TIMEOUT_S, eventually, nothing_arrives


def args_of(frames: list[Frame]) -> list[list[Any]]:
    return [frame.message["data"]["packet"]["data"][1:] for frame in frames]


PATIENT = """
from socketio_postgres._bus import bus as _bus
from socketio_postgres._cluster._sync import emitter as _emitter
_bus.EXIT_LIMIT = _emitter.CLOSE_LIMIT = 30.0  # a busy machine may need more than the usual five seconds
"""


async def run_script(database: Database, body: str, *, status: int = 0, limits: str = PATIENT) -> str:
    """Run a script in a process of its own; gives what it wrote to stderr."""
    script = f"import sys\nfrom socketio_postgres import *\nDSN = sys.argv[1]\n{limits}" + textwrap.dedent(body)

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", script, database.dsn],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )

    done = await asyncio.to_thread(run)
    assert done.returncode == status, done.stderr
    return done.stderr


ENDINGS = {
    "the end of the script": ("", 0),
    "sys.exit": ("sys.exit(3)", 3),
    "an exception": ("raise RuntimeError('it goes wrong')", 1),
    "flush": ("io.flush()\nimport os; os._exit(0)", 0),
    "close": ("io.close()\nimport os; os._exit(0)", 0),
}


@pytest.mark.parametrize("ending", ENDINGS, ids=lambda name: name.replace(" ", "-"))
async def test_what_was_emitted_is_committed_when_the_process_ends(database: Database, ending: str) -> None:
    code, status = ENDINGS[ending]
    async with spying(database) as spy:
        body = f"io = Emitter(DSN)\nfor number in range(300): io.emit('tick', number)\n{code}"
        errors = await run_script(database, body, status=status)
        frames = await spy.wait_for_broadcast("tick", 300)
    assert args_of(frames) == [[number] for number in range(300)]
    assert ("it goes wrong" in errors) == (status == 1)
    assert {frame.header["uid"] for frame in frames} == {"emitter"}


@pytest.mark.parametrize("ending", ["", "raise SystemExit(3)", "raise RuntimeError('it goes wrong')"])
async def test_leaving_the_block_flushes(database: Database, ending: str) -> None:
    body = f"""
        import os
        try:
            with Emitter(DSN) as io:
                for number in range(100):
                    io.emit("tick", number)
                {ending}
        finally:
            os._exit(0)  # nothing else may flush
    """
    async with spying(database) as spy:
        await run_script(database, body)
        assert args_of(await spy.wait_for_broadcast("tick", 100)) == [[number] for number in range(100)]


async def test_the_end_of_the_process_does_not_wait_for_ever(database: Database) -> None:
    began = time.monotonic()
    body = "io = Emitter('postgresql://app:hunter2@127.0.0.1:1/app?connect_timeout=1')\nio.emit('tick')"
    errors = await run_script(database, body, limits="")
    assert time.monotonic() - began < 60
    assert "not committed" in errors
    assert "hunter2" not in errors


async def test_a_write_only_manager_works_from_a_script(database: Database) -> None:
    body = """
        import asyncio
        async def main():
            mgr = AsyncPostgresManager(DSN, write_only=True)
            for number in range(50):
                await mgr.emit("tick", number, room="red")
            await mgr.enter_room("sid1", "/", "blue")
            await mgr.close_room("blue")
            await mgr.disconnect("sid1", "/")
            assert not await mgr.can_disconnect("sid2", "/")
        asyncio.run(main())
    """
    async with spying(database) as spy:
        await run_script(database, body)
        frames = await spy.wait_for(lambda _: True, 54)
    assert args_of(frames[:50]) == [[number] for number in range(50)]
    assert [frame.header["type"] for frame in frames[50:]] == [4, 5, 6, 6]
    assert {frame.header["uid"] for frame in frames} == {"emitter"}
    assert {frame.pid for frame in frames} == {frames[0].pid}


async def test_call_order_over_many_groups(database: Database) -> None:
    total = 5000  # a group holds at most 1000
    async with spying(database) as spy:
        with Emitter(database.dsn) as io:
            io.emit("first")
            io.flush()
            with frozen_session(database, PUBLISHES):  # however slow this machine is, all of them are there at once
                for number in range(total):
                    io.emit("tick", number)
            io.flush()
            stats = io._bus.stats()
        frames = await spy.wait_for_broadcast("tick", total)
    assert args_of(frames) == [[number] for number in range(total)]
    assert len({frame.payload for frame in frames}) == total
    assert stats["published"] == total + 1
    assert 6 <= stats["publish_groups"] <= 8, "the first; what was taken before the freeze; full groups"
    assert stats["buffer_count"] == stats["buffer_bytes"] == 0


@pytest.mark.parametrize("buffer_count", [10_000, 3])
async def test_many_events_arrive_in_order(database: Database, buffer_count: int) -> None:
    """Also when there is not room for all of them."""
    async with spying(database) as spy:
        io, other = Emitter(database.dsn, buffer_count=buffer_count), AsyncEmitter(database.dsn)
        numbered = (["tick", number] for number in range(600))
        await asyncio.to_thread(io.to("a").emit_many, numbered)
        await asyncio.to_thread(io.close)
        frames = await spy.wait_for_broadcast("tick", 600)
        assert args_of(frames) == [[number] for number in range(600)]
        assert {tuple(frame.message["data"]["opts"]["rooms"]) for frame in frames} == {("a",)}
        await other.to("a").emit_many([("tock", number) for number in range(600)])
        assert other.stats()["published"] == 600, "returns when all are committed"
        assert args_of(await spy.wait_for_broadcast("tock", 600)) == [[number] for number in range(600)]
        await other.to([]).emit_many([("nobody",)])
        await other.close()
        assert spy.broadcasts("nobody") == []


async def test_many_events_are_sent_up_to_the_first_that_cannot_be(database: Database) -> None:
    async with spying(database) as spy, AsyncEmitter(database.dsn, max_payload=1000, on_full="raise") as io:
        for bad, kind in ((object(), EncodeError), ("x" * 2000, PayloadTooLargeError)):
            with pytest.raises(kind):
                await io.emit_many([("before",), ("bad", bad), ("after",)])
        await io.emit("end")
        await spy.wait_for_broadcast("end")
        assert spy.broadcasts("bad") == spy.broadcasts("after") == []
        for no_event in ((), "name", {"name": 1}):
            with pytest.raises(OptionsError, match="events"):
                await io.emit_many([no_event])  # type: ignore[list-item]


async def test_call_order_over_sizes_and_kinds(database: Database) -> None:
    bodies: list[Any] = [1, "x" * 64_000, b"\x00" * 100, "y" * 1_000_000, None, "x" * 7_900, b"\x01" * 300_000]
    async with spying(database) as spy:
        with Emitter(database.dsn) as io:
            for number in range(35):
                io.emit("tick", number, bodies[number % len(bodies)])
        frames = await spy.wait_for_broadcast("tick", 35)
    assert args_of(frames) == [[number, bodies[number % len(bodies)]] for number in range(35)]


async def test_equal_messages_in_one_burst_all_arrive(database: Database) -> None:
    async with spying(database) as spy, AsyncEmitter(database.dsn) as asynchronous:
        with Emitter(database.dsn) as io:
            for _ in range(100):
                io.emit("tick")
        await spy.wait_for_broadcast("tick", 100)
        await asyncio.gather(*(asynchronous.emit("tock") for _ in range(100)))
        await asyncio.gather(*(asynchronous.emit("boom", b"") for _ in range(100)))
        await asyncio.gather(*(asynchronous.of("/admin").emit("tick") for _ in range(100)))
        await spy.wait_for_broadcast("tick", 200)
        await asynchronous.emit("end")
        await spy.wait_for_broadcast("end")
    counts = {name: len(spy.broadcasts(name)) for name in ("tick", "tock", "boom")}
    assert counts == {"tick": 200, "tock": 100, "boom": 100}


async def test_many_threads_share_an_emitter(database: Database) -> None:
    threads, each = 8, 500
    async with spying(database) as spy:
        with Emitter(database.dsn, buffer_count=200) as io:

            def work(thread: int) -> None:
                for number in range(each):
                    io.to(f"room{thread}").emit("tick", thread, number)

            workers = [threading.Thread(target=work, args=(thread,)) for thread in range(threads)]
            for worker in workers:
                worker.start()
            await asyncio.gather(*(asyncio.to_thread(worker.join, TIMEOUT_S) for worker in workers))
            await asyncio.to_thread(io.flush)
        frames = await spy.wait_for_broadcast("tick", threads * each)
    for thread in range(threads):
        numbers = [number for sender, number in args_of(frames) if sender == thread]
        assert numbers == list(range(each)), "a thread's messages keep their order"
    assert len(frames) == threads * each


async def test_a_full_buffer_blocks_until_there_is_room(database: Database) -> None:
    lock = psycopg.connect(database.dsn)  # a transaction: notifying itself cannot be blocked, the table can
    io = Emitter(database.dsn, buffer_count=10)
    await asyncio.to_thread(io.emit, "first", b"")
    await asyncio.to_thread(io.flush)
    lock.execute("LOCK TABLE socket_io_attachments IN ACCESS EXCLUSIVE MODE")
    done: list[int] = []

    def work() -> None:
        for number in range(50):
            io.emit("tick", number, b"")
            done.append(number)

    async with spying(database) as spy:
        worker = threading.Thread(target=work)
        worker.start()
        await eventually(lambda: io._bus.stats()["buffer_count"] == 11, "the one that waits has its place")
        await nothing_arrives()
        assert len(done) == 10
        lock.rollback()
        await asyncio.to_thread(worker.join, TIMEOUT_S)
        await asyncio.to_thread(io.flush)
        frames = await spy.wait_for_broadcast("tick", 50)
    lock.close()
    io.close()
    assert args_of(frames) == [[number, b""] for number in range(50)]


async def test_a_buffer_can_be_full_of_bytes(database: Database) -> None:
    async with spying(database) as spy, AsyncEmitter(database.dsn, buffer_bytes=1000) as io:
        # each is larger than the whole buffer: one at a time
        await asyncio.gather(*(io.emit("tick", number, "x" * 3000) for number in range(20)))
        frames = await spy.wait_for_broadcast("tick", 20)
    assert [args[0] for args in args_of(frames)] == list(range(20))


async def test_tasks_wait_for_room_in_their_order(database: Database) -> None:
    async with spying(database) as spy, AsyncEmitter(database.dsn, buffer_count=3) as io:
        await asyncio.gather(*(io.emit("tick", number) for number in range(300)))
        frames = await spy.wait_for_broadcast("tick", 300)
    assert args_of(frames) == [[number] for number in range(300)]


async def test_an_async_emit_returns_when_it_is_committed(database: Database) -> None:
    async with AsyncEmitter(database.dsn) as io:
        for number in range(20):
            await io.emit("tick", number, b"x")
            count = await asyncio.to_thread(database.value, "SELECT count(*) FROM socket_io_attachments")
            assert count == number + 1


async def test_a_hundred_tasks_share_groups(database: Database) -> None:
    async with spying(database) as spy, AsyncEmitter(database.dsn) as io:

        async def work(task: int) -> None:
            for number in range(10):
                await io.emit("tick", task, number)

        await asyncio.gather(*(work(task) for task in range(100)))
        stats = io._bus.stats()
        frames = await spy.wait_for_broadcast("tick", 1000)
    for task in range(100):
        assert [number for sender, number in args_of(frames) if sender == task] == list(range(10))
    assert stats["publish_groups"] < 1000, "what waits together is committed together"


def test_one_emitter_in_several_event_loops_in_turn(database: Database) -> None:
    io = AsyncEmitter(database.dsn)

    async def use(number: int) -> None:
        await asyncio.gather(*(io.emit("tick", number, b"") for _ in range(5)))

    for number in range(4):
        asyncio.run(use(number))
    assert database.value("SELECT count(*) FROM socket_io_attachments") == 20
    asyncio.run(io.close())


async def test_flush_raises_what_failed_and_how_many(database: Database) -> None:
    io = Emitter(database.dsn, create_table=False)
    for _ in range(5):
        io.emit("binary", b"")
    io.emit("text")
    with pytest.raises(DatabaseError) as caught:
        await asyncio.to_thread(io.flush)
    assert (caught.value.sqlstate, caught.value.failed_count) == ("42P01", 5)
    io.emit("text")
    await asyncio.to_thread(io.flush)  # told once
    stats = io._bus.stats()
    assert (stats["published"], stats["publish_failed"]) == (2, 5)
    io.emit("binary", b"")
    with pytest.raises(DatabaseError) as again:
        await asyncio.to_thread(io.close)
    assert again.value.failed_count == 1
    with pytest.raises(ClosedError):
        io.emit("text")


async def test_a_refused_message_takes_no_other_with_it(database: Database) -> None:
    async with spying(database) as spy, AsyncEmitter(database.dsn, create_table=False) as io:
        results = await asyncio.gather(
            *(io.emit("tick", b"" if number % 3 == 0 else number) for number in range(30)), return_exceptions=True
        )
        frames = await spy.wait_for_broadcast("tick", 20)
    assert [isinstance(result, DatabaseError) for result in results] == [number % 3 == 0 for number in range(30)]
    assert args_of(frames) == [[number] for number in range(30) if number % 3]


async def test_without_a_connection_messages_wait_and_then_fail() -> None:
    io = Emitter("postgresql://app@127.0.0.1:1/app", buffer_age=0.3)
    began = time.monotonic()
    for _ in range(3):
        io.emit("tick")
    with pytest.raises(ConnectionLostError) as caught:
        await asyncio.to_thread(io.flush)
    assert 0.3 <= time.monotonic() - began < TIMEOUT_S
    assert (caught.value.failed_count, caught.value.may_be_sent) == (3, False)
    await asyncio.to_thread(io.close)


async def done(result: Awaitable[None] | None) -> None:
    """Wait where there is something to wait for."""
    if result is not None:
        await result


SENDERS: dict[str, Callable[[Any], Any]] = {"Emitter": Emitter, "AsyncEmitter": AsyncEmitter}


@pytest.mark.parametrize("name", SENDERS)
async def test_the_largest_payload_is_an_option(database: Database, name: str) -> None:
    io = SENDERS[name](database.dsn, max_payload=20_000)  # type: ignore[call-arg]
    async with spying(database) as spy:
        for too_large in ("x" * 20_000, b"x" * 20_000, ["x" * 5000] * 4):
            with pytest.raises(PayloadTooLargeError) as caught:
                await done(io.emit("tick", too_large))
            assert caught.value.limit_bytes == 20_000
            assert caught.value.size_bytes > 20_000
        await done(io.emit("tick", "x" * 19_000))
        await spy.wait_for_broadcast("tick")
        assert len(spy.frames) == 1
    await done(io.close())


async def test_raw_notifications_among_messages(database: Database) -> None:
    """Somebody else's pg_notify on our channels does not disturb the numbering that keeps equal messages apart."""
    async with spying(database) as spy, AsyncEmitter(database.dsn) as io:
        for _ in range(3):
            await io.emit("tick")
            spy.notify("socket.io#/", {"type": 3, "uid": "x", "data": {"packet": {"type": 2, "data": ["tick"]}}})
        frames = await spy.wait_for_broadcast("tick", 6)
    assert [frame.header.get("n") for frame in frames] == [1, None, 2, None, 3, None]


async def test_namespaces_are_channels(database: Database) -> None:
    async with spying(database, ["socket.io#/", "socket.io#/é", "chat#/"]) as spy:
        async with AsyncEmitter(database.dsn) as io, AsyncEmitter(database.dsn, channel="chat") as chat:
            await io.of("/é").emit("a")
            await chat.emit("a")
            await io.emit("a")
        frames = await spy.wait_for_broadcast("a", 3)
    assert [(frame.channel, frame.header["nsp"]) for frame in frames] == [
        ("socket.io#/é", "/é"),
        ("chat#/", "/"),
        ("socket.io#/", "/"),
    ]


async def test_the_whole_chain_is_on_the_wire(database: Database) -> None:
    async with spying(database) as spy:
        with Emitter(database.dsn) as io:
            chain = io.of("/admin").to("room1").to(["room2", 3]).except_("room4").volatile.compress(True)
            chain.emit("hello", {"a": 1}, b"bytes")
            io.server_side_emit("news", 1)
        first, second = await spy.wait_for(lambda _: True, 2)
    message = first.message
    assert message["uid"] == "emitter"
    assert message["data"] == {
        "opts": {
            "rooms": ["room1", "room2", "3"],
            "except": ["room4"],
            "flags": {"volatile": True, "compress": True},
        },
        "packet": {"type": 2, "nsp": "/admin", "data": ["hello", {"a": 1}, b"bytes"]},
    }
    assert second.message["data"] == {"packet": ["news", 1]}


async def test_write_only_managers_and_emitters_are_no_servers(database: Database) -> None:
    spy: Spy
    manager = AsyncPostgresManager(database.dsn, write_only=True)
    async with spying(database) as spy:
        await manager.start()
        await manager.emit("tick", 1)
        await manager.flush()
        await manager.close()
        await spy.wait_for_broadcast("tick")
        assert [frame.header["type"] for frame in spy.frames] == [3]
    assert manager.stats()["is_listening"] is False
