"""What is sent in a user's transaction is what every server reads, for arbitrary values and all sizes."""

from __future__ import annotations

import base64
import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from socketio_postgres import BusOptions, Message, _core
from socketio_postgres._cluster.framer import Framer

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
LENGTHS = [0, 15, 16, 31, 32, 255, 256, 65_535, 65_536]
"""Where MessagePack changes how it writes a length."""

LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT
    | st.binary(max_size=20)
    | st.builds(lambda n, letter: letter * n, st.sampled_from(LENGTHS), st.sampled_from('xé日😀\\"\n\0'))
    | st.builds(bytes, st.sampled_from(LENGTHS))
    | st.builds(lambda n: [n] * n, st.sampled_from(LENGTHS))
    | st.builds(lambda n: {str(i): i for i in range(n)}, st.sampled_from(LENGTHS[:-2]))
)
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3))


def unframed(framer: Framer, message: Message, threshold: int) -> Message:
    """Through the notification, and the table if need be."""
    channel, text, body = framer.frame(message)
    assert channel == f"socket.io#{message.nsp}"
    assert text.isascii()
    if body is None:
        assert len(text) < threshold
        found = _core.decode_json(text, message.nsp)
        assert isinstance(found, Message)
        header = json.loads(text)
    else:
        text += '9223372036854775807"}'
        assert len(text) <= _core.NOTIFY_LIMIT_BYTES
        found = _core.decode_json(text, message.nsp)
        assert isinstance(found, tuple)
        uid, nsp, _ = found
        header = json.loads(text)
        found = _core.decode_msgpack(base64.b64decode(body, validate=True), uid, nsp)
    assert (header["type"], header["uid"], header["nsp"]) == (message.type, "emitter", message.nsp)
    assert len(header["k"]) == 8
    assert not {"n", "p"} & set(header)
    return found


@settings(deadline=None)
@given(st.lists(VALUES, max_size=3), st.lists(TEXT.filter(bool), max_size=3), st.integers(1, 8000))
def test_events_are_read_as_they_were_written(args: list[Any], rooms: list[str], threshold: int) -> None:
    message = Message(3, "/é", to=rooms, except_=rooms[:1], volatile=True, packet=["e", *args])
    framer = Framer(BusOptions(payload_threshold=threshold, max_payload=100_000_000))
    found = unframed(framer, message, threshold)
    assert found.packet() == message.packet()
    assert (found.type, found.nsp, found.to, found.except_, found.volatile) == (3, "/é", rooms, rooms[:1], True)


@settings(deadline=None)
@given(st.integers(7700, 8100), st.sampled_from('xé日😀"\n'))
def test_around_the_limit_of_a_notification(length: int, letter: str) -> None:
    """Whatever is written longer in ASCII."""
    width = len(json.dumps(letter)) - 2
    message = Message(3, "/", packet=["e", letter * (length // width) + "." * (length % width)])
    assert unframed(Framer(BusOptions()), message, 8000).packet() == message.packet()


@settings(deadline=None)
@given(st.sampled_from([4, 5, 6, 9]), st.lists(TEXT.filter(bool), max_size=3), VALUES)
def test_other_messages(kind: int, rooms: list[str], value: Any) -> None:
    fields = {"packet": ["e", value]} if kind == 9 else {"to": rooms, "rooms": rooms[:1]}
    message = Message(kind, "/", **fields)
    found = unframed(Framer(BusOptions()), message, 8000)
    assert (found.to, found.rooms, found.close) == (message.to, message.rooms, message.close)
    assert found.packet() == message.packet()
