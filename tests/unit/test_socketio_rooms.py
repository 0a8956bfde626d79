"""Rooms by their names on the wire, in a real `AsyncServer` that no network reaches."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import pytest
import socketio
from socketio.async_manager import AsyncManager

from socketio_postgres import OptionsError
from socketio_postgres._cluster.socketio_rooms import SocketioRooms


class Manager(AsyncManager):  # type: ignore[misc]  # python-socketio is not typed
    """The least that can be given to a server."""

    def __init__(self) -> None:
        super().__init__()
        self.sockets = SocketioRooms(self)

    def basic_enter_room(self, sid: str, namespace: str, room: Any, eio_sid: str | None = None) -> None:
        self.sockets.add(sid, namespace, room, eio_sid)

    def basic_leave_room(self, sid: str, namespace: str, room: Any) -> None:
        self.sockets.remove(sid, namespace, room)

    def get_participants(self, namespace: str, room: Any) -> Iterable[tuple[str, str]]:
        return self.sockets.participants(namespace, room)


class Sockets:
    """A server, and clients that exist in its books only."""

    def __init__(self) -> None:
        self.manager = Manager()
        self.server = socketio.AsyncServer(client_manager=self.manager, async_mode="asgi")

    async def connect(self, eio_sid: str, *rooms: Any, namespace: str = "/") -> str:
        self.server.eio.sockets[eio_sid] = SimpleNamespace(closed=False)
        if hasattr(self.manager, "pre_connect"):
            sid: str = await self.manager.pre_connect(eio_sid, namespace)
            await self.manager.connect(sid, namespace)
        else:  # before python-socketio 5.17
            sid = await self.manager.connect(eio_sid, namespace)
        for room in rooms:
            await self.manager.enter_room(sid, namespace, room)
        return sid


@pytest.fixture
def sockets() -> Sockets:
    return Sockets()


async def test_everyone_unless_rooms_are_named(sockets: Sockets) -> None:
    a = await sockets.connect("ea", "red")
    b = await sockets.connect("eb", "red", "blue")
    c = await sockets.connect("ec")
    await sockets.connect("ed", "red", namespace="/x")
    select = sockets.manager.sockets.matching
    assert set(select("/", [], [])) == {a, b, c}
    assert set(select("/", ["red"], [])) == {a, b}
    assert sorted(select("/", ["red", "blue"], [])) == sorted([a, b])  # each once
    assert select("/", ["blue"], ["red"]) == []
    assert set(select("/", [], ["blue"])) == {a, c}
    assert select("/", ["green"], []) == []
    assert set(select("/", [], ["green"])) == {a, b, c}
    assert select("/", [a], []) == [a]  # a sid is a room of its own
    assert set(select("/", [], [a])) == {b, c}
    assert select("/nobody", [], []) == []
    assert select("/nobody", ["red"], ["blue"]) == []


async def test_rooms_that_are_no_strings_have_a_name_on_the_wire(sockets: Sockets) -> None:
    a = await sockets.connect("ea", 42)
    b = await sockets.connect("eb", "42")
    c = await sockets.connect("ec", 1)
    manager = sockets.manager
    assert set(manager.sockets.matching("/", ["42"], [])) == {a, b}
    assert set(manager.sockets.matching("/", [], ["42"])) == {c}
    assert manager.sockets.matching("/", ["1"], []) == [c]
    assert manager.sockets.local_rooms("/", ["42"]) == ["42", 42]
    await manager.leave_room(a, "/", 42)
    assert manager.sockets.matching("/", ["42"], []) == [b]
    assert manager.sockets.local_rooms("/", ["42"]) == ["42"]


async def test_the_name_lasts_as_long_as_the_room(sockets: Sockets) -> None:
    a = await sockets.connect("ea", 42)
    b = await sockets.connect("eb", 42)
    manager = sockets.manager
    await manager.leave_room(a, "/", 42)
    assert manager.sockets.matching("/", ["42"], []) == [b]
    await manager.disconnect(b, "/")
    assert manager.sockets.matching("/", ["42"], []) == []
    await manager.enter_room(a, "/", 42)
    assert manager.sockets.matching("/", ["42"], []) == [a]
    await manager.close_room(42, "/")
    assert manager.sockets.matching("/", ["42"], []) == []
    await manager.disconnect(a, "/")
    assert manager.sockets._aliases == {}, "names of rooms that are gone"


async def test_zero_is_a_room(sockets: Sockets) -> None:
    a = await sockets.connect("ea", 0)
    await sockets.connect("eb")
    assert sockets.manager.sockets.matching("/", ["0"], []) == [a]


@pytest.mark.parametrize("room", ["", b"red", 1.5, True, ["red"], ("red",), {}])
async def test_what_is_no_room_is_not_entered_by_any_way(sockets: Sockets, room: Any) -> None:
    """Also when a server in Node.js asks for it, where `""` is one."""
    a = await sockets.connect("ea", 7)
    for change in (sockets.manager.basic_enter_room, sockets.manager.basic_leave_room):
        with pytest.raises(OptionsError):
            change(a, "/", room)
    assert list(sockets.manager.rooms["/"]) == [None, a, 7]
    assert sockets.manager.sockets._aliases == {"/": {"7": 7}}


async def test_participants_are_those_of_a_name(sockets: Sockets) -> None:
    a = await sockets.connect("ea", 42)
    b = await sockets.connect("eb", "42", "red")

    def participants(room: Any) -> list[str]:
        return sorted(sid for sid, _ in sockets.manager.get_participants("/", room))

    for room in (42, "42", [42], ("42", 42), {42, "red"}, None, ["none", 42]):
        assert participants(room) == sorted([a, b]), room
    assert participants("red") == [b]
    assert participants([]) == participants(()) == participants("none") == []


async def test_a_client_is_alive_while_its_transport_is(sockets: Sockets) -> None:
    a = await sockets.connect("ea")
    manager = sockets.manager
    assert manager.sockets.is_alive(a, "/")
    assert not manager.sockets.is_alive(a, "/x")
    assert not manager.sockets.is_alive("nobody", "/")
    del sockets.server.eio.sockets["ea"]  # it vanished while its connect handler ran
    assert manager.is_connected(a, "/")
    assert not manager.sockets.is_alive(a, "/")


async def test_a_client_that_is_being_connected_or_disconnected_is_not_alive(sockets: Sockets) -> None:
    sockets.server.eio.sockets["ea"] = SimpleNamespace(closed=False)
    if hasattr(sockets.manager, "pre_connect"):  # from python-socketio 5.17 on
        a = await sockets.manager.pre_connect("ea", "/")
        assert not sockets.manager.sockets.is_alive(a, "/")
        await sockets.manager.connect(a, "/")
    else:
        a = await sockets.manager.connect("ea", "/")
    assert sockets.manager.sockets.is_alive(a, "/")
    sockets.manager.pre_disconnect(a, "/")
    assert not sockets.manager.sockets.is_alive(a, "/")


def test_without_a_server_nobody_is_alive() -> None:
    assert not Manager().sockets.is_alive("a", "/")


async def test_a_client_whose_transport_is_closed_is_not_alive(sockets: Sockets) -> None:
    """Engine.IO forgets it only later."""
    a = await sockets.connect("ea")
    sockets.server.eio.sockets["ea"].closed = True
    assert not sockets.manager.sockets.is_alive(a, "/")
