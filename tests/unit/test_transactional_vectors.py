"""Frames of messages that a transaction delivers, as other languages may write and read them."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import pytest

from socketio_postgres import Message, MessageType
from socketio_postgres._bus.options import BusOptions
from socketio_postgres._cluster.framer import Framer
from socketio_postgres.codec import decode

VECTORS: list[dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "vectors" / "transactional.json").read_text(encoding="ascii")
)["messages"]
FRAMES = {"what", "type", "nsp", "frame", "stored"}


def said(vector: dict[str, Any]) -> tuple[MessageType, str, dict[str, Any]]:
    """Type, namespace, and the arguments of a `Message` that says the same."""
    fields = {name: value for name, value in vector.items() if name not in FRAMES}
    return MessageType(vector["type"]), vector["nsp"], fields


def without_key(payload: str) -> str:
    """The payload with hyphens for the random characters."""
    text, count = re.subn(r'"k":"[\w-]{8}"', '"k":"--------"', payload)
    assert count == 1
    return text


def fields_of(message: Message) -> list[Any]:
    """What a message says."""
    return [message.type, message.nsp, message.to, message.except_, message.rooms, message.packet()]


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["what"])
def test_in_transaction_writes_the_vectors_and_we_read_them(vector: dict[str, Any]) -> None:
    kind, nsp, fields = said(vector)
    message = Message(kind, nsp, uid="emitter", **fields)
    small = Framer(BusOptions.of("", {})).frame(message)
    assert (small.channel, without_key(small.text), small.body) == (
        vector["frame"]["channel"],
        vector["frame"]["payload"],
        None,
    )
    large = Framer(BusOptions.of("", {"payload_threshold": 1})).frame(message)
    assert (large.channel, without_key(large.text) + '1"}', large.body) == tuple(vector["stored"].values())
    for data in (vector["frame"]["payload"], base64.b64decode(vector["stored"]["attachment"])):
        read = decode(data, nsp=nsp)
        assert isinstance(read, Message)
        assert fields_of(read) == fields_of(message)


def test_the_vectors_have_every_message() -> None:
    assert {MessageType(vector["type"]) for vector in VECTORS} == {
        MessageType.BROADCAST,
        MessageType.SOCKETS_JOIN,
        MessageType.SOCKETS_LEAVE,
        MessageType.DISCONNECT_SOCKETS,
        MessageType.SERVER_SIDE_EMIT,
    }
