"""The public codec."""

from __future__ import annotations

import datetime as dt
import json
import math

import msgpack
import pytest

from socketio_postgres import DecodeError, EncodeError, Message, MessageType
from socketio_postgres.codec import AttachmentHeader, decode, encode, encode_msgpack


def broadcast(*packet: object) -> Message:
    return Message(MessageType.BROADCAST, "/x", uid="a1", to=["room1"], packet=list(packet))


def test_text_where_text_can_carry_it() -> None:
    frame = encode(broadcast("hello", 1, {"é": [None, True]}))
    assert frame == (
        '{"type":3,"uid":"a1","nsp":"/x","source":"_sio_adapter","data":{'
        '"opts":{"rooms":["room1"],"except":[],"flags":{}},'
        '"packet":{"type":2,"nsp":"/x","data":["hello",1,{"é":[null,true]}]}}}'
    )
    assert decode(frame) == broadcast("hello", 1, {"é": [None, True]})


def test_bytes_where_binary_is_inside() -> None:
    message = broadcast("hello", b"\x00\xff", {"file": bytearray(b"\x01")})
    frame = encode(message)
    assert isinstance(frame, bytes)
    assert msgpack.unpackb(frame) == {
        "type": 3,
        "uid": "a1",
        "nsp": "/x",
        "source": "_sio_adapter",
        "data": {
            "opts": {"rooms": ["room1"], "except": [], "flags": {}},
            "packet": {"type": 2, "nsp": "/x", "data": ["hello", b"\x00\xff", {"file": b"\x01"}]},
        },
    }
    assert decode(frame) == message


def test_any_message_can_be_an_attachment() -> None:
    message = broadcast("hello", 1)
    decoded = decode(encode_msgpack(message))
    assert isinstance(decoded, Message)
    assert (decoded.nsp, decoded.uid, decoded.to) == ("/x", "a1", ["room1"])
    assert decoded.packet() == message.packet()
    assert decoded.data() == message.data()
    assert decoded.is_binary


def test_a_header_announces_an_attachment() -> None:
    assert decode('{"uid":"a1","type":3,"attachmentId":"12"}', nsp="/x") == AttachmentHeader("a1", "/x", 12)
    assert decode('{"attachmentId":12,"nsp":"/y"}', nsp="/x") == AttachmentHeader("", "/y", 12)


def test_the_channel_tells_the_namespace_when_the_sender_does_not() -> None:
    for frame in ('{"type":2,"uid":"a"}', msgpack.packb({"type": 2, "uid": "a"})):
        decoded = decode(frame, nsp="/x")
        assert isinstance(decoded, Message)
        assert decoded.nsp == "/x"


@pytest.mark.parametrize("data", ["", "{", "null", "[]", '{"type":99}', b"", b"\xc1", b"\x81\xa4type", b"\xff" * 9])
def test_what_is_no_message(data: str | bytes) -> None:
    with pytest.raises(DecodeError) as caught:
        decode(data)
    assert caught.value.size_bytes == len(data)
    assert caught.value.reason


@pytest.mark.parametrize("data", [None, 5, ["x"], bytearray(b"\x80")])
def test_what_is_no_data(data: object) -> None:
    with pytest.raises(DecodeError, match=type(data).__name__):
        decode(data)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "path", "reason"),
    [
        (object(), "args[0]", "object"),
        ({"user": {"born": dt.date(2000, 1, 1)}}, 'args[0]["user"]["born"]', "date"),
        ([1, [2, {3}]], "args[0][1][1]", "set"),
        (math.nan, "args[0]", "NaN"),
        ({"a": [math.inf]}, 'args[0]["a"][0]', "inf"),
        ({"a": -math.inf}, 'args[0]["a"]', "inf"),
        ({(1, 2): 3}, 'args[0]["tuple"]', "keys"),
        ({"a": 1, b"b": 2}, 'args[0]["bytes"]', "keys"),
        ([b"binary", {"x": object()}], 'args[0][1]["x"]', "object"),
        ([b"binary", math.nan], "args[0][1]", "NaN"),
        ([b"binary", {"__proto__": 1}], 'args[0][1]["__proto__"]', "__proto__"),
        ([b"binary", 10**400], "args[0][1]", "too large"),
    ],
)
def test_what_cannot_travel_is_pointed_at(value: object, path: str, reason: str) -> None:
    with pytest.raises(EncodeError) as caught:
        broadcast("hello", value)
    assert caught.value.path == path
    assert reason.lower() in caught.value.reason.lower()


def test_nesting_is_limited_at_both_ends() -> None:
    def nested(depth: int, leaf: object) -> object:
        for _ in range(depth):
            leaf = [leaf]
        return leaf

    for leaf in ("x", b"x"):
        assert broadcast("e", nested(99, leaf)).packet() == ["e", nested(99, leaf)]
        assert decode(encode(broadcast("e", nested(99, leaf)))) == broadcast("e", nested(99, leaf))
        with pytest.raises(EncodeError, match="deeper than 100"):
            broadcast("e", nested(100, leaf))
    circle: list[object] = [b""]
    circle.append({"again": circle})
    with pytest.raises(EncodeError, match="contains itself"):
        broadcast("e", circle)
    with pytest.raises(DecodeError, match="nest"):
        decode(json.dumps({"type": 3, "data": {"packet": {"data": nested(101, 1)}}}))
    with pytest.raises(DecodeError, match="nest"):
        decode(msgpack.packb({"type": 3, "data": {"packet": {"data": nested(101, 1)}}}))


@pytest.mark.parametrize(
    ("value", "in_json", "in_msgpack"),
    [
        (2**64 - 1, 2**64 - 1, 2**64 - 1),
        (-(2**63), -(2**63), -(2**63)),
        (2**70, 2**70, float(2**70)),  # JSON has room for any integer, MessagePack for 64 bits
        (-0.0, -0.0, -0.0),
        (5e-324, 5e-324, 5e-324),
        (1.7976931348623157e308, 1.7976931348623157e308, 1.7976931348623157e308),
        (0.1 + 0.2, 0.1 + 0.2, 0.1 + 0.2),
        ("\ud800", "\ud800", "\ufffd\ufffd\ufffd"),  # half a surrogate pair: three bytes that are no UTF-8
        ("\x00 \u2028 😀 \uffff", "\x00 \u2028 😀 \uffff", "\x00 \u2028 😀 \uffff"),
        ({1: "a", 2.5: "b", None: "d"}, {"1": "a", "2.5": "b", "null": "d"}, None),
        ({"": {}}, {"": {}}, {"": {}}),
    ],
)
def test_values_at_the_edges(value: object, in_json: object, in_msgpack: object) -> None:
    assert repr(broadcast("e", value).packet()) == repr(["e", in_json])
    if in_msgpack is not None:
        assert repr(broadcast("e", value, b"").packet()) == repr(["e", in_msgpack, b""])


def test_keys_are_written_as_json_writes_them() -> None:
    for key in (None, True, False, 0, -7, 2**70, 1.5, 1e300, "é"):
        assert broadcast("e", {key: 0}).packet()[1] == json.loads(json.dumps({key: 0}))
        assert broadcast("e", {key: b""}).packet()[1] == {next(iter(json.loads(json.dumps({key: 0})))): b""}


def test_subclasses_are_what_they_extend() -> None:
    import collections  # noqa: PLC0415
    import enum  # noqa: PLC0415

    class Colour(str, enum.Enum):
        RED = "red"

    class Level(enum.IntEnum):
        HIGH = 3

    Point = collections.namedtuple("Point", "x y")  # noqa: PYI024 - the plain one is what is tested
    value = [Colour.RED, Level.HIGH, Point(1, 2), collections.OrderedDict(a=1), collections.defaultdict(int, b=2)]
    assert broadcast("e", value).packet() == ["e", ["red", 3, [1, 2], {"a": 1}, {"b": 2}]]
    assert broadcast("e", value, b"").packet() == ["e", ["red", 3, [1, 2], {"a": 1}, {"b": 2}], b""]


def test_decoded_json_may_use_another_reader() -> None:
    message = broadcast("e", 1.5)
    assert message.packet(lambda text: ("read", text)) == ("read", '["e",1.5]')


def broadcast_of(argument: bytes) -> Message:
    """A broadcast of one argument, given as MessagePack."""
    message = decode(b"\x82\xa4type\x03\xa4data\x81\xa6packet\x81\xa4data\x92\xa1e" + argument)
    assert isinstance(message, Message)
    return message


@pytest.mark.parametrize(
    ("key", "text"), [("05", "5"), ("e0", "-32"), ("cb3ff8000000000000", "1.5"), ("c3", "true"), ("c0", "null")]
)
def test_keys_are_read_as_javascript_reads_them(key: str, text: str) -> None:
    """Numbers as keys would let a sender make a dict quadratic: their hashes are known."""
    assert broadcast_of(bytes.fromhex(f"81 {key} 06")).packet() == ["e", {text: 6}]


@pytest.mark.parametrize("key", ["c40100", "90", "80"])
def test_other_keys_are_refused(key: str) -> None:
    with pytest.raises(DecodeError, match="key of type"):
        broadcast_of(bytes.fromhex(f"81 {key} 06")).packet()


def test_an_integer_too_long_for_python_is_a_decode_error() -> None:
    message = decode('{"type":3,"data":{"packet":{"data":["e",' + "1" * 5000 + "]}}}")
    assert isinstance(message, Message)
    with pytest.raises(DecodeError, match="digits"):
        message.packet()
