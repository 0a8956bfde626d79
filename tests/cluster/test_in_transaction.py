"""A manager's messages in the user's own transaction: what its own clients and servers make of them."""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg

from socketio_postgres import AsyncPostgresManager
from tests.cluster.servers import Trio
from tests.fixtures.bus import BusReader
from tests.fixtures.database import Database
from tests.fixtures.waiting import eventually, nothing_arrives


async def test_the_clients_of_all_servers_hear_it_after_the_commit(trio: Trio) -> None:
    clients = [await server.connect("red") for server in trio.servers]
    other = await trio.a.connect("blue")
    async with await psycopg.AsyncConnection.connect(trio.database.dsn) as conn:
        chain = trio.a.manager.in_transaction(conn)
        await chain.to("red").emit("small", 1, None)
        await chain.to("red").emit("binary", b"\x00")
        await chain.to("blue").sockets_join("green")
        await nothing_arrives()
        assert not any(client.received("small") for client in clients)
        assert trio.a.rooms(other) == {"blue"}
        await conn.commit()
        for client in clients:
            assert await client.wait_for("small") == [(1, None)]
            assert await client.wait_for("binary") == [(b"\x00",)]
        await eventually(lambda: trio.a.rooms(other) == {"blue", "green"}, "the server's own client joins")
        await chain.to("green").disconnect_sockets()
        await conn.rollback()
        await chain.to("red").emit("after")
        await conn.commit()
        await clients[0].wait_for("after")
        assert trio.a.rooms(other) == {"blue", "green"}
        await chain.to("green").disconnect_sockets()
        await conn.commit()
        await other.wait_for_disconnect()
    assert other.received("small") == []
    assert [client.received("small") for client in clients] == [[(1, None)]] * 3
    for server in trio.servers:
        stats = server.manager.stats()
        assert (stats["gaps"], stats["duplicates"]) == (0, 0)


async def test_server_side_events_reach_this_server_too(trio: Trio) -> None:
    heard: list[tuple[str, Any]] = []
    for server in trio.servers:
        server.manager.on_server_side("news", lambda *args, name=server.name: heard.append((name, args)))
    async with await psycopg.AsyncConnection.connect(trio.database.dsn) as conn:
        await trio.a.manager.in_transaction(conn).server_side_emit("news", 1, {"a": b"x"})
    await eventually(lambda: len(heard) == 3, "all servers hear it")
    assert sorted(heard, key=str) == [(name, (1, {"a": b"x"})) for name in "abc"]


async def test_on_other_event_loops(trio: Trio) -> None:
    """A thread with a loop, and a connection, of its own."""
    client = await trio.b.connect("red")

    async def emit(number: int) -> None:
        async with await psycopg.AsyncConnection.connect(trio.database.dsn) as conn:
            await trio.a.manager.in_transaction(conn).to("red").emit("e", number, b"x")

    for number in range(2):
        await asyncio.to_thread(asyncio.run, emit(number))
    assert await client.wait_for("e", 2) == [(0, b"x"), (1, b"x")]


async def test_one_event_loop_after_the_other(database: Database) -> None:
    """As a manager of a test suite, in which each test has a loop."""
    manager = AsyncPostgresManager(database.dsn, write_only=True)

    async def emit(number: int) -> None:
        async with await psycopg.AsyncConnection.connect(database.dsn) as conn:
            await manager.in_transaction(conn).emit("e", number)
            await manager.in_transaction(conn).emit("e", b"x")

    async with BusReader(database) as reader:
        for number in range(3):
            await asyncio.to_thread(asyncio.run, emit(number))
        expected = [["e", body] for number in range(3) for body in (number, b"x")]
        assert await reader.wait_for(6) == expected
    await asyncio.to_thread(asyncio.run, manager.close())
