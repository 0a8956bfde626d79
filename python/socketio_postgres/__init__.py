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
    AggregateLockedError,
    AlreadyAcknowledgedError,
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
    SubscriptionRetiredError,
    UnknownOptionError,
    WrongExpectedVersionError,
)

if TYPE_CHECKING:
    from socketio_postgres.client import AsyncPostgresClient, GapInfo, Notification, PostgresClient
    from socketio_postgres.codec import Message, MessageType
    from socketio_postgres.emitter import AsyncEmitter, Emitter
    from socketio_postgres.events import (
        ANY,
        END,
        EXISTS,
        NO_STREAM,
        START,
        AsyncCompetingSubscription,
        AsyncDurableSubscription,
        AsyncEventBatch,
        AsyncEventStore,
        AsyncSubscription,
        Blocker,
        CaughtUp,
        Checkpoint,
        CompetingSubscription,
        DurableState,
        DurableSubscription,
        Event,
        EventBatch,
        EventStore,
        EventStoreOptions,
        EventStoreStats,
        FellBehind,
        Filter,
        NotificationPayload,
        Page,
        Park,
        ParkedEvent,
        PartitionState,
        Projection,
        Reconnected,
        Skip,
        Stall,
        Stop,
        StoredEvent,
        StoreResult,
        Subscription,
        TableLayout,
    )
    from socketio_postgres.manager import AsyncPostgresManager, AsyncRemoteSocket, PostgresManager, RemoteSocket
    from socketio_postgres.options import BusOptions, HeartbeatOptions
    from socketio_postgres.stats import BusStats, ManagerStats, Outage

__all__ = [
    "ANY",
    "END",
    "EXISTS",
    "NO_STREAM",
    "START",
    "AggregateIdTooLongError",
    "AggregateLockedError",
    "AlreadyAcknowledgedError",
    "AsyncCompetingSubscription",
    "AsyncDurableSubscription",
    "AsyncEmitter",
    "AsyncEventBatch",
    "AsyncEventStore",
    "AsyncPostgresClient",
    "AsyncPostgresManager",
    "AsyncRemoteSocket",
    "AsyncSubscription",
    "AttachmentMissingError",
    "Blocker",
    "BufferFullError",
    "BusOptions",
    "BusStats",
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
    "EventBatch",
    "EventNotFoundError",
    "EventStore",
    "EventStoreError",
    "EventStoreOptions",
    "EventStoreStats",
    "FellBehind",
    "Filter",
    "FilterError",
    "ForkedProcessError",
    "GapInfo",
    "HeartbeatOptions",
    "IncompatibleVersionError",
    "InvalidConnectionError",
    "LocksNotVisibleError",
    "ManagerStats",
    "Message",
    "MessageType",
    "NotAServerError",
    "Notification",
    "NotificationPayload",
    "OperationTimeoutError",
    "OptionsError",
    "Outage",
    "Page",
    "Park",
    "ParkedEvent",
    "PartitionState",
    "PayloadTooLargeError",
    "PostgresClient",
    "PostgresManager",
    "Projection",
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
    "SubscriptionRetiredError",
    "TableLayout",
    "UnknownOptionError",
    "WrongExpectedVersionError",
]

_NAMES: Final = {
    "client": [
        "AsyncPostgresClient",
        "GapInfo",
        "Notification",
        "PostgresClient",
    ],
    "codec": [
        "Message",
        "MessageType",
    ],
    "emitter": [
        "AsyncEmitter",
        "Emitter",
    ],
    "events": [
        "ANY",
        "AsyncCompetingSubscription",
        "AsyncDurableSubscription",
        "AsyncEventBatch",
        "AsyncEventStore",
        "AsyncSubscription",
        "Blocker",
        "CaughtUp",
        "Checkpoint",
        "CompetingSubscription",
        "DurableState",
        "DurableSubscription",
        "END",
        "EXISTS",
        "Event",
        "EventBatch",
        "EventStore",
        "EventStoreOptions",
        "EventStoreStats",
        "FellBehind",
        "Filter",
        "NO_STREAM",
        "NotificationPayload",
        "Page",
        "Park",
        "ParkedEvent",
        "PartitionState",
        "Projection",
        "Reconnected",
        "START",
        "Skip",
        "Stall",
        "Stop",
        "StoreResult",
        "StoredEvent",
        "Subscription",
        "TableLayout",
    ],
    "manager": [
        "AsyncPostgresManager",
        "AsyncRemoteSocket",
        "PostgresManager",
        "RemoteSocket",
    ],
    "options": [
        "BusOptions",
        "HeartbeatOptions",
    ],
    "stats": [
        "BusStats",
        "ManagerStats",
        "Outage",
    ],
}
_HOMES: Final = {name: module for module, names in _NAMES.items() for name in names}
"""The modules of the names that are imported when they are asked for; type checkers read the imports above."""

_MODULES: Final = {*_NAMES, "exceptions", "health"}
"""The public modules that need no extra; they are attributes without having been imported."""

__version__: str = _core.__version__

if not TYPE_CHECKING:  # to a type checker, a module with __getattr__ has every name, also a misspelt one

    def __getattr__(name: str) -> Any:
        """Import a public name, or module, when it is asked for."""
        if name in _HOMES:
            value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
            globals()[name] = value  # Python finds it there next time
            return value
        if name in _MODULES:
            return importlib.import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *_HOMES})
