"""Events, expected versions, and positions to begin reading from."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, Final, Generic, TypeAlias, overload

from socketio_postgres._core import StoredEvent, new_event_id
from socketio_postgres._typing import Data_co
from socketio_postgres.exceptions import IncompatibleVersionError, OptionsError

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
    "check_name",
    "check_positive",
    "check_seconds",
    "check_version",
    "expected_number",
    "is_storable",
]

VERSION_MAX: Final = 2**63 - 1

SECONDS_MAX: Final = 86_400


@dataclasses.dataclass(frozen=True)
class Event(Generic[Data_co]):
    """An event to store.

    Attributes:
        event_type: Its type, such as `OrderPlaced`.
        aggregate_id: The aggregate, or stream, that it belongs to. On a table with go-sync-kit's trigger it has at most
            56 bytes.
        data: Any JSON value; None becomes SQL `NULL`.
        metadata: A dict, or None.
        id: Unique in the table. Storing an event with the same id and content again stores nothing and is not an error.
            Keep the event, and therefore its id, for another attempt. Default: a UUID of version 7, which begins with
            the time, so that PostgreSQL inserts it into an index faster than a random one.
    """

    event_type: str
    aggregate_id: str
    data: Data_co = None  # type: ignore[assignment]  # None was passed, or nothing
    metadata: Mapping[str, Any] | None = None
    id: str = dataclasses.field(default_factory=new_event_id)


class Expected(enum.Enum):
    """The expected state of an aggregate, other than a certain version."""

    ANY = "any"
    NO_STREAM = "no stream"
    EXISTS = "exists"


ANY: Final = Expected.ANY
"""The aggregate may be in any state."""
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
"""With the events that are stored from now on."""

AfterVersion: TypeAlias = StartPosition | int
"""`START`, `END`, or the version after which to begin."""


@dataclasses.dataclass(frozen=True)
class StoreResult:
    """Where an event was stored.

    Attributes:
        version: Its position among all events of the table.
        id: Its id.
        created_at: When its transaction began, by the server's clock.
        is_duplicate: Whether an earlier call had stored the event, so that this call stored nothing.
    """

    version: int
    id: str
    created_at: dt.datetime | None
    is_duplicate: bool


class Page(Sequence[StoredEvent]):
    """A sequence of events, and the position from which it is safe to continue.

    Attributes:
        events: The events, in the requested order.
        safe_since: The version to pass as `since` next time. No event up to this version can be missing. Beyond it, a
            transaction that is still open may add events, even between those of this page. It is never higher than the
            version of the last event.
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
    """A subscription has delivered all events that readers can see.

    It comes at once when there is nothing to read, and again after the subscription fell behind. What was committed
    before the subscription's first step comes before it, except for events that follow a gap which an open transaction
    may fill: they cannot be seen yet.

    Attributes:
        position: The version up to which it has.
    """

    position: int


@dataclasses.dataclass(frozen=True)
class FellBehind:
    """Events arrive faster than they are processed. The subscription reads pages until it has caught up.

    Attributes:
        position: Version up to which all events were delivered.
    """

    position: int


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Nothing matched up to here: a position to remember although there was no event.

    Attributes:
        position: Version up to which all events were delivered.
    """

    position: int


@dataclasses.dataclass(frozen=True)
class Reconnected:
    """The listening connection was lost and is back; nothing was missed.

    Attributes:
        position: Version up to which all events were delivered.
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


def check_positive(name: str, value: object) -> None:
    """Check an argument that counts something; None is accepted.

    Raises:
        OptionsError: It is not an integer of at least 1.
    """
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= VERSION_MAX):
        reason = "must be an integer of at least 1"
        raise OptionsError(f"invalid {name}: {reason} (got {value!r})", option=name, value=repr(value), reason=reason)


def check_seconds(name: str, value: object, low: float) -> None:
    """Check an argument in seconds, from `low` to a day.

    Raises:
        OptionsError: It is no such number.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= SECONDS_MAX:
        reason = f"must be a number of seconds from {low} to {SECONDS_MAX}"
        raise OptionsError(f"invalid {name}: {reason} (got {value!r})", option=name, value=repr(value), reason=reason)


def check_name(value: object) -> None:
    """Check the name of a durable subscription.

    Raises:
        OptionsError: It is empty, or no string that PostgreSQL can store.
    """
    if not isinstance(value, str) or not value or not is_storable(value):
        reason = "must be a string that is not empty, without NUL or half a surrogate pair"
        raise OptionsError(f"invalid name: {reason} (got {value!r})", option="name", value=repr(value), reason=reason)


def is_storable(text: str) -> bool:
    """Whether PostgreSQL can store a text: not with a NUL, and not with half a surrogate pair."""
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False


def expected_number(expected: ExpectedVersion) -> int | None:
    """As the core takes it: a version, 0 for no events, -1 for any number of them, None for no expectation."""
    if isinstance(expected, Expected):
        return {ANY: None, NO_STREAM: 0, EXISTS: -1}[expected]
    return check_version(expected, "expected")
