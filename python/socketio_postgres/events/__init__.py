"""The event store: a durable, ordered log of events in PostgreSQL, with realtime subscriptions.

    from socketio_postgres.events import AsyncEventStore, Event

It knows nothing of Socket.IO and its clusters. All names are at the top of the package, too.
"""

from __future__ import annotations

from socketio_postgres.events._sync.durable_subscription import DurableSubscription
from socketio_postgres.events._sync.event_batch import EventBatch
from socketio_postgres.events._sync.event_store import EventStore
from socketio_postgres.events._sync.subscription import Subscription
from socketio_postgres.events.async_durable_subscription import AsyncDurableSubscription
from socketio_postgres.events.async_event_batch import AsyncEventBatch
from socketio_postgres.events.async_event_store import AsyncEventStore
from socketio_postgres.events.async_subscription import AsyncSubscription
from socketio_postgres.events.blocker import Blocker, Stall
from socketio_postgres.events.durable_state import DurableState, PartitionState
from socketio_postgres.events.event import (
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
from socketio_postgres.events.failure_policy import Park, ParkedEvent, Skip, Stop
from socketio_postgres.events.filter import Filter
from socketio_postgres.events.options import EventStoreOptions
from socketio_postgres.events.projection import Projection
from socketio_postgres.events.stats import EventStoreStats, TableLayout
from socketio_postgres.exceptions import (
    AggregateIdTooLongError,
    AggregateLockedError,
    AlreadyAcknowledgedError,
    CommitInDoubtError,
    DuplicateEventError,
    EventNotFoundError,
    EventStoreError,
    FilterError,
    IncompatibleVersionError,
    InvalidConnectionError,
    LocksNotVisibleError,
    SchemaMismatchError,
    StoreClosedError,
    StoreRewoundError,
    StoreStalledError,
    SubscriptionFencedError,
    SubscriptionRetiredError,
    UnknownOptionError,
    WrongExpectedVersionError,
)

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
    "AsyncEventBatch",
    "AsyncEventStore",
    "AsyncSubscription",
    "Blocker",
    "CaughtUp",
    "Checkpoint",
    "CommitInDoubtError",
    "CompetingSubscription",
    "DuplicateEventError",
    "DurableState",
    "DurableSubscription",
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
    "IncompatibleVersionError",
    "InvalidConnectionError",
    "LocksNotVisibleError",
    "NotificationPayload",
    "Page",
    "Park",
    "ParkedEvent",
    "PartitionState",
    "Projection",
    "Reconnected",
    "SchemaMismatchError",
    "Skip",
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

AsyncCompetingSubscription = AsyncDurableSubscription
"""The name that a subscription of several consumers had."""
CompetingSubscription = DurableSubscription
"""The same for threads."""
