"""Whom an event reaches, on three servers, whichever way it is emitted."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from socketio_postgres import AsyncPostgresManager
from socketio_postgres._cluster.async_server_operator import AsyncServerOperator
from tests.cluster.servers import Server, Trio
from tests.fixtures.clients import PythonClient

PACKET = (1, "two", None, {"three": [b"\x00\xff"]})


async def seat(trio: Trio) -> dict[str, PythonClient]:
    """On each server one client in each of two rooms, and one in another namespace, named by server and room."""
    return {
        f"{server.name} {room}": await server.connect(room, namespace=namespace)
        for server in trio.servers
        for room, namespace in (("red", "/"), ("blue", "/"), ("chat", "/chat"))
    }


async def reached(trio: Trio, clients: dict[str, PythonClient], sender: Server) -> str:
    """Who has received the event, once nothing more can come."""
    for nsp in ("/", "/chat"):
        await sender.manager.of(nsp).emit("fence")
    for client in clients.values():
        await client.wait_for("fence")
    for client in clients.values():
        assert client.received("event") in ([], [PACKET]), client
    return ", ".join(name for name, client in clients.items() if client.received("event"))


CHAIN: dict[str, tuple[Callable[[AsyncPostgresManager, dict[str, PythonClient]], AsyncServerOperator], str]] = {
    "all": (lambda manager, _: manager.of("/"), "a red, a blue, b red, b blue, c red, c blue"),
    "a namespace": (lambda manager, _: manager.of("/chat"), "a chat, b chat, c chat"),
    "a room": (lambda manager, _: manager.to("red"), "a red, b red, c red"),
    "a room of a namespace": (lambda manager, _: manager.of("/chat").to("chat"), "a chat, b chat, c chat"),
    "a room, not there": (lambda manager, _: manager.of("/chat").to("red"), ""),
    "two rooms": (lambda manager, _: manager.to("red").to("blue"), "a red, a blue, b red, b blue, c red, c blue"),
    "except a room": (lambda manager, _: manager.except_("red"), "a blue, b blue, c blue"),
    "except a client": (
        lambda manager, clients: manager.to("red").except_(clients["b red"].sid),
        "a red, c red",
    ),
    "clients": (
        lambda manager, clients: manager.to([clients["a red"].sid, clients["c blue"].sid]),
        "a red, c blue",
    ),
    "local": (lambda manager, _: manager.local, "a red, a blue"),
    "a local room": (lambda manager, _: manager.to("red").local, "a red"),
    "volatile": (lambda manager, _: manager.to("red").volatile.compress(True), "a red, b red, c red"),
    "nobody": (lambda manager, _: manager.to([]), ""),
}


@pytest.mark.parametrize("case", CHAIN)
async def test_a_chain(trio: Trio, case: str) -> None:
    choose, expected = CHAIN[case]
    clients = await seat(trio)
    await choose(trio.a.manager, clients).emit("event", *PACKET)
    assert await reached(trio, clients, trio.a) == expected


async def test_emit_of_the_server(trio: Trio) -> None:
    clients = await seat(trio)
    await trio.b.sio.emit("event", PACKET, room=["red", "blue"], skip_sid=[clients["a red"].sid, clients["b blue"].sid])
    assert await reached(trio, clients, trio.b) == "a blue, b red, c red, c blue"


async def test_emit_that_ignores_the_queue_is_local(trio: Trio) -> None:
    clients = await seat(trio)
    await trio.b.sio.emit("event", PACKET, ignore_queue=True)
    assert await reached(trio, clients, trio.b) == "b red, b blue"


async def test_emit_of_a_process_without_clients(trio: Trio) -> None:
    clients = await seat(trio)
    writer = AsyncPostgresManager(trio.database.dsn, write_only=True)
    await writer.emit("event", PACKET, room="red")
    await writer.emit("fence", None)
    await writer.emit("fence", None, namespace="/chat")
    for client in clients.values():
        await client.wait_for("fence")
    assert await reached(trio, clients, trio.a) == "a red, b red, c red"
    assert trio.a.manager.server_count() == 3  # it is not a server
    await writer.close()


async def test_the_order_of_one_sender_is_kept(trio: Trio) -> None:
    client = await trio.c.connect()
    for n in range(100):
        await trio.a.manager.emit("n", (n, "x" * 9000 if n % 7 == 0 else b"\x00" if n % 11 == 0 else None))
    assert [args[0] for args in await client.wait_for("n", 100)] == list(range(100))
