"""Encoding and decoding one cluster message, beside general JSON and MessagePack libraries.

The rivals do the same job as far as they can: the whole envelope from Python objects, and back to the packet.
`ours, envelope only` is what a server pays for a message that concerns none of its clients.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import msgpack
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from socketio_postgres import Message, MessageType
from socketio_postgres.codec import decode, encode, encode_msgpack

try:
    import orjson
except ImportError:
    orjson = None  # type: ignore[assignment]
try:
    import ormsgpack
except ImportError:
    ormsgpack = None  # type: ignore[assignment]

_ROW = {"id": 4711, "user": "ada", "text": "Grüße aus Köln \N{PARTY POPPER}", "tags": ["a", "b"], "score": 1.5}

PACKETS: dict[str, list[Any]] = {
    "small": ["chat", {"user": "ada", "text": "hello, world"}],
    "medium": ["rows", [_ROW] * 20],
    "large": ["rows", [_ROW] * 1000],
    "binary": ["file", {"name": "cat.png", "body": bytes(range(256)) * 256}],
}


def envelope(packet: list[Any]) -> dict[str, Any]:
    """The message as its sender would write it."""
    return {
        "type": 3,
        "uid": "0123456789abcdef",
        "nsp": "/",
        "source": "_sio_adapter",
        "data": {
            "opts": {"rooms": ["room1"], "except": [], "flags": {}},
            "packet": {"type": 2, "nsp": "/", "data": packet},
        },
    }


def message(packet: list[Any]) -> Message:
    return Message(MessageType.BROADCAST, "/", uid="0123456789abcdef", to=["room1"], packet=packet)


def _base64(value: object) -> str:
    assert isinstance(value, bytes)
    return base64.b64encode(value).decode()


def _dumps(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), default=_base64)


Codec = tuple[Callable[[list[Any]], Any], Callable[[Any], Any]]
"""From a packet to bytes or text, and back to the packet."""

CODECS: dict[str, Codec] = {
    "ours": (lambda packet: encode(message(packet)), lambda data: decode(data).packet()),  # type: ignore[union-attr]
    "json": (lambda packet: _dumps(envelope(packet)), lambda data: json.loads(data)["data"]["packet"]["data"]),
    "msgpack": (
        lambda packet: msgpack.packb(envelope(packet)),
        lambda data: msgpack.unpackb(data)["data"]["packet"]["data"],
    ),
    "ours, MessagePack": (
        lambda packet: encode_msgpack(message(packet)),
        lambda data: decode(data).packet(),  # type: ignore[union-attr]
    ),
}
if orjson is not None:
    CODECS["orjson"] = (
        lambda packet: orjson.dumps(envelope(packet), default=_base64),
        lambda data: orjson.loads(data)["data"]["packet"]["data"],
    )
if ormsgpack is not None:
    CODECS["ormsgpack"] = (
        lambda packet: ormsgpack.packb(envelope(packet)),
        lambda data: ormsgpack.unpackb(data)["data"]["packet"]["data"],
    )

sizes = pytest.mark.parametrize("size", PACKETS)


def is_base64(codec: str, size: str) -> bool:
    """JSON has no binary: there the rivals carry it as base64 and do not turn it back."""
    return size == "binary" and codec in {"json", "orjson"}


@sizes
@pytest.mark.parametrize("codec", CODECS)
def test_encode(benchmark: BenchmarkFixture, codec: str, size: str) -> None:
    packet = PACKETS[size]
    dump, load = CODECS[codec]
    if not is_base64(codec, size):
        assert load(dump(packet)) == packet
    benchmark.group = f"encode {size}"
    benchmark(dump, packet)


@sizes
@pytest.mark.parametrize("codec", [*CODECS, "ours, envelope only"])
def test_decode(benchmark: BenchmarkFixture, codec: str, size: str) -> None:
    packet = PACKETS[size]
    benchmark.group = f"decode {size}"
    if codec == "ours, envelope only":
        frame = encode(message(packet))
        read = decode(frame)
        assert isinstance(read, Message)
        assert read.to == ["room1"]
        benchmark(decode, frame)
        return
    dump, load = CODECS[codec]
    data = dump(packet)
    if not is_base64(codec, size):
        assert load(data) == packet
    benchmark(load, data)
