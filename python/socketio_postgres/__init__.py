"""Socket.IO over PostgreSQL: one cluster of Python, Node.js and Go servers, without another broker.

See `AsyncPostgresManager` (for `socketio.AsyncServer`), `Emitter` and `AsyncEmitter` (for everything else).
"""

from __future__ import annotations

from socketio_postgres import _core
from socketio_postgres.async_client import AsyncPostgresClient, Notification
from socketio_postgres.async_competing_subscription import AsyncCompetingSubscription
from socketio_postgres.async_durable_subscription import AsyncDurableSubscription
from socketio_postgres.async_emitter import AsyncEmitter
from socketio_postgres.async_event_store import AsyncEventStore
from socketio_postgres.async_manager import AsyncPostgresManager
from socketio_postgres.async_server_operator import AsyncRemoteSocket
from socketio_postgres.async_subscription import AsyncSubscription
from socketio_postgres.blocker import Blocker, Stall
from socketio_postgres.client import PostgresClient
from socketio_postgres.competing_subscription import CompetingSubscription
from socketio_postgres.durable_state import DurableState, PartitionState
from socketio_postgres.durable_subscription import DurableSubscription
from socketio_postgres.emitter import Emitter
from socketio_postgres.event import (
    ANY,
    END,
    EXISTS,
    NO_STREAM,
    START,
    CaughtUp,
    Checkpoint,
    Event,
    FellBehind,
    NotificationPayload,
    Page,
    Reconnected,
    StoredEvent,
    StoreResult,
)
from socketio_postgres.event_store import EventStore
from socketio_postgres.event_store_options import EventStoreOptions
from socketio_postgres.exceptions import (
    AggregateIdTooLongError,
    AttachmentMissingError,
    BufferFullError,
    ClosedError,
    CommitInDoubtError,
    ConnectionLostError,
    DatabaseError,
    DecodeError,
    DuplicateEventError,
    EncodeError,
    EventNotFoundError,
    EventStoreError,
    FilterError,
    ForkedProcessError,
    IncompatibleVersionError,
    InvalidConnectionError,
    LocksNotVisibleError,
    NotAServerError,
    OperationTimeoutError,
    OptionsError,
    PayloadTooLargeError,
    ProtocolError,
    RequestTimeoutError,
    SchemaMismatchError,
    SelfTestError,
    SignatureError,
    SocketIOPostgresError,
    StoreClosedError,
    StoreRewoundError,
    StoreStalledError,
    SubscriptionFencedError,
    UnknownOptionError,
    WrongExpectedVersionError,
)
from socketio_postgres.failure_policy import Park, ParkedEvent, Skip, Stop
from socketio_postgres.filter import Filter
from socketio_postgres.gap import GapInfo
from socketio_postgres.manager import PostgresManager
from socketio_postgres.messages import Message, MessageType
from socketio_postgres.server_operator import RemoteSocket
from socketio_postgres.subscription import Subscription

__all__ = [
    "ANY",
    "END",
    "EXISTS",
    "NO_STREAM",
    "START",
    "AggregateIdTooLongError",
    "AsyncCompetingSubscription",
    "AsyncDurableSubscription",
    "AsyncEmitter",
    "AsyncEventStore",
    "AsyncPostgresClient",
    "AsyncPostgresManager",
    "AsyncRemoteSocket",
    "AsyncSubscription",
    "AttachmentMissingError",
    "Blocker",
    "BufferFullError",
    "CaughtUp",
    "Checkpoint",
    "ClosedError",
    "CommitInDoubtError",
    "CompetingSubscription",
    "ConnectionLostError",
    "DatabaseError",
    "DecodeError",
    "DuplicateEventError",
    "DurableState",
    "DurableSubscription",
    "Emitter",
    "EncodeError",
    "Event",
    "EventNotFoundError",
    "EventStore",
    "EventStoreError",
    "EventStoreOptions",
    "FellBehind",
    "Filter",
    "FilterError",
    "ForkedProcessError",
    "GapInfo",
    "IncompatibleVersionError",
    "InvalidConnectionError",
    "LocksNotVisibleError",
    "Message",
    "MessageType",
    "NotAServerError",
    "Notification",
    "NotificationPayload",
    "OperationTimeoutError",
    "OptionsError",
    "Page",
    "Park",
    "ParkedEvent",
    "PartitionState",
    "PayloadTooLargeError",
    "PostgresClient",
    "PostgresManager",
    "ProtocolError",
    "Reconnected",
    "RemoteSocket",
    "RequestTimeoutError",
    "SchemaMismatchError",
    "SelfTestError",
    "SignatureError",
    "Skip",
    "SocketIOPostgresError",
    "Stall",
    "Stop",
    "StoreClosedError",
    "StoreResult",
    "StoreRewoundError",
    "StoreStalledError",
    "StoredEvent",
    "Subscription",
    "SubscriptionFencedError",
    "UnknownOptionError",
    "WrongExpectedVersionError",
]

__version__: str = _core.__version__
