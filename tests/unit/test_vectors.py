"""Frames recorded from the published Node.js packages: read as what they say, and written by us the same way.

`vectors/node.json` tells for each recording what the Node.js side did (`what`) and what was on the wire.
"""

from __future__ import annotations

import datetime as dt
import json
import math
from pathlib import Path
from typing import Any

import msgpack
import pytest

from socketio_postgres import Message, MessageType
from socketio_postgres.codec import AttachmentHeader, decode, encode, encode_msgpack

RECORDED: list[dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "vectors" / "node.json").read_text(encoding="utf-8")
)["recorded"]

T = MessageType
Said = tuple[MessageType, str, dict[str, Any]]
"""Type, namespace, and the arguments of a `Message` that says the same. Request ids are the recording's own."""


def event(*packet: Any, nsp: str = "/", **fields: Any) -> Said:
    return T.BROADCAST, nsp, {"packet": list(packet), **fields}


def heartbeat(nsp: str) -> Said:
    return T.HEARTBEAT, nsp, {}


ALL_BYTES = bytes(range(256))
EPOCH = "1970-01-01T00:00:00.000Z"

SAID: dict[str, list[Said]] = {
    "first server starts (namespaces / and /admin)": [
        (T.INITIAL_HEARTBEAT, "/", {}),
        (T.INITIAL_HEARTBEAT, "/admin", {}),
    ],
    "second server starts": [
        (T.INITIAL_HEARTBEAT, "/", {}),
        (T.INITIAL_HEARTBEAT, "/admin", {}),
        heartbeat("/"),
        heartbeat("/admin"),
    ],
    "io.emit('hello', 1, 'two', {three: [3, null, true, 4.5]})": [
        event("hello", 1, "two", {"three": [3, None, True, 4.5]})
    ],
    "io.emit('noargs')": [event("noargs")],
    "io.to('room1').to('room2').except('room3').emit('x', 1)": [
        event("x", 1, to=["room1", "room2"], except_=["room3"])
    ],
    "io.volatile.compress(true).emit('flags')": [event("flags", volatile=True, compress=True)],
    "io.local.emit('local') (nothing on the wire)": [],
    "io.of('/admin').emit('adm', 1)": [event("adm", 1, nsp="/admin")],
    "io.emit('unicode', 'é \\u0000 😀 \\u2028 \"quote\" \\\\ /')": [
        event("unicode", 'é \u0000 😀 \u2028 "quote" \\ /')
    ],
    "io.emit('types', undefined, null, new Date(0), 2**53, -1, 1e21, NaN)": [
        event("types", None, None, EPOCH, 2**53, -1, 1e21, None)
    ],
    "io.emit('bin', Buffer [1,2,3], {nested: [Buffer 0..255]})": [
        event("bin", b"\x01\x02\x03", {"nested": [ALL_BYTES]})
    ],
    "io.emit('bin-types', Buffer [1], undefined, null, new Date(0), 2**53, -1, -129, 65536, 1e21, 1.5, NaN, "
    "'é😀', Uint16Array[1,2])": [
        # JavaScript packs integers beyond 32 bits as floats
        event(
            *("bin-types", b"\x01", None, None, EPOCH, float(2**53), -1, -129, 65536, 1e21, 1.5, None, "é😀"),
            b"\x01\x00\x02\x00",
        )
    ],
    "io.emit('big', 'x' * 9000)": [event("big", "x" * 9000)],
    "io.timeout(1000).emit('q', 5, cb) -> client acks ('A1', 'A2')": [
        event("q", 5, request_id=...),
        (T.BROADCAST_CLIENT_COUNT, "/", {"client_count": 1, "request_id": ...}),
        (T.BROADCAST_ACK, "/", {"packet": "A1", "request_id": ...}),
    ],
    "io.timeout(1000).emit('qbin', cb) -> client acks (Buffer [9])": [
        event("qbin", request_id=...),
        (T.BROADCAST_CLIENT_COUNT, "/", {"client_count": 1, "request_id": ...}),
        (T.BROADCAST_ACK, "/", {"packet": b"\x09", "request_id": ...}),
    ],
    "io.fetchSockets()": [
        (T.FETCH_SOCKETS, "/", {"request_id": ...}),
        (T.FETCH_SOCKETS_RESPONSE, "/", {"request_id": ..., "sockets": ...}),
    ],
    "io.in('room1').fetchSockets()": [
        (T.FETCH_SOCKETS, "/", {"request_id": ..., "to": ["room1"]}),
        (T.FETCH_SOCKETS_RESPONSE, "/", {"request_id": ..., "sockets": ...}),
    ],
    "io.in('room1').socketsJoin(['r8','r9'])": [(T.SOCKETS_JOIN, "/", {"to": ["room1"], "rooms": ["r8", "r9"]})],
    "io.socketsLeave('r9')": [(T.SOCKETS_LEAVE, "/", {"rooms": ["r9"]})],
    "io.serverSideEmit('sse', 1, {a: 2})": [
        heartbeat("/"),
        (T.SERVER_SIDE_EMIT, "/", {"packet": ["sse", 1, {"a": 2}]}),
        heartbeat("/admin"),
        heartbeat("/admin"),
    ],
    "io.serverSideEmit('sse', 1, cb) -> other server answers 'resp'": [
        (T.SERVER_SIDE_EMIT, "/", {"packet": ["sse", 1], "request_id": ...}),
        (T.SERVER_SIDE_EMIT_RESPONSE, "/", {"packet": "resp", "request_id": ...}),
    ],
    "io.disconnectSockets()": [(T.DISCONNECT_SOCKETS, "/", {})],
    "io.in('room1').disconnectSockets(true)": [(T.DISCONNECT_SOCKETS, "/", {"to": ["room1"], "close": True})],
    "io.close() of the first server": [(T.ADAPTER_CLOSE, "/", {}), (T.ADAPTER_CLOSE, "/admin", {})],
    "emitter.emit('hello', 1)": [event("hello", 1)],
    "emitter.to('room1').except('r2').volatile.emit('hello', {a: 1})": [
        event("hello", {"a": 1}, to=["room1"], except_=["r2"], volatile=True)
    ],
    "emitter.emit('bin', Buffer [1,2])": [event("bin", b"\x01\x02")],
    "emitter.of('/admin').emit('x')": [event("x", nsp="/admin")],
    "emitter.in('room1').socketsJoin('r8')": [(T.SOCKETS_JOIN, "/", {"to": ["room1"], "rooms": ["r8"]})],
    "emitter.socketsLeave(['r8'])": [(T.SOCKETS_LEAVE, "/", {"rooms": ["r8"]})],
    "emitter.in('room1').disconnectSockets(true)": [(T.DISCONNECT_SOCKETS, "/", {"to": ["room1"], "close": True})],
    "emitter.serverSideEmit('sse', 1)": [(T.SERVER_SIDE_EMIT, "/", {"packet": ["sse", 1]})],
}


def test_every_recording_is_tested() -> None:
    assert [item["what"] for item in RECORDED] == list(SAID)
    assert {said[0] for what in SAID.values() for said in what} == set(T)


def plain(value: Any) -> Any:
    """What another MessagePack reader gave, as JSON would have it."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dt.datetime):
        return value.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value


def raw(frame: dict[str, Any]) -> dict[str, Any]:
    """The recorded message, read without this package."""
    if "attachment_msgpack_hex" in frame:
        body = msgpack.unpackb(bytes.fromhex(frame["attachment_msgpack_hex"]), timestamp=3)
        return dict(plain(body))
    return dict(json.loads(frame["payload"]))


def read(frame: dict[str, Any], nsp: str) -> Message:
    """The recorded message, read by this package."""
    decoded = decode(frame["payload"], nsp=nsp)
    if isinstance(decoded, AttachmentHeader):
        header = json.loads(frame["payload"])
        assert decoded == AttachmentHeader(header["uid"], nsp, int(header["attachmentId"]))
        decoded = decode(bytes.fromhex(frame["attachment_msgpack_hex"]), nsp=nsp)
    assert isinstance(decoded, Message)
    return decoded


CASES = [
    pytest.param(frame, said, id=f"{item['what'][:60]}-{number}")
    for item in RECORDED
    for number, (frame, said) in enumerate(zip(item["frames"], SAID.get(item["what"], []), strict=False))
]


@pytest.mark.parametrize("item", RECORDED, ids=lambda item: item["what"][:60])
def test_nothing_is_left_over(item: dict[str, Any]) -> None:
    assert len(item["frames"]) == len(SAID[item["what"]])


def like(said: Said, recorded: dict[str, Any]) -> Message:
    """The message that we would send for the same."""
    kind, nsp, fields = said
    own = {"request_id": "requestId", "sockets": "sockets"}
    fields = {key: recorded["data"][own[key]] if value is ... else value for key, value in fields.items()}
    return Message(kind, nsp, uid=recorded["uid"], **fields)


@pytest.mark.parametrize(("frame", "said"), CASES)
def test_a_frame_reads_as_what_it_says(frame: dict[str, Any], said: Said) -> None:
    kind, nsp, fields = said
    assert frame["channel"] == f"socket.io#{nsp}"
    recorded = raw(frame)
    message = read(frame, nsp)
    expected = like(said, recorded)
    assert (T(message.type), message.nsp, message.uid) == (kind, nsp, recorded["uid"])
    assert (message.to, message.except_) == (fields.get("to", []), fields.get("except_", []))
    assert (message.volatile, message.compress) == (fields.get("volatile", False), fields.get("compress"))
    assert (message.rooms, message.close) == (fields.get("rooms", []), fields.get("close", False))
    assert (message.request_id, message.client_count) == (expected.request_id, expected.client_count)
    assert repr(message.packet()) == repr(fields.get("packet"))  # repr: True is not 1, 1.0 is not 1
    assert message.has_packet == ("packet" in fields)
    assert message.sockets() == expected.sockets()
    assert message.is_binary == ("attachment_msgpack_hex" in frame)
    assert not message.is_from_go


@pytest.mark.parametrize(("frame", "said"), CASES)
def test_we_write_the_same(frame: dict[str, Any], said: Said) -> None:
    recorded = raw(frame)
    message = like(said, recorded)
    for written in (encode(message), encode_msgpack(message)):
        ours = json.loads(written) if isinstance(written, str) else msgpack.unpackb(written)
        assert (ours["type"], ours["uid"]) == (recorded["type"], recorded["uid"])
        assert (ours["nsp"], ours["source"]) == (said[1], "_sio_adapter")
        assert ours.get("data") == completed(recorded, said[1])


def completed(recorded: dict[str, Any], nsp: str) -> dict[str, Any] | None:
    """The recorded `data` with what only we add, and without what means something to its sender only."""
    data: dict[str, Any] | None = recorded.get("data")
    if data is None:
        return None
    data = dict(data)
    if recorded["type"] == T.BROADCAST:
        data["packet"] = data["packet"] | {"nsp": nsp}
    if "opts" in data:
        flags = {key: value for key, value in data["opts"].get("flags", {}).items() if key != "timeout"}
        data["opts"] = data["opts"] | {"flags": flags}
    return data


def test_answers_name_their_request() -> None:
    for item in RECORDED:
        ids = {raw(frame).get("data", {}).get("requestId") for frame in item["frames"]} - {None}
        assert len(ids) <= 1, item["what"]


def test_remote_sockets_are_described_in_full() -> None:
    for item in RECORDED:
        for frame, said in zip(item["frames"], SAID[item["what"]], strict=True):
            if said[0] == T.FETCH_SOCKETS_RESPONSE:
                [socket] = read(frame, "/").sockets() or []
                assert {"id", "handshake", "rooms", "data"} <= set(socket)
                assert socket["id"] in socket["rooms"]
                assert isinstance(socket["handshake"]["issued"], int)
