"""Socket.IO over PostgreSQL: one cluster of Python, Node.js and Go servers, without another broker.

See `AsyncPostgresManager` (for `socketio.AsyncServer`), `Emitter` and `AsyncEmitter` (for everything else).
"""

from __future__ import annotations

from socketio_postgres import _core
from socketio_postgres.async_client import AsyncPostgresClient, Notification
from socketio_postgres.async_emitter import AsyncEmitter
from socketio_postgres.async_manager import AsyncPostgresManager
from socketio_postgres.async_server_operator import AsyncRemoteSocket
from socketio_postgres.client import PostgresClient
from socketio_postgres.emitter import Emitter
from socketio_postgres.exceptions import (
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
    RequestTimeoutError,
    SocketIOPostgresError,
    UnknownOptionError,
)
from socketio_postgres.manager import PostgresManager
from socketio_postgres.messages import Message, MessageType
from socketio_postgres.server_operator import RemoteSocket

__all__ = [
    "AsyncEmitter",
    "AsyncPostgresClient",
    "AsyncPostgresManager",
    "AsyncRemoteSocket",
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
    "PostgresManager",
    "ProtocolError",
    "RemoteSocket",
    "RequestTimeoutError",
    "SocketIOPostgresError",
    "UnknownOptionError",
]

__version__: str = _core.__version__
