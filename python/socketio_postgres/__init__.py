"""Socket.IO over PostgreSQL: one cluster of Python, Node.js and Go servers, without another broker.

See `AsyncPostgresManager` (for `socketio.AsyncServer`), `Emitter` and `AsyncEmitter` (for everything else).
"""

from __future__ import annotations

from . import _core
from .async_client import AsyncPostgresClient, Notification
from .async_emitter import AsyncEmitter
from .async_manager import AsyncPostgresManager
from .client import PostgresClient
from .emitter import Emitter
from .exceptions import (
    AttachmentMissingError,
    ClosedError,
    ConnectionLostError,
    DatabaseError,
    DecodeError,
    EncodeError,
    ForkedProcessError,
    OperationTimeoutError,
    OptionsError,
    PayloadTooLargeError,
    ProtocolError,
    SocketIOPostgresError,
)
from .messages import Message, MessageType

__all__ = [
    "AsyncEmitter",
    "AsyncPostgresClient",
    "AsyncPostgresManager",
    "AttachmentMissingError",
    "ClosedError",
    "ConnectionLostError",
    "DatabaseError",
    "DecodeError",
    "Emitter",
    "EncodeError",
    "ForkedProcessError",
    "Message",
    "MessageType",
    "Notification",
    "OperationTimeoutError",
    "OptionsError",
    "PayloadTooLargeError",
    "PostgresClient",
    "ProtocolError",
    "SocketIOPostgresError",
]

__version__: str = _core.__version__
