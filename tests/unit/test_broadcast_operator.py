"""The chains of the emitters: what they choose, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from socketio_postgres import AsyncEmitter, Emitter, EncodeError, Message, MessageType, OptionsError
from socketio_postgres._bus.messages import RESERVED_EVENTS
from socketio_postgres._bus.options import BusOptions
from socketio_postgres._cluster.broadcast_operator import REMEMBERED, BroadcastOperator, Namespace, Target
from socketio_postgres._cluster.framer import Framer

NOWHERE = "postgresql://app@does-not-exist.invalid/app"


class Recorder:
    """Takes what a chain would send."""

    def __init__(self) -> None:
        self._framer = Framer(BusOptions())
        self.sent: list[tuple[Message, Target]] = []
        self.io: Namespace[None] = Namespace(self)

    def _publish(self, message: Message, target: Target) -> None:
        self.sent.append((message, target))

    def _publish_many(self, messages: Iterator[Message], target: Target) -> None:
        for message in messages:
            self._publish(message, target)

    @property
    def message(self) -> Message:
        [(message, _)] = self.sent
        return message


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


def test_emit_to_everybody(recorder: Recorder) -> None:
    recorder.io.emit("hello", "world", {"a": 1}, None, b"x")
    message = recorder.message
    assert (message.type, message.nsp, message.to, message.except_) == (MessageType.BROADCAST, "/", [], [])
    assert message.packet() == ["hello", "world", {"a": 1}, None, b"x"]
    assert (message.volatile, message.compress, message.request_id) == (False, None, None)


def test_arguments_are_taken_as_they_are(recorder: Recorder) -> None:
    recorder.io.emit("e", (1, 2), [], None)  # variadic, as Socket.IO's: a tuple is one argument here
    assert recorder.message.packet() == ["e", [1, 2], [], None]


def test_the_whole_chain(recorder: Recorder) -> None:
    recorder.io.of("/admin").to("room1").to("room2").except_("room3").volatile.compress(False).emit("hello")
    message = recorder.message
    assert (message.nsp, message.to, message.except_) == ("/admin", ["room1", "room2"], ["room3"])
    assert (message.volatile, message.compress) == (True, False)


def test_compress_is_said_only_when_asked_for(recorder: Recorder) -> None:
    for compress in (True, False):
        recorder.io.compress(compress).emit("e")
    assert [message.compress for message, _ in recorder.sent] == [True, False]
    assert [message.data()["opts"]["flags"] for message, _ in recorder.sent] == [
        {"compress": True},
        {"compress": False},
    ]


@pytest.mark.parametrize(
    ("rooms", "expected"),
    [
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        (("a", "b", "a"), ["a", "b"]),
        ({"a"}, ["a"]),
        (frozenset({"a"}), ["a"]),
        (42, ["42"]),
        (0, ["0"]),
        ([42, "42"], ["42"]),
    ],
)
def test_one_room_or_several(recorder: Recorder, rooms: Any, expected: list[str]) -> None:
    recorder.io.to(rooms).emit("e")
    recorder.io.in_(rooms).emit("e")
    recorder.io.to("x").to(rooms).in_("x").emit("e")
    recorder.io.except_(rooms).emit("e")
    recorder.io.to("x").except_("y").except_(rooms).emit("e")
    messages = [message for message, _ in recorder.sent]
    assert [message.to for message in messages] == [expected, expected, ["x", *expected], [], ["x"]]
    assert [message.except_ for message in messages] == [[], [], [], expected, ["y", *expected]]


CHAINS: list[Callable[[Any], Any]] = [
    lambda io: io.to("b"),
    lambda io: io.in_("b"),
    lambda io: io.except_("b"),
    lambda io: io.volatile,
    lambda io: io.compress(True),
]


@pytest.mark.parametrize("change", CHAINS)
def test_a_chain_changes_nothing_before_it(recorder: Recorder, change: Callable[[Any], Any]) -> None:
    for start in (recorder.io, recorder.io.of("/x"), recorder.io.to("a")):
        recorder.sent.clear()
        start.emit("e")
        changed = change(start)
        assert changed is not start
        changed.emit("e")
        start.emit("e")
        before, between, after = (message for message, _ in recorder.sent)
        assert before == after
        assert before != between
    with pytest.raises(AttributeError):
        recorder.io.to("a")._target.rooms = ("b",)  # type: ignore[misc]


def test_a_few_rooms_are_remembered(recorder: Recorder) -> None:
    assert recorder.io.to("often") is recorder.io.to("often")
    rooms = [f"{number % (REMEMBERED + 10)}" for number in range(3 * REMEMBERED)]
    for room in rooms:
        recorder.io.to(room).emit("e")
    assert [message.to for message, _ in recorder.sent] == [[room] for room in rooms]
    assert len(recorder.io._chosen) <= REMEMBERED


def test_rooms_of_the_caller_are_copied(recorder: Recorder) -> None:
    rooms = ["a"]
    chain = recorder.io.to(rooms)
    rooms.append("b")
    chain.emit("e")
    assert recorder.message.to == ["a"]


@pytest.mark.parametrize("nobody", [[], (), set(), frozenset()])
def test_an_empty_list_of_rooms_is_nobody(nobody: Any) -> None:
    emitter = Emitter(NOWHERE)
    emitter.to(nobody).emit("e")
    emitter.of("/x").in_(nobody).except_("a").volatile.emit("e")
    emitter.to(nobody).sockets_join("a")
    emitter.to(nobody).sockets_leave("a")
    emitter.to(nobody).disconnect_sockets(close=True)
    assert emitter._bus.stats() == {}, "something was handed to the core"


async def test_an_empty_list_of_rooms_is_nobody_for_the_async_emitter() -> None:
    emitter = AsyncEmitter(NOWHERE)
    await emitter.to([]).emit("e")
    await emitter.to([]).disconnect_sockets()
    assert emitter._bus.stats() == {}, "something was handed to the core"


def test_adding_rooms_to_nobody_is_somebody(recorder: Recorder) -> None:
    recorder.io.to([]).to("a").emit("e")
    [(message, target)] = recorder.sent
    assert message.to == ["a"]
    assert target.rooms == ("a",)


def test_except_nobody_is_everybody(recorder: Recorder) -> None:
    recorder.io.except_([]).emit("e")
    [(message, target)] = recorder.sent
    assert target.rooms is None
    assert (message.to, message.except_) == ([], [])


def test_actions_on_sockets(recorder: Recorder) -> None:
    some = recorder.io.of("/x").to("a").except_("b")
    some.sockets_join(["r1", 2])
    some.sockets_leave("r1")
    some.disconnect_sockets()
    some.disconnect_sockets(close=True)
    recorder.io.sockets_join("all")
    opts = {"rooms": ["a"], "except": ["b"], "flags": {}}
    everybody: dict[str, object] = {"rooms": [], "except": [], "flags": {}}
    assert [(message.type, message.nsp, message.data()) for message, _ in recorder.sent] == [
        (MessageType.SOCKETS_JOIN, "/x", {"opts": opts, "rooms": ["r1", "2"]}),
        (MessageType.SOCKETS_LEAVE, "/x", {"opts": opts, "rooms": ["r1"]}),
        (MessageType.DISCONNECT_SOCKETS, "/x", {"opts": opts, "close": False}),
        (MessageType.DISCONNECT_SOCKETS, "/x", {"opts": opts, "close": True}),
        (MessageType.SOCKETS_JOIN, "/", {"opts": everybody, "rooms": ["all"]}),
    ]


def test_server_side_emit(recorder: Recorder) -> None:
    recorder.io.of("/x").server_side_emit("news", 1, {"a": b"x"})
    assert recorder.message.type == MessageType.SERVER_SIDE_EMIT
    assert recorder.message.nsp == "/x"
    assert recorder.message.packet() == ["news", 1, {"a": b"x"}]


@pytest.mark.parametrize("nsp", ["/x", "x"])
def test_the_slash_of_a_namespace_may_be_left_out(recorder: Recorder, nsp: str) -> None:
    recorder.io.of(nsp).emit("e")
    assert recorder.message.nsp == "/x"


@pytest.mark.parametrize("nsp", [None, 5, b"/x", ["/x"]])
def test_a_bad_namespace(recorder: Recorder, nsp: Any) -> None:
    with pytest.raises(OptionsError) as caught:
        recorder.io.of(nsp)
    assert (caught.value.option, caught.value.value) == ("nsp", repr(nsp))


@pytest.mark.parametrize("event", ["", None, 5, b"hello", ["hello"], *sorted(RESERVED_EVENTS)])
def test_a_bad_event(recorder: Recorder, event: Any) -> None:
    for emit in (recorder.io.emit, recorder.io.to("a").emit, recorder.io.server_side_emit):
        with pytest.raises(OptionsError) as caught:
            emit(event, 1)
        assert (caught.value.option, caught.value.value) == ("event", repr(event))
    assert recorder.sent == []


def test_reserved_events_are_those_of_socket_io() -> None:
    assert {"connect", "connect_error", "disconnect", "disconnecting"} <= RESERVED_EVENTS


@pytest.mark.parametrize("room", [None, "", True, 1.5, b"a", ["a", None], [["a"]], [""], {"a": 1}, object()])
def test_a_bad_room(recorder: Recorder, room: Any) -> None:
    some: BroadcastOperator[None] = recorder.io.to("a")
    for method in (
        recorder.io.to,
        recorder.io.in_,
        recorder.io.except_,
        some.to,
        some.in_,
        some.except_,
        some.sockets_join,
        some.sockets_leave,
        recorder.io.sockets_join,
    ):
        with pytest.raises(OptionsError, match="invalid room: a room is a non-empty str or an int"):
            method(room)
    assert recorder.sent == []


def test_what_cannot_travel_is_refused_by_the_call(recorder: Recorder) -> None:
    with pytest.raises(EncodeError) as caught:
        recorder.io.emit("e", 1, {"a": [object()]})
    assert caught.value.path == 'args[1]["a"][0]'
    with pytest.raises(EncodeError):
        recorder.io.server_side_emit("e", {1, 2})
    assert recorder.sent == []
