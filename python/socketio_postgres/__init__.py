"""Socket.IO over PostgreSQL: one cluster of Python, Node.js and Go servers, without another broker.

See `AsyncPostgresManager` (for `socketio.AsyncServer`), `Emitter` and `AsyncEmitter` (for everything else).

Most names are imported when they are first asked for: only the managers need python-socketio, whose import takes longer
than that of all the rest.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

from socketio_postgres import _core
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

if TYPE_CHECKING:
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

_HOMES: Final = {
    "ANY": "event",
    "END": "event",
    "EXISTS": "event",
    "NO_STREAM": "event",
    "START": "event",
    "AsyncCompetingSubscription": "async_competing_subscription",
    "AsyncDurableSubscription": "async_durable_subscription",
    "AsyncEmitter": "async_emitter",
    "AsyncEventStore": "async_event_store",
    "AsyncPostgresClient": "async_client",
    "AsyncPostgresManager": "async_manager",
    "AsyncRemoteSocket": "async_server_operator",
    "AsyncSubscription": "async_subscription",
    "Blocker": "blocker",
    "CaughtUp": "event",
    "Checkpoint": "event",
    "CompetingSubscription": "competing_subscription",
    "DurableState": "durable_state",
    "DurableSubscription": "durable_subscription",
    "Emitter": "emitter",
    "Event": "event",
    "EventStore": "event_store",
    "EventStoreOptions": "event_store_options",
    "FellBehind": "event",
    "Filter": "filter",
    "GapInfo": "gap",
    "Message": "messages",
    "MessageType": "messages",
    "Notification": "async_client",
    "NotificationPayload": "event",
    "Page": "event",
    "Park": "failure_policy",
    "ParkedEvent": "failure_policy",
    "PartitionState": "durable_state",
    "PostgresClient": "client",
    "PostgresManager": "manager",
    "Reconnected": "event",
    "RemoteSocket": "server_operator",
    "Skip": "failure_policy",
    "Stall": "blocker",
    "Stop": "failure_policy",
    "StoreResult": "event",
    "StoredEvent": "event",
    "Subscription": "subscription",
}
"""Where the names come from that are imported when they are asked for; type checkers read the imports above."""

__version__: str = _core.__version__

if not TYPE_CHECKING:  # to a type checker, a module with __getattr__ has every name, also a misspelt one

    def __getattr__(name: str) -> Any:
        """Import a public name when it is asked for, or one of their modules."""
        if name in _HOMES:
            value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
            globals()[name] = value  # Python finds it there next time
            return value
        if name in _HOMES.values():
            return importlib.import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *_HOMES})
