"""What arrives together is passed on as it would be one by one, and stands aside where that is not sure."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import socketio
import socketio.packet

from socketio_postgres import AsyncPostgresManager, Message, MessageType
from socketio_postgres._cluster import async_socketio_sockets
from socketio_postgres._cluster.adapter import ClusterAdapter
from socketio_postgres._cluster.fast_path import FastPath
from socketio_postgres._cluster.socketio_delivery import FEW, ClientPackets
from tests.unit.test_socketio_delivery import FakeSocket


class Server:
    """A server that serves "/" and "/chat" without a database, and its clients."""

    def __init__(self) -> None:
        self.manager = AsyncPostgresManager("host=nowhere")
        self.sio = socketio.AsyncServer(client_manager=self.manager, async_mode="asgi")
        self.sockets: dict[str, FakeSocket] = {}
        self.sio.eio.sockets = self.sockets
        for namespace in ("/", "/chat"):
            self.manager._node.peers.adapters[namespace] = self.manager._node.peers.new_adapter(namespace)

    def fast_path(self) -> FastPath:
        return FastPath(self.manager._node.sockets, self.manager._node.peers)

    def adapter(self, namespace: str = "/") -> ClusterAdapter:
        return self.manager._node.peers.adapters[namespace]

    async def connect(self, name: str, *rooms: Any, namespace: str = "/") -> str:
        self.sockets[name] = FakeSocket()
        sid = str(await self.manager.connect(name, namespace))
        for room in rooms:
            self.manager.basic_enter_room(sid, namespace, room)
        return sid

    def arrived(self) -> dict[str, list[str]]:
        """Packets of each client that has any, and they are taken."""
        found: dict[str, list[str]] = {}
        for name, socket in self.sockets.items():
            while not socket.queue.empty():
                found.setdefault(name, []).append(socket.queue.get_nowait().encode())
        return found


@pytest.fixture
async def server() -> Server:
    return Server()


def event(*args: Any, nsp: str = "/", uid: str = "other", **fields: Any) -> Message:
    return Message(MessageType.BROADCAST, nsp, uid=uid, packet=["event", *args], **fields)


MESSAGES = [
    event(1),
    event(2, to=["red"]),
    event(3, to=["red", "blue"]),
    event(4, to=["42"]),
    event(5, to=["nowhere"]),
    event({"a": [None, 1.5, 'é"\\']}, to=["red"]),
    event(6, nsp="/chat"),
    event(7, nsp="/chat", to=["red"]),
    event(uid="emitter"),
    event(8, to=["red"]),
    event(9, to=["red"], volatile=True, compress=False),
    Message(MessageType.BROADCAST, "/", uid="x", packet_json='["event" , 1e2, "\\u00e9"]'),
]


async def test_every_client_gets_the_same_as_one_by_one(server: Server) -> None:
    await server.connect("a", "red")
    await server.connect("b", "red", "blue", 42)
    await server.connect("c")
    await server.connect("d", "red", namespace="/chat")
    batch = server.fast_path()
    assert [batch.take(message) for message in MESSAGES] == [True] * len(MESSAGES)
    together = server.arrived()
    for message in MESSAGES:
        await server.manager._node.receiver.receive(message)
    assert together == server.arrived()
    assert len(together["b"]) == len(MESSAGES) - 3
    assert server.adapter().server_count == 3, "other, x, and ourselves; an emitter is no server"
    assert server.adapter("/chat").server_count == 2


@pytest.mark.parametrize(
    "message",
    [
        event(1, except_=["red"]),
        event(1, request_id="q"),
        event(b"binary"),
        event(1, nsp="/unserved"),
        Message(MessageType.BROADCAST, "/", uid="x", packet_json="[1]"),
        Message(MessageType.SOCKETS_JOIN, "/", uid="x", rooms=["red"]),
        Message(MessageType.HEARTBEAT, "/", uid="x"),
        Message(MessageType.SERVER_SIDE_EMIT, "/", uid="x", packet=["event"]),
    ],
)
async def test_what_takes_more_is_left_alone(server: Server, message: Message) -> None:
    await server.connect("a", "red")
    assert not server.fast_path().take(message)
    assert server.arrived() == {}
    assert server.adapter().server_count == 1


def _unwell(server: Server) -> None:
    server.sockets["b"].closed = True


def _silent(server: Server) -> None:
    server.sockets["b"].last_ping = 1.0


def _gone(server: Server) -> None:
    del server.sockets["b"]


def _other_packets(server: Server) -> None:
    server.sio.packet_class = SimpleNamespace


def _other_sending(server: Server) -> None:
    server.sio._send_eio_packet = None


def _other_logger(server: Server) -> None:
    server.sio.eio.logger = SimpleNamespace(info=print)


def _something_raises(server: Server) -> None:
    server.manager.rooms["/"] = None  # whatever it is, the reader must go on


@pytest.mark.parametrize(
    "change", [_unwell, _silent, _gone, _other_packets, _other_sending, _other_logger, _something_raises]
)
async def test_who_is_not_as_usual_is_served_the_long_way(server: Server, change: Callable[[Server], None]) -> None:
    await server.connect("a")
    await server.connect("b")
    assert server.fast_path().take(event())
    server.arrived()
    change(server)
    batch = server.fast_path()
    assert not batch.take(event())
    assert not batch.take(event()), "nor the second time"
    assert server.arrived() == {}


async def test_many_clients_are_served_the_long_way(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(FEW):
        await server.connect(str(number))
    assert server.fast_path().take(event())
    await server.connect("one more")
    monkeypatch.setattr(
        server.manager._node.sockets, "matching", None
    )  # the longer way looks them up, and once is enough
    assert server.manager._node.sockets.has_crowd("/", (), FEW)
    assert not server.fast_path().take(event())


async def test_another_batch_sees_who_came_and_left(server: Server) -> None:
    sid = await server.connect("a", "red")
    assert server.fast_path().take(event(to=["red"]))
    assert list(server.arrived()) == ["a"]
    server.manager.basic_leave_room(sid, "/", "red")
    await server.connect("b", "red")
    assert server.fast_path().take(event(to=["red"]))
    assert list(server.arrived()) == ["b"]


@pytest.mark.parametrize(
    ("clients", "is_in_batch", "interval", "turns"),
    [
        (1, False, 0.0, 10),
        (1, True, 0.0, 0),
        (FEW, True, 0.0, 0),
        (FEW + 1, True, 0.0, 10),
        (FEW + 1, True, math.inf, 1),
        (1, False, math.inf, 1),  # the first, which comes after a pause
    ],
)
async def test_others_have_a_turn_between_emits_now_and_then_but_not_within_a_batch_for_few(
    *, server: Server, monkeypatch: pytest.MonkeyPatch, clients: int, is_in_batch: bool, interval: float, turns: int
) -> None:
    for number in range(clients):
        await server.connect(str(number))
    packets: list[ClientPackets] = [(name, ()) for name in server.sockets]
    monkeypatch.setattr(server.manager._node.sockets, "packets", lambda *_: packets)
    monkeypatch.setattr(async_socketio_sockets, "TURN_INTERVAL", interval)
    count = 0

    async def other() -> None:
        nonlocal count
        while True:
            await asyncio.sleep(0)
            count += 1

    task = asyncio.create_task(other())
    await asyncio.sleep(0)
    for _ in range(10):
        await server.manager._node.sockets.deliver(event(), "/", None, set(), None, is_in_batch=is_in_batch)
    task.cancel()
    assert count == turns
