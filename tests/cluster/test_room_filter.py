"""The core drops what is for nobody here, and nothing else."""

from __future__ import annotations

import asyncio
import random
from typing import Any

from socketio_postgres import AsyncEmitter
from tests.fixtures.bus import BusReader, acquainted, serving
from tests.fixtures.clients import PythonClient
from tests.fixtures.database import Database
from tests.fixtures.waiting import eventually, nothing_arrives

QUIET: dict[str, Any] = {"heartbeat_interval": 60.0, "heartbeat_timeout": 120.0}


async def test_what_concerns_nobody_never_reaches_python(database: Database) -> None:
    async with serving(database, ("/", "/empty"), **QUIET) as one, AsyncEmitter(database.dsn) as io:
        await one.manager.start()
        client = await PythonClient.connect(one.url, auth={"rooms": ["red"]})
        before = one.manager.stats()
        await asyncio.gather(
            *(io.to("blue").emit("event", number) for number in range(50)),
            *(io.of("/empty").emit("event", number) for number in range(50)),
            io.in_("blue").sockets_join("green"),
            io.in_("blue").disconnect_sockets(),
        )
        await io.to(["blue", "red"]).emit("event", "last")
        assert await client.wait_for("event") == [("last",)]
        after = one.manager.stats()
        assert after["irrelevant"] - before["irrelevant"] == 102
        assert after["received"] - before["received"] == 1
        assert after["gaps"] == 0
        await client.disconnect()


async def test_rooms_are_followed_through_every_way_in_and_out(database: Database) -> None:
    async with serving(database, **QUIET) as one, serving(database, **QUIET) as two, AsyncEmitter(database.dsn) as io:
        await acquainted(one, two)
        client = await PythonClient.connect(one.url)
        sid = client.sid
        expected: list[tuple[object, ...]] = []

        async def emit(room: str, *, arrives: bool) -> None:
            fences = len(client.received("fence"))
            await io.to(room).emit("event", room, len(expected))
            if arrives:
                expected.append((room, len(expected)))
            await io.to(sid).emit("fence", len(expected))
            await client.wait_for("fence", fences + 1)
            assert client.received("event") == expected

        await emit("a", arrives=False)
        await one.sio.enter_room(sid, "a")
        await emit("a", arrives=True)
        await one.sio.leave_room(sid, "a")
        await emit("a", arrives=False)
        await two.sio.enter_room(sid, "b")  # from another server
        await two.manager.flush()
        await emit("b", arrives=True)
        await one.sio.enter_room(sid, 42)  # a room that is no string
        await emit("42", arrives=True)
        await one.sio.close_room(42)
        await emit("42", arrives=False)
        await io.in_(sid).sockets_join(["c", "d"])
        await emit("d", arrives=True)
        await io.in_("c").sockets_leave("d")
        await emit("d", arrives=False)
        await client.disconnect()
        await eventually(lambda: one.server.sids("/") == set())
        irrelevant = one.manager.stats()["irrelevant"]
        await io.emit("event", "to everybody")
        await eventually(lambda: one.manager.stats()["irrelevant"] == irrelevant + 1)


async def test_a_join_and_what_follows_it_at_once(database: Database) -> None:
    """The join is still on its way to Python when the broadcast for its room is looked at."""
    async with serving(database, **QUIET) as one, AsyncEmitter(database.dsn) as io:
        await one.manager.start()
        client = await PythonClient.connect(one.url)
        for number in range(100):
            room = f"room {number}"
            await asyncio.gather(
                io.in_(client.sid).sockets_join(room),
                io.to(room).emit("event", number),
                io.in_(client.sid).sockets_leave(room),
                io.to(room).emit("never", number),
            )
        await io.emit("end")
        await client.wait_for("end")
        assert client.received("event") == [(number,) for number in range(100)]
        assert client.received("never") == []
        await client.disconnect()


async def test_a_join_behind_an_attachment_and_what_follows_it(database: Database) -> None:
    """The join waits for the attachment before it, or is one, when the broadcast for its room is looked at."""
    async with serving(database, **QUIET) as one, AsyncEmitter(database.dsn) as io:
        await one.manager.start()
        client = await PythonClient.connect(one.url)
        for number in range(20):
            room, large = f"room {number}", "x" * 9000
            joins = [room, large] if number % 2 else room
            await asyncio.gather(
                io.to(client.sid).emit("large", large),
                io.in_(client.sid).sockets_join(joins),
                io.to(room).emit("event", number),
            )
        await io.emit("end")
        await client.wait_for("end")
        assert client.received("event") == [(number,) for number in range(20)]
        await client.disconnect()


async def test_an_attachment_reaches_whom_it_is_for(database: Database) -> None:
    """Its header names the rooms; who is left out of them is for the message itself to say."""
    async with serving(database, **QUIET) as one, AsyncEmitter(database.dsn) as io:
        await one.manager.start()
        red = await PythonClient.connect(one.url, auth={"rooms": ["red"]})
        both = await PythonClient.connect(one.url, auth={"rooms": ["red", "blue"]})
        await io.to("green").emit("event", b"nobody")
        await io.to("red").except_("blue").emit("event", b"red")
        await io.to(["green", "blue"]).emit("event", b"blue")
        await io.emit("event", b"all")
        assert await red.wait_for("event", 2) == [(b"red",), (b"all",)]
        assert await both.wait_for("event", 2) == [(b"blue",), (b"all",)]
        stats = one.manager.stats()
        assert (stats["attachments"], stats["attachments_skipped"]) == (3, 1)
        await red.disconnect()
        await both.disconnect()


async def test_clients_that_were_there_before_the_cluster(database: Database) -> None:
    """The first client is let in before LISTEN is active when PostgreSQL is late; its rooms are mirrored then."""
    async with serving(database, **QUIET) as one, AsyncEmitter(database.dsn) as io:
        manager = one.manager
        manager._node.mirror.is_kept = True  # as if the mirror were lost: nothing is entered
        client = await PythonClient.connect(one.url, auth={"rooms": ["red"]})
        manager._node.mirror.is_kept = False
        manager._node.mirror.start()
        await manager.start()
        await io.to("red").emit("event", 1)
        assert await client.wait_for("event") == [(1,)]
        await client.disconnect()


async def test_the_mirror_equals_the_rooms(database: Database) -> None:
    """Random joins and leaves; afterwards a message to each room is dropped if and only if the room is empty."""
    chance = random.Random(7)  # noqa: S311
    rooms = [f"r{number}" for number in range(10)]
    async with serving(database, **QUIET) as one, AsyncEmitter(database.dsn) as io:
        await one.manager.start()
        clients = [await PythonClient.connect(one.url) for _ in range(5)]
        for _ in range(300):
            client, room = chance.choice(clients), chance.choice(rooms)
            if chance.random() < 0.2:
                await one.sio.enter_room(client.sid, room)
            elif chance.random() < 0.9:
                await one.sio.leave_room(client.sid, room)
            else:
                await one.sio.close_room(room)
        occupied = [room for room in rooms if room in one.sio.manager.rooms["/"]]
        assert 0 < len(occupied) < len(rooms), "or the test would prove nothing"
        before: dict[str, Any] = dict(one.manager.stats())
        for room in rooms:
            await io.to(room).emit("event")

        def came(key: str) -> int:
            after: dict[str, Any] = dict(one.manager.stats())
            return int(after[key] - before[key])

        await eventually(lambda: came("irrelevant") + came("received") == len(rooms))
        assert came("received") == len(occupied)
        for client in clients:
            await client.disconnect()


async def test_a_peer_that_concerns_nobody_here_is_alive(database: Database) -> None:
    """Its traffic postpones its heartbeats, as with Node.js, and all of it is dropped before Python."""
    timing: dict[str, Any] = {"heartbeat_interval": 0.5, "heartbeat_timeout": 3.0}
    async with serving(database, **timing) as one:
        await one.manager.start()
        with database.connect() as peer:
            frame = (
                '{"type":3,"uid":"node1","nsp":"/","data":{"opts":{"rooms":["x"]},"packet":{"type":2,"data":["e"]}}}'
            )

            def is_counted() -> bool:
                peer.execute("SELECT pg_notify('socket.io#/', %s)", (frame,))
                return one.manager.server_count() == 2

            async def is_kept() -> bool:
                loop = asyncio.get_running_loop()
                end = loop.time() + 7.0
                while loop.time() < end:
                    assert is_counted()
                    await asyncio.sleep(0.1)
                return True

            await eventually(is_counted, "it is counted")
            await eventually(is_kept, "it is, for more than two time-outs")  # again if all were starved meanwhile
        await eventually(lambda: one.manager.server_count() == 1, "it fell silent")


async def test_signs_of_life_are_passed_on_in_proportion_to_the_timeout(database: Database) -> None:
    """Often enough for a short timeout, and not a hundred times for a long one."""
    frame = '{"type":3,"uid":"node1","nsp":"/","data":{"opts":{"rooms":["x"]},"packet":{"type":2,"data":["e"]}}}'
    async with BusReader(database, heartbeat_timeout=1200.0) as reader:
        reader.bus.core.mirror_rooms()
        with database.connect() as peer:
            for count in (1, 2):
                peer.execute("SELECT pg_notify('socket.io#/', %s)", (frame,))
                await eventually(lambda count=count: reader.stats["irrelevant"] == count, "it is dropped")  # type: ignore[misc]
                await nothing_arrives()
        assert reader.seen == [("/", "node1")]
