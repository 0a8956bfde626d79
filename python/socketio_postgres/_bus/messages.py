"""Message types and limits of the cluster protocol, the Python mirror of the core's `protocol.rs`."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Final, TypeAlias

from socketio_postgres import _core

__all__ = ["EMITTER_UID", "RESERVED_EVENTS", "Message", "MessageType"]

Message = _core.Message


class MessageType(enum.IntEnum):
    """What a message between servers says. Source: `MessageType` of socket.io-adapter 2.5."""

    INITIAL_HEARTBEAT = 1
    HEARTBEAT = 2
    BROADCAST = 3
    SOCKETS_JOIN = 4
    SOCKETS_LEAVE = 5
    DISCONNECT_SOCKETS = 6
    FETCH_SOCKETS = 7
    FETCH_SOCKETS_RESPONSE = 8
    SERVER_SIDE_EMIT = 9
    SERVER_SIDE_EMIT_RESPONSE = 10
    BROADCAST_CLIENT_COUNT = 11
    BROADCAST_ACK = 12
    ADAPTER_CLOSE = 13


EMITTER_UID: Final = "emitter"
"""Server id under which processes that are no server publish; peers do not count it."""

RESERVED_EVENTS: Final = frozenset(
    {"connect", "connect_error", "disconnect", "disconnecting", "newListener", "removeListener"}
)
"""Events that only Socket.IO itself may emit. Source: `RESERVED_EVENTS` of @socket.io/postgres-emitter."""

Rooms: TypeAlias = str | int | Sequence[str | int] | AbstractSet[str | int]
"""One room, or several in a list, tuple or set."""
