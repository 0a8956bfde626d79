"""The codec against two other implementations, `json` and `msgpack`, over whatever hypothesis thinks of."""

from __future__ import annotations

import contextlib
import json
import math
from typing import Any

import msgpack
import pytest
from hypothesis import example, given, reject, settings
from hypothesis import strategies as st

from socketio_postgres import DecodeError, EncodeError, Message, MessageType
from socketio_postgres.codec import AttachmentHeader, decode, encode, encode_msgpack

settings.register_profile("codec", max_examples=150, deadline=None)
settings.load_profile("codec")

TEXT = st.text()  # hypothesis leaves out unpaired surrogates unless asked
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | FLOATS | TEXT
KEYS = TEXT.filter(lambda key: key != "__proto__")


def trees(leaves: st.SearchStrategy[Any], keys: st.SearchStrategy[Any] = KEYS) -> st.SearchStrategy[Any]:
    return st.recursive(
        leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4), max_leaves=12
    )


VALUES = trees(SCALARS)
WITH_BINARY = trees(SCALARS | st.binary())
PACKETS = st.lists(VALUES, max_size=4).map(lambda args: ["event", *args])
BINARY_PACKETS = st.tuples(st.lists(WITH_BINARY, max_size=4), st.binary()).map(
    lambda pair: ["event", *pair[0], pair[1]]
)
NAMES = st.lists(TEXT, max_size=4)


def broadcast(packet: list[Any], **fields: Any) -> Message:
    return Message(MessageType.BROADCAST, "/x", uid="a1", packet=packet, **fields)


def same(left: Any, right: Any) -> bool:
    """Equal, and of the same types: True is not 1, 1.0 is not 1, -0.0 is not 0.0."""
    return repr(left) == repr(right)


def payload(message: Message) -> Any:
    """User data, read by another implementation."""
    frame = encode(message)
    body = json.loads(frame) if isinstance(frame, str) else msgpack.unpackb(frame)
    return body["data"]["packet"]["data"]


@given(PACKETS)
@example(["event", 2**64 - 1, -(2**63), 5e-324, 1.7976931348623157e308, -0.0])
@example(["event", "\x00\u2028\U0001f600\uffff\x7f\x80"])
def test_json_is_what_the_json_module_reads(packet: list[Any]) -> None:
    assert same(payload(broadcast(packet)), packet)


@given(BINARY_PACKETS)
def test_messagepack_is_what_msgpack_reads(packet: list[Any]) -> None:
    assert same(payload(broadcast(packet)), packet)


@given(PACKETS)
def test_json_as_messagepack_is_what_msgpack_reads(packet: list[Any]) -> None:
    body = msgpack.unpackb(encode_msgpack(broadcast(packet)))
    assert same(body["data"]["packet"]["data"], packet)


@given(PACKETS)
def test_what_the_json_module_writes_is_read(packet: list[Any]) -> None:
    for options in ({}, {"ensure_ascii": False}, {"indent": 1}):
        frame = json.dumps({"type": 3, "uid": "a", "data": {"packet": {"type": 2, "data": packet}}}, **options)
        message = decode(frame, nsp="/x")
        assert isinstance(message, Message)
        assert same(message.packet(), packet)


@given(BINARY_PACKETS, st.booleans())
def test_what_msgpack_writes_is_read(packet: list[Any], single: bool) -> None:
    body = {"type": 3, "uid": "a", "data": {"packet": {"type": 2, "data": packet}}}
    try:
        frame = msgpack.packb(body, use_single_float=single)
    except OverflowError:  # a float too large for 32 bits
        reject()
    message = decode(frame, nsp="/x")
    assert isinstance(message, Message)
    assert same(message.packet(), msgpack.unpackb(msgpack.packb(packet, use_single_float=single)))


@given(PACKETS | BINARY_PACKETS, NAMES, NAMES, st.booleans(), st.none() | st.booleans(), st.none() | TEXT)
def test_what_is_encoded_is_decoded(
    packet: list[Any],
    to: list[str],
    except_: list[str],
    volatile: bool,
    compress: bool | None,
    request_id: str | None,
) -> None:
    message = broadcast(packet, to=to, except_=except_, volatile=volatile, compress=compress, request_id=request_id)
    assert decode(encode(message)) == message
    attached = decode(encode_msgpack(message))
    assert isinstance(attached, Message)
    assert (attached.uid, attached.nsp) == (message.uid, message.nsp)
    assert same(attached.data(), message.data())


@given(st.text(st.characters(), max_size=6), st.booleans())
def test_unpaired_surrogates_do_no_harm(text: str, binary: bool) -> None:
    packet = ["event", text, {"key": text}] + ([b""] if binary else [])
    read = broadcast(packet).packet()
    assert len(read) == len(packet)
    if not binary:
        assert read == json.loads(json.dumps(packet))


@given(st.text())
def test_any_text_is_a_message_or_an_error(text: str) -> None:
    survives(text)


@given(st.binary())
def test_any_bytes_are_a_message_or_an_error(data: bytes) -> None:
    survives(data)


JUNK = trees(SCALARS | st.binary(), keys=SCALARS | st.binary())
FIELDS = ["opts", "rooms", "except", "flags", "close", "requestId", "packet", "sockets", "clientCount", "args", "data"]


def envelopes(junk: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    inner = st.dictionaries(st.sampled_from(FIELDS), junk | st.dictionaries(st.sampled_from(FIELDS), junk))
    return st.fixed_dictionaries(
        {}, optional={"type": st.integers(0, 15) | junk, "uid": junk, "nsp": junk, "data": inner, "attachmentId": junk}
    )


@given(envelopes(JUNK))
def test_any_messagepack_is_a_message_or_an_error(body: dict[str, Any]) -> None:
    survives(msgpack.packb(body))


@given(st.lists(JUNK))
def test_any_arguments_in_messagepack_are_read_or_an_error(args: list[Any]) -> None:
    survives(msgpack.packb({"type": 3, "data": {"packet": {"type": 2, "data": ["event", *args]}}}))


@given(envelopes(VALUES))
def test_any_json_is_a_message_or_an_error(body: dict[str, Any]) -> None:
    survives(json.dumps(body))


@given(BINARY_PACKETS, st.data())
def test_a_damaged_attachment_is_a_message_or_an_error(packet: list[Any], data: st.DataObject) -> None:
    frame = bytearray(encode(broadcast(packet)))  # type: ignore[arg-type]
    at = data.draw(st.integers(0, len(frame) - 1))
    frame[at] = data.draw(st.integers(0, 255))
    survives(bytes(frame))
    survives(bytes(frame[:at]))


def survives(data: str | bytes) -> None:
    """Decode, and look at everything that came out."""
    with contextlib.suppress(DecodeError):
        message = decode(data)
        if isinstance(message, AttachmentHeader):
            return
        assert MessageType(message.type)
        for look in (message.packet, message.args, message.sockets, message.data):
            # UnicodeError and the like would be a crash; a key that does not become a string is the sender's fault
            with contextlib.suppress(DecodeError):
                assert has_string_keys(look())
        assert repr(message)
        assert hash(message) == hash(message)


def has_string_keys(value: Any) -> bool:
    """Whether all maps inside have keys that nobody can make collide."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and has_string_keys(item) for key, item in value.items())
    return not isinstance(value, list) or all(map(has_string_keys, value))


class Opaque:
    """Nothing that can be sent."""


BAD = st.sampled_from([Opaque(), {1, 2}, 1j, math.nan, math.inf, -math.inf, Opaque, len, {(1,): 2}, {b"a": 1}])


@st.composite
def spoiled(draw: st.DrawFn) -> tuple[list[Any], str]:
    """Arguments with one thing inside that cannot travel, and the path to it."""
    bad = draw(BAD)
    path = ""
    if isinstance(bad, dict):  # the path leads to the key, which shows as its type
        path = f'["{type(next(iter(bad))).__name__}"]'
    for _ in range(draw(st.integers(0, 4))):
        if draw(st.booleans()):
            before, after = draw(st.lists(VALUES, max_size=2)), draw(st.lists(WITH_BINARY, max_size=2))
            bad = [*before, bad, *after]
            path = f"[{len(before)}]{path}"
        else:
            key = draw(st.sampled_from(["a", "é", "two words"]))
            bad = {"first": draw(VALUES), key: bad, "last": draw(WITH_BINARY)}
            path = f'["{key}"]{path}'
    before = draw(st.lists(VALUES, max_size=2))
    return [*before, bad], f"args[{len(before)}]{path}"


@given(spoiled(), st.booleans())
def test_what_cannot_travel_is_pointed_at(case: tuple[list[Any], str], binary: bool) -> None:
    args, path = case
    packet = ["event", *args] + ([b"\x00"] if binary else [])
    with pytest.raises(EncodeError) as caught:
        broadcast(packet)
    assert caught.value.path == path
    assert caught.value.reason
    assert path in str(caught.value)
