"""What a Go server or emitter (v3.0.2) said, replayed byte for byte to a Python server; see vectors/go.json."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from socketio_postgres import AsyncPostgresManager, Message
from socketio_postgres.codec import AttachmentHeader, decode
from tests.fixtures.clients import PythonClient
from tests.fixtures.database import Database
from tests.fixtures.go_vectors import RECORDED, frames
from tests.fixtures.server import PythonServer
from tests.fixtures.spy import Frame, Spy, spying
from tests.fixtures.waiting import eventually


@dataclass
class Lab:
    """A Python server with one client in `room1`, and a spy that repeats what Go once said."""

    manager: AsyncPostgresManager
    client: PythonClient
    spy: Spy
    heard: list[tuple[Any, ...]] = field(default_factory=list)

    def replay(self, what: str, **replaced: str) -> None:
        """Send the frames of an occasion; `room1="x"` puts "x" where Go had "room1"."""
        for frame in frames(what):
            payload = frame["payload"]
            for old, new in replaced.items():
                payload = payload.replace(json.dumps(old), json.dumps(new))
            if "attachment_msgpack_hex" in frame:
                header = json.loads(payload)
                header["attachmentId"] = self.spy.attach(bytes.fromhex(frame["attachment_msgpack_hex"]))
                payload = json.dumps(header, separators=(",", ":"))
            self.spy.notify(frame["channel"], payload)

    async def answer(self, kind: int) -> dict[str, Any]:
        """The first message of this type that the Python server sent."""

        def is_answer(frame: Frame) -> bool:
            return bool(frame.message["type"] == kind and frame.message["uid"] == self.manager.host_id)

        (frame, *_) = await self.spy.wait_for(is_answer)
        return frame.message


@pytest.fixture
async def lab(database: Database) -> AsyncIterator[Lab]:
    async with contextlib.AsyncExitStack() as stack:
        manager = AsyncPostgresManager(database.dsn)
        stack.push_async_callback(manager.close)
        server = await stack.enter_async_context(PythonServer(manager))
        await manager.start()
        spy = await stack.enter_async_context(spying(database))
        replies = {"ask": ["first", "second"], "none": None}
        client = await PythonClient.connect(server.url, auth={"rooms": ["room1"]}, replies=replies)
        stack.push_async_callback(client.disconnect)
        lab = Lab(manager, client, spy)

        @manager.on_server_side("news")
        @manager.on_server_side("ask")
        def news(*args: Any) -> Any:
            lab.heard.append(args)
            return args[0]

        yield lab


@pytest.mark.parametrize("what", [what for what in RECORDED if frames(what)])
def test_every_recorded_frame_is_read(what: str) -> None:
    for frame in frames(what):
        decoded = decode(frame["payload"], nsp=frame["channel"].partition("#")[2])
        if isinstance(decoded, AttachmentHeader):
            decoded = decode(bytes.fromhex(frame["attachment_msgpack_hex"]), nsp=decoded.nsp)
        assert isinstance(decoded, Message)
        assert decoded.nsp == frame["channel"].partition("#")[2]
        assert decoded.is_from_go
        decoded.data()


@pytest.mark.parametrize(
    ("what", "name", "args"),
    [
        (
            "io.Emit('hello', 1, 'two', {three: [3, null, true, 4.5]})",
            "hello",
            (1, "two", {"three": [3, None, True, 4.5]}),
        ),
        ("io.Emit('noargs')", "noargs", ()),
        ("io.To('room1','room2').Except('room3').Emit('x', 1)", "x", (1,)),
        ("io.Emit('numbers', 2^53, -1, 1.0, 1e21, 2^63-1)", "numbers", (2**53, -1, 1, 1e21, 2**63 - 1)),
        ("io.Emit('bin', []byte{1,2,3})", "bin", ("AQID",)),  # base64: Go does not see that it is binary
        ("io.Emit('big', 9000 * 'x', 1, -1, 1.5, nil, true)", "big", ("x" * 9000, 1, -1, 1.5, None, True)),
        ("io.Emit('bigbin', 9000 * 'x', []byte{1})", "bigbin", ("x" * 9000, b"\x01")),
        ("emitter.Emit('hello', 1)", "hello", (1,)),  # without a namespace
        ("emitter.Emit('big', 9000 * 'x')", "big", ("x" * 9000,)),
    ],
)
async def test_an_event_reaches_the_client(lab: Lab, what: str, name: str, args: tuple[object, ...]) -> None:
    lab.replay(what)
    assert await lab.client.wait_for(name) == [args]


async def test_rooms_are_joined_and_left(lab: Lab) -> None:
    lab.replay("io.SocketsJoin('r2')")
    await eventually(lambda: "r2" in lab.manager.get_rooms(lab.client.sid, "/"), "joined")
    lab.replay("io.In('room1').SocketsLeave('r2')")
    await eventually(lambda: "r2" not in lab.manager.get_rooms(lab.client.sid, "/"), "left")
    lab.replay("emitter.To('r').SocketsJoin('a','b')", r="room1")
    await eventually(lambda: {"a", "b"} <= set(lab.manager.get_rooms(lab.client.sid, "/")), "joined by the emitter")


async def test_sockets_are_disconnected(lab: Lab) -> None:
    lab.replay("io.In('room9').DisconnectSockets(true)", room9="room1")
    await lab.client.wait_for_disconnect()


async def test_server_side_events_are_heard(lab: Lab) -> None:
    lab.replay("io.ServerSideEmit('news', 1, 'two')")
    await eventually(lambda: (1, "two") in lab.heard, "heard from the server")
    lab.replay("emitter.ServerSideEmit('news', 1)")
    await eventually(lambda: (1,) in lab.heard, "heard from the emitter")


async def test_answers_are_arrays_of_one(lab: Lab) -> None:
    """Go counts the elements: two would be the answers of two clients."""
    lab.replay("io.ServerSideEmitWithAck('ask', 1) (nobody answers)")
    assert (await lab.answer(10))["data"]["packet"] == [1]
    lab.replay("io.Timeout(1s).EmitWithAck('ask', 1) (no other answers)")
    assert (await lab.answer(11))["data"]["clientCount"] == 1
    assert (await lab.answer(12))["data"]["packet"] == ["first"]


async def test_a_request_for_sockets_is_answered(lab: Lab) -> None:
    lab.replay("io.FetchSockets() (nobody answers)")
    (socket,) = (await lab.answer(8))["data"]["sockets"]
    assert socket["id"] == lab.client.sid
    assert isinstance(socket["handshake"]["issued"], int)


async def test_a_server_is_counted_until_it_says_goodbye(lab: Lab) -> None:
    lab.replay("first server starts (namespaces / and /admin)")
    await eventually(lambda: lab.manager.server_count() == 2, "counted")
    (uid,) = {json.loads(frame["payload"])["uid"] for frame in frames("server closes")}
    (first, _) = (
        json.loads(frame["payload"])["uid"] for frame in frames("first server starts (namespaces / and /admin)")
    )
    lab.replay("server closes", **{uid: first})
    await eventually(lambda: lab.manager.server_count() == 1, "gone")
