"""The cluster codec: messages to bytes and back, as this package itself does it.

message = Message(MessageType.BROADCAST, "/", uid="a1", to=["room1"], packet=["hello", 1])
encode(message)                      # '{"type":3,"uid":"a1","nsp":"/",...}'
decode(frame, nsp="/").packet()      # ['hello', 1]
"""

from __future__ import annotations

import dataclasses

from socketio_postgres import _core
from socketio_postgres._bus.messages import Message, MessageType
from socketio_postgres.exceptions import DecodeError

__all__ = ["AttachmentHeader", "Message", "MessageType", "decode", "encode", "encode_msgpack"]


@dataclasses.dataclass(frozen=True)
class AttachmentHeader:
    """A notification that announces a message stored in the attachment table.

    Attributes:
        uid: Server id of the sender; empty when the header does not tell.
        nsp: Namespace.
        attachment_id: Id of the row.
    """

    uid: str
    nsp: str
    attachment_id: int


def encode(message: Message) -> str | bytes:
    """The message as its sender would put it on the wire: JSON text, or MessagePack when binary is inside."""
    return _core.encode_msgpack(message) if message.is_binary else _core.encode_json(message)


def encode_msgpack(message: Message) -> bytes:
    """The message as the body of an attachment."""
    return _core.encode_msgpack(message)


def decode(data: str | bytes, *, nsp: str = "/") -> Message | AttachmentHeader:
    """Decode the payload of a notification (text) or the body of an attachment (bytes).

    Args:
        data: The received payload or body.
        nsp: Namespace of the channel it came from; stands in where the sender names none.

    Raises:
        DecodeError: It is no message of the cluster.
    """
    if isinstance(data, bytes):
        return _core.decode_msgpack(data, "", nsp)
    if not isinstance(data, str):
        raise DecodeError(f"expected str or bytes, got {type(data).__name__}", reason="neither str nor bytes")
    decoded = _core.decode_json(data, nsp)
    return AttachmentHeader(*decoded) if isinstance(decoded, tuple) else decoded
