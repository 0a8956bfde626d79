"""Order: what one sender emits arrives in that order, however it travels."""

from __future__ import annotations

import asyncio
from typing import Any

from socketio_postgres import AsyncEmitter, Emitter
from tests.fixtures.bus import BusReader, acquainted, serving
from tests.fixtures.clients import PythonClient
from tests.fixtures.database import Database

# From a notification of its own to an attachment that takes long: each overtakes the next, if it can.
BODIES: tuple[Any, ...] = ("small", "x" * 64_000, "small", "y" * 1_000_000, b"\x00\x01", "z" * 7_950, None)
ROUNDS = 200


def expected(count: int) -> list[list[Any]]:
    return [["tick", number, BODIES[number % len(BODIES)]] for number in range(count)]


async def test_small_and_large_alternating(database: Database) -> None:
    async with BusReader(database) as reader:
        with Emitter(database.dsn) as io:

            def send() -> None:
                for _, number, body in expected(ROUNDS):
                    io.emit("tick", number, body)

            await asyncio.to_thread(send)
            packets = await reader.wait_for(ROUNDS)
        assert [packet[1] for packet in packets] == list(range(ROUNDS))
        assert packets == expected(ROUNDS)
        assert reader.failures == []
        assert reader.stats["received"] == ROUNDS
        assert reader.stats["attachments"] == sum(
            not isinstance(body, (str, type(None))) or len(body or "") > 7000 for _, _, body in expected(ROUNDS)
        )


async def test_a_small_message_waits_for_a_large_one_and_what_follows_it(database: Database) -> None:
    """Each alone and committed before the next, so that nothing but the receiver can keep the order."""
    async with BusReader(database) as reader, AsyncEmitter(database.dsn) as io:
        for number in range(30):
            await io.emit("tick", number, "x" * 500_000 if number % 2 else "small")
        packets = await reader.wait_for(30)
    assert [packet[1] for packet in packets] == list(range(30))


async def test_every_sender_and_namespace_has_its_own_order(database: Database) -> None:
    namespaces = ("/", "/chat")
    async with BusReader(database, namespaces) as reader:

        async def work(sender: int) -> None:
            async with AsyncEmitter(database.dsn) as io:
                for number in range(20):
                    for namespace in namespaces:
                        await io.of(namespace).emit("tick", sender, number, b"" if number % 3 else None)

        await asyncio.gather(*(work(sender) for sender in range(3)))
        await reader.wait_for(120)
        for namespace in namespaces:
            for sender in range(3):
                numbers = [
                    message.packet()[2]
                    for message in reader.messages
                    if message.nsp == namespace and message.packet()[1] == sender
                ]
                assert numbers == list(range(20))


async def test_a_client_gets_them_in_order(database: Database) -> None:
    count = 70
    async with serving(database) as ours:
        await acquainted(ours)
        client = await PythonClient.connect(ours.url)
        async with AsyncEmitter(database.dsn) as io:
            await asyncio.gather(*(io.emit(*packet) for packet in expected(count)))
        received = await client.wait_for("tick", count)
        assert [args[0] for args in received] == list(range(count))
        assert [["tick", *args] for args in received] == expected(count)
        await client.disconnect()
        assert ours.errors == []


async def test_room_changes_take_effect_between_the_surrounding_events(database: Database) -> None:
    async with serving(database) as ours:
        await acquainted(ours)
        client = await PythonClient.connect(ours.url)
        with Emitter(database.dsn) as io:
            for number in range(20):
                io.to("red").emit("before", number, b"")  # not in the room yet
                io.in_(client.sid).sockets_join("red")
                io.to("red").emit("inside", number, "x" * 20_000)
                io.in_(client.sid).sockets_leave("red")
                io.to("red").emit("after", number)
            io.emit("end")
        await client.wait_for("end")
        assert [args[0] for args in client.received("inside")] == list(range(20))
        assert client.received("before") == client.received("after") == []
        await client.disconnect()


async def test_nothing_reaches_a_client_that_was_disconnected_before(database: Database) -> None:
    async with serving(database) as ours:
        await acquainted(ours)
        for _ in range(5):
            leaver = await PythonClient.connect(ours.url)
            stayer = await PythonClient.connect(ours.url)
            with Emitter(database.dsn) as io:
                io.emit("first", b"")
                io.in_(leaver.sid).disconnect_sockets()
                io.emit("second")
            await stayer.wait_for("second")
            await leaver.wait_for_disconnect()
            assert (len(leaver.received("first")), len(leaver.received("second"))) == (1, 0)
            await leaver.disconnect()
            await stayer.disconnect()
