"""Any room at all means the same to the server that emits, to another one in Python, and to one in Node.js."""

from __future__ import annotations

import enum
import itertools
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from socketio_postgres import OptionsError
from tests.fixtures.bus import Serving, serving
from tests.fixtures.clients import Client, PythonClient
from tests.fixtures.database import Database
from tests.fixtures.node import NodePeer, NodeServer
from tests.fixtures.waiting import eventually

pytestmark = pytest.mark.usefixtures("node_packages")

EXAMPLES = 30

_numbers = itertools.count()


class Room(str, enum.Enum):
    """Members that show themselves by other names than they have."""

    LOBBY = "lobby"
    NUMBER = "7"
    ACCENT = "salle é"


class Level(enum.IntEnum):
    """Numbers likewise."""

    TOP = 7
    BELOW = -1


class Loud(str):
    """Text that shows itself otherwise."""

    __slots__ = ()

    def __str__(self) -> str:
        return self.upper()


TEXTS = st.text(st.characters(), max_size=12)
ROOMS: st.SearchStrategy[Any] = st.one_of(
    TEXTS,
    TEXTS.map(Loud),
    st.integers(),
    st.integers(-2, 9),
    st.integers(-2, 9).map(str),
    st.sampled_from([*Room, *Level, "", "7", "7.0", "True", "None", "a\0b", "💥" * 100, 10**300, -0]),
    st.floats(),
    st.booleans(),
    st.none(),
    st.binary(max_size=4),
    st.tuples(st.integers()),
)


def is_room(value: Any) -> bool:
    """The rule, said once more and otherwise: an int, or text that UTF-8 can carry."""
    if isinstance(value, str):
        return value != "" and not any("\ud800" <= letter <= "\udfff" for letter in str.__str__(value))
    return isinstance(value, int) and not isinstance(value, bool)


def name_of(room: Any) -> str:
    """The name that people of Node.js would give it: likewise said once more and otherwise."""
    return "".join(letter for letter in room) if isinstance(room, str) else f"{int(room):d}"


@dataclass
class Trio:
    """Three servers with a client each."""

    one: Serving
    two: Serving
    peer: NodePeer
    clients: dict[str, Client]
    fences: int = 0
    expected: list[tuple[Any, ...]] = field(default_factory=list)

    async def enter(self, room: Any) -> None:
        """Each client enters, the second by a word from the first server; the third as Node.js names rooms."""
        await self.one.sio.enter_room(self.clients["one"].sid, room)
        await self.one.sio.enter_room(self.clients["two"].sid, room)
        await self.peer.call("server.join", sid=self.clients["node"].sid, rooms=[name_of(room)])

    async def emit(self, sender: str, *, arrives: bool = True, **arguments: Any) -> None:
        """Emit from one of the servers; afterwards it is at every client, or at none."""
        number = next(_numbers)
        if sender == "node":
            await self.peer.call("server.emit", name="e", args=[number], **arguments)
        else:
            await getattr(self, sender).sio.emit("e", number, **arguments)
        await self.fence(sender)
        if arrives:
            self.expected.append((number,))
        for label, client in self.clients.items():
            assert client.received("e") == self.expected, label

    async def refuse(self, value: Any) -> None:
        """What is no room is none for any call, here or elsewhere."""
        for server in (self.one.sio, self.two.sio):
            for refused in (server.enter_room, server.leave_room):
                with pytest.raises(OptionsError):
                    await refused(self.clients["one"].sid, value)
            with pytest.raises(OptionsError):
                await server.emit("e", -1, to=[value])

    async def fence(self, sender: str) -> None:
        """Everything that a server has sent before is in."""
        self.fences += 1
        if sender == "node":
            await self.peer.call("server.emit", name="fence", args=[self.fences])
        else:
            await getattr(self, sender).sio.emit("fence", self.fences)
        for client in self.clients.values():
            await client.wait_for("fence", self.fences)


@pytest.fixture
async def trio(database: Database) -> AsyncIterator[Trio]:
    async with AsyncExitStack() as stack:
        # Starved for a while, in this long test, they are not to miss each other.
        one = await stack.enter_async_context(serving(database, heartbeat_timeout=60.0))
        two = await stack.enter_async_context(serving(database, heartbeat_timeout=60.0))
        await one.manager.start()
        await two.manager.start()
        peer = await stack.enter_async_context(NodePeer())
        node = await NodeServer.start(peer, database, adapter={"payloadThreshold": 7999})
        stack.push_async_callback(node.close)
        for server in (one, two):
            await eventually(lambda server=server: server.manager.server_count() == 3, "it knows both others")  # type: ignore[misc]
        await eventually(lambda: _knows_all(node), "Node.js knows both others")
        clients: dict[str, Client] = {
            "one": await PythonClient.connect(one.url),
            "two": await PythonClient.connect(two.url),
            "node": await peer.connect(node.url, label="client"),
        }
        yield Trio(one, two, peer, clients)
        for client in clients.values():
            await client.disconnect()
        assert peer.errors == []
        assert one.errors == two.errors == []


async def _knows_all(node: NodeServer) -> bool:
    return await node.server_count() == 3


@pytest.mark.timeout(600)
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(values=st.lists(ROOMS, min_size=1, max_size=6), stranger=TEXTS.filter(is_room))
async def test_every_server_takes_a_room_for_the_same(trio: Trio, values: list[Any], stranger: str) -> None:
    rooms = [value for value in values if is_room(value)]
    for value in values:
        if not is_room(value):
            await trio.refuse(value)
    for room in rooms:
        await trio.enter(room)
    await trio.fence("one")  # the second client has entered, too
    for room in rooms:
        for sender in ("one", "two"):
            for to in (room, [room], [room, "nobody's"]):
                await trio.emit(sender, to=to)
        await trio.emit("node", to=[name_of(room)])
    await trio.emit("one", to=set(rooms), arrives=bool(rooms))
    await trio.emit("two", skip_sid=rooms, arrives=not rooms)
    if stranger not in map(name_of, rooms):
        await trio.emit("one", to=stranger, arrives=False)
    for room in rooms:
        await trio.two.sio.close_room(room)
    await trio.fence("two")
    await trio.emit("one", to=rooms, arrives=False)
    assert trio.one.manager._node.sockets._aliases == trio.two.manager._node.sockets._aliases == {}


async def test_a_number_of_javascript_is_a_room_that_nobody_can_name(trio: Trio) -> None:
    """As docs/rooms.md says, so that nobody looks for it here."""
    await trio.peer.call("server.join", sid=trio.clients["node"].sid, rooms=[42])
    for sender, room in (("one", 42), ("one", "42"), ("node", "42")):
        await trio.emit(sender, to=room, arrives=False)
