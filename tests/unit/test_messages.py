"""The Python mirror of the protocol says what the core says."""

from __future__ import annotations

import re

import pytest

from socketio_postgres import EncodeError, Message, MessageType, _core
from socketio_postgres._bus import messages


def test_message_types_are_those_of_the_core() -> None:
    def upper_snake(name: str) -> str:
        return re.sub(r"(?<!^)(?=[A-Z])", "_", name).upper()

    assert [(kind.name, kind.value) for kind in MessageType] == [
        (upper_snake(name), number) for name, number in _core.MESSAGE_TYPES
    ]
    assert len(MessageType) == 13


def test_constants_are_those_of_the_core() -> None:
    assert messages.EMITTER_UID == _core.EMITTER_UID == "emitter"
    assert _core.SOURCE == "_sio_adapter"
    assert _core.NOTIFY_LIMIT_BYTES == 7999
    assert _core.CHANNEL_LIMIT_BYTES == 63
    assert messages.Message is _core.Message


def test_the_extension_is_of_this_package() -> None:
    import socketio_postgres  # noqa: PLC0415

    assert socketio_postgres.__version__ == _core.__version__


def test_a_message_has_its_fields() -> None:
    message = Message(
        MessageType.BROADCAST,
        "/x",
        uid="a1",
        to=["r1"],
        except_=["r2"],
        volatile=True,
        compress=False,
        request_id="q",
        packet=["e", 1],
    )
    assert (message.type, message.nsp, message.uid) == (3, "/x", "a1")
    assert (message.to, message.except_) == (["r1"], ["r2"])
    assert (message.volatile, message.compress) == (True, False)
    assert (message.request_id, message.has_packet, message.is_binary) == ("q", True, False)
    assert message.packet() == ["e", 1]
    assert message.data() == {
        "opts": {"rooms": ["r1"], "except": ["r2"], "flags": {"volatile": True, "compress": False}},
        "requestId": "q",
        "packet": {"type": 2, "nsp": "/x", "data": ["e", 1]},
    }


def test_messages_are_values() -> None:
    def make(packet: list[object]) -> Message:
        return Message(MessageType.BROADCAST, "/", packet=packet)

    assert make(["e", b"\x00"]) == make(["e", b"\x00"])
    assert hash(make(["e", b"\x00"])) == hash(make(["e", b"\x00"]))
    assert make(["e"]) != make(["f"])
    anything: object = "e"
    assert make(["e"]) != anything
    with pytest.raises(AttributeError):
        make(["e"]).nsp = "/x"  # type: ignore[misc]


def test_a_message_shows_what_it_is_but_not_what_it_carries() -> None:
    text = repr(Message(MessageType.BROADCAST, "/x", uid="a1", packet=["secret"]))
    assert "/x" in text
    assert "a1" in text
    assert "secret" not in text


def test_what_a_type_needs_must_be_there() -> None:
    for number in (0, 14, 99):
        with pytest.raises(ValueError, match=f"1 to 13, not {number}"):
            Message(number, "/")
    with pytest.raises(TypeError, match="type 3 needs packet"):
        Message(MessageType.BROADCAST, "/")
    with pytest.raises(TypeError, match="type 7 needs request_id"):
        Message(MessageType.FETCH_SOCKETS, "/")
    with pytest.raises(TypeError, match="type 8 needs sockets"):
        Message(MessageType.FETCH_SOCKETS_RESPONSE, "/", request_id="q")
    with pytest.raises(TypeError, match="not both"):
        Message(MessageType.BROADCAST, "/", packet=["e"], packet_json='["e"]')


def test_an_answer_of_null_is_not_an_answer_without_a_value() -> None:
    null = Message(MessageType.BROADCAST_ACK, "/", request_id="q", packet_json="null")
    none = Message(MessageType.BROADCAST_ACK, "/", request_id="q")
    assert (null.has_packet, null.packet()) == (True, None)
    assert (none.has_packet, none.packet()) == (False, None)


@pytest.mark.parametrize("text", ["", "nope", "[1", "NaN", "[Infinity]", "[1] [2]", "[" * 200 + "]" * 200])
def test_text_of_a_custom_json_module_is_checked(text: str) -> None:
    with pytest.raises(ValueError, match=r"json module|nested"):
        Message(MessageType.BROADCAST, "/", packet_json=text)


def test_channel_names() -> None:
    assert _core.channel_name("socket.io", "/chat") == "socket.io#/chat"
    with pytest.raises(ValueError, match="63"):
        _core.channel_name("socket.io", "/" + "x" * 53)


def test_a_broadcast_is_given_another_packet() -> None:
    first = Message(MessageType.BROADCAST, "/a", to=["r"], except_=["x"], volatile=True, compress=False, packet=["e"])
    other = first.with_packet(["f", {"n": 1}, b"x"])
    assert other.packet() == ["f", {"n": 1}, b"x"]
    assert first.packet() == ["e"]
    assert other == Message(
        MessageType.BROADCAST,
        "/a",
        to=["r"],
        except_=["x"],
        volatile=True,
        compress=False,
        packet=["f", {"n": 1}, b"x"],
    )
    with pytest.raises(EncodeError, match=r"args\[0\]"):
        first.with_packet(["e", object()])
    with pytest.raises(TypeError, match="only a broadcast"):
        Message(MessageType.HEARTBEAT, "/").with_packet(["e"])
