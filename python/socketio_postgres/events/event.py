"""What is stored, what is expected of an aggregate before, and where reading begins."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, Final, Generic, TypeAlias, overload

from socketio_postgres._core import StoredEvent, new_event_id
from socketio_postgres._typing import Data_co
from socketio_postgres.exceptions import IncompatibleVersionError

__all__ = [
    "ANY",
    "END",
    "EXISTS",
    "NO_STREAM",
    "START",
    "AfterVersion",
    "CaughtUp",
    "Checkpoint",
    "ControlItem",
    "Event",
    "EventHandler",
    "Expected",
    "ExpectedVersion",
    "FellBehind",
    "Handler",
    "NotificationPayload",
    "Page",
    "Reconnected",
    "StartPosition",
    "StoreResult",
    "StoredEvent",
    "check_version",
    "expected_number",
]

VERSION_MAX: Final = 2**63 - 1


@dataclasses.dataclass(frozen=True)
class Event(Generic[Data_co]):
    """An event to store.

    Attributes:
        event_type: Its type, such as `OrderPlaced`.
        aggregate_id: The aggregate, or stream, that it belongs to. At most 56 bytes where go-sync-kit's trigger is.
        data: Anything JSON can hold; None becomes SQL `NULL`.
        metadata: A dict, or None.
        id: Unique in the table. Storing the same id and content again is no error and stores nothing; so keep the
            event, and with it the id, for another attempt. Default: a UUID that begins with the time (version 7),
            which PostgreSQL's index takes faster than a random one.
    """

    event_type: str
    aggregate_id: str
    data: Data_co = None  # type: ignore[assignment]  # whoever gives none has said so
    metadata: Mapping[str, Any] | None = None
    id: str = dataclasses.field(default_factory=new_event_id)


class Expected(enum.Enum):
    """What a writer expects of an aggregate, other than a certain version."""

    ANY = "any"
    NO_STREAM = "no stream"
    EXISTS = "exists"


ANY: Final = Expected.ANY
"""Nothing is expected."""
NO_STREAM: Final = Expected.NO_STREAM
"""The aggregate has no events yet."""
EXISTS: Final = Expected.EXISTS
"""The aggregate has at least one event."""

ExpectedVersion: TypeAlias = Expected | int
"""`ANY`, `NO_STREAM`, `EXISTS`, or the version of the aggregate's last event."""


class StartPosition(enum.Enum):
    """Where reading begins, other than after a certain version."""

    START = "start"
    END = "end"


START: Final = StartPosition.START
"""With the first event."""
END: Final = StartPosition.END
"""With what is stored from now on."""

AfterVersion: TypeAlias = StartPosition | int
"""`START`, `END`, or the version after which to begin."""


@dataclasses.dataclass(frozen=True)
class StoreResult:
    """Where an event was stored.

    Attributes:
        version: Its position among all events of the table.
        id: Its id.
        created_at: When, by the server's clock at the start of the transaction.
        is_duplicate: An earlier call had stored it, and this one has stored nothing.
    """

    version: int
    id: str
    created_at: dt.datetime | None
    is_duplicate: bool


class Page(Sequence[StoredEvent]):
    """Events, as a sequence, and from where it is safe to go on.

    Attributes:
        events: In the order asked for.
        safe_since: The version to pass as `since` next time. Up to it nothing can be missing; beyond it a transaction
            that is still open may add events, even between those seen here. Never further than the last event.
    """

    def __init__(self, events: list[StoredEvent], safe_since: int) -> None:
        self.events = events
        self.safe_since = safe_since

    @overload
    def __getitem__(self, index: int) -> StoredEvent: ...
    @overload
    def __getitem__(self, index: slice) -> list[StoredEvent]: ...
    def __getitem__(self, index: int | slice) -> StoredEvent | list[StoredEvent]:
        return self.events[index]

    def __iter__(self) -> Iterator[StoredEvent]:
        return iter(self.events)

    def __len__(self) -> int:
        return len(self.events)

    def __repr__(self) -> str:
        return f"Page({len(self.events)} events, safe_since={self.safe_since})"


@dataclasses.dataclass(frozen=True)
class CaughtUp:
    """A subscription has given out everything there is.

    Attributes:
        position: Version up to which that holds.
    """

    position: int


@dataclasses.dataclass(frozen=True)
class FellBehind:
    """Events come faster than they are taken; the subscription reads pages until it has caught up.

    Attributes:
        position: Version up to which all was given out.
    """

    position: int


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Nothing matched up to here: a position to remember although there was no event.

    Attributes:
        position: Version up to which all was given out.
    """

    position: int


@dataclasses.dataclass(frozen=True)
class Reconnected:
    """The listening connection was lost and is back; nothing was missed.

    Attributes:
        position: Version up to which all was given out.
    """

    position: int


ControlItem: TypeAlias = CaughtUp | FellBehind | Checkpoint | Reconnected


@dataclasses.dataclass(frozen=True)
class NotificationPayload:
    """What a callback receives: the six fields of go-sync-kit's notifications.

    Attributes:
        version: Position among all events.
        id: The event's id.
        aggregate_id: Its aggregate.
        event_type: Its type.
        stream_name: `stream_` and the aggregate id.
        created_at: When it was stored.
    """

    version: int
    id: str
    aggregate_id: str
    event_type: str
    stream_name: str
    created_at: dt.datetime | None

    @classmethod
    def of(cls, event: StoredEvent) -> NotificationPayload:
        """Of a stored event."""
        return cls(event.version, event.id, event.aggregate_id, event.event_type, event.stream_name, event.created_at)


Handler: TypeAlias = Callable[[NotificationPayload], Awaitable[object] | object]
"""What `subscribe_to_all` and its like call."""

EventHandler: TypeAlias = Callable[[StoredEvent], Awaitable[object] | object]
"""What `run` of a durable subscription calls."""


def check_version(value: object, name: str = "version") -> int:
    """The value, if it is a version.

    Raises:
        IncompatibleVersionError: It is not an integer from 0 to 2**63 - 1.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= VERSION_MAX:
        raise IncompatibleVersionError(f"{name} must be an integer from 0 to 2**63 - 1, not {value!r}", value=value)
    return value


def expected_number(expected: ExpectedVersion) -> int | None:
    """As the core takes it: a version, 0 for no events, -1 for any number of them, None for no expectation."""
    if isinstance(expected, Expected):
        return {ANY: None, NO_STREAM: 0, EXISTS: -1}[expected]
    return check_version(expected, "expected")
