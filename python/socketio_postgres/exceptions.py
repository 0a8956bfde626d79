"""Every exception the package raises.

All derive from `SocketIOPostgresError`, carry their details as attributes (compare those, never the text) and can be
pickled, so that they cross process boundaries as they are.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = [
    "AggregateIdTooLongError",
    "AggregateLockedError",
    "AlreadyAcknowledgedError",
    "AttachmentMissingError",
    "BufferFullError",
    "ClosedError",
    "CommitInDoubtError",
    "ConnectionLostError",
    "DatabaseError",
    "DecodeError",
    "DuplicateEventError",
    "EncodeError",
    "EventNotFoundError",
    "EventStoreError",
    "FilterError",
    "ForkedProcessError",
    "IncompatibleVersionError",
    "InvalidConnectionError",
    "LocksNotVisibleError",
    "NotAServerError",
    "OperationTimeoutError",
    "OptionsError",
    "PayloadTooLargeError",
    "ProtocolError",
    "RequestTimeoutError",
    "SchemaMismatchError",
    "SelfTestError",
    "SignatureError",
    "SocketIOPostgresError",
    "StoreClosedError",
    "StoreRewoundError",
    "StoreStalledError",
    "SubscriptionFencedError",
    "SubscriptionRetiredError",
    "UnknownOptionError",
    "WrongExpectedVersionError",
]


class SocketIOPostgresError(Exception):
    """Base of all exceptions of this package.

    Attributes:
        failed_count: Raised by a flush: how many messages failed; this exception is that of the first. Otherwise 1.
        in_doubt_count: Of these, those whose commit may or may not have happened, see `CommitInDoubtError`.
    """

    failed_count: int = 1
    in_doubt_count: int = 0

    def __init__(self, message: str = "", **details: object) -> None:
        super().__init__(message)
        self.__dict__.update(details)

    def __reduce__(self) -> tuple[object, ...]:
        return (_restore, (type(self), str(self), self.__dict__.copy()))


def _restore(kind: type[SocketIOPostgresError], message: str, details: dict[str, object]) -> SocketIOPostgresError:
    return kind(message, **details)


class OptionsError(SocketIOPostgresError, ValueError):
    """An option, an argument or a connection string is wrong; nothing was attempted.

    Attributes:
        option: Its name.
        value: The offending value as text; empty when it may hold a secret.
        reason: What is wrong and what is allowed.
    """

    option: str = ""
    value: str = ""
    reason: str = ""


class UnknownOptionError(OptionsError, TypeError):
    """There is no option of this name; a `TypeError`, as for every unexpected keyword argument."""


class ClosedError(SocketIOPostgresError):
    """The object was closed before or during the call."""


class ForkedProcessError(SocketIOPostgresError):
    """The object was started by the parent process; create it anew in the child."""


class ProtocolError(SocketIOPostgresError):
    """Base of errors about messages of the cluster."""


class EncodeError(ProtocolError, TypeError, ValueError):
    """A value cannot be encoded. Nothing was sent.

    It is a `TypeError` and a `ValueError`, because `json.dumps` raises one or the other for the same mistakes.

    Attributes:
        path: The place of the value in the arguments, for example `args[0]["user"]["born"]`.
        reason: What is wrong with the value, and what to send instead.
    """

    path: str = ""
    reason: str = ""


class DecodeError(ProtocolError, ValueError):
    """A payload from the network is not a message of the cluster. It was counted and skipped.

    Attributes:
        channel: The channel that it came from; empty if `codec.decode` was called.
        size_bytes: Its size.
        reason: What is wrong with it.
    """

    channel: str = ""
    size_bytes: int = 0
    reason: str = ""


class SignatureError(DecodeError):
    """A message was not signed with this object's `signing_key`. It was counted and skipped.

    Its sender has no key (Node.js and Go servers cannot sign) or another key, or the message is forged.
    """


class PayloadTooLargeError(ProtocolError, ValueError):
    """A message, a payload or a channel name is too large. Nothing was sent.

    Attributes:
        size_bytes: Its size.
        limit_bytes: The limit.
    """

    size_bytes: int = 0
    limit_bytes: int = 0


class AttachmentMissingError(ProtocolError):
    """A notification announced an attachment whose row is deleted. The message is lost.

    Attributes:
        attachment_id: Id of the row.
        channel: Channel of the notification.
    """

    attachment_id: str = ""
    channel: str = ""


class DatabaseError(SocketIOPostgresError):
    """PostgreSQL refused a connection or a statement.

    Attributes:
        sqlstate: Five-character SQLSTATE, for example `42501`. Compare this, not the text.
        severity: `ERROR`, `FATAL` or `PANIC`.
        detail: The server's `DETAIL`, or None.
        hint: The server's `HINT`, or None.
        constraint: Name of the violated constraint, or None.
    """

    sqlstate: str = ""
    severity: str = ""
    detail: str | None = None
    hint: str | None = None
    constraint: str | None = None


class ConnectionLostError(DatabaseError, ConnectionError):
    """No connection could be made, or a connection was lost.

    Attributes:
        may_be_sent: Whether a commit was in flight, so that its outcome is unknown.
    """

    may_be_sent: bool = False


class CommitInDoubtError(ConnectionLostError):
    """The connection was lost, or fell silent, during a commit, so that the outcome of the commit is unknown.

    Emit the event again only if it may arrive twice. If it was not committed, receivers of this package report a gap.

    Attributes:
        may_be_sent: True.
    """

    may_be_sent: bool = True


class BufferFullError(SocketIOPostgresError):
    """The buffer is full: `buffer_count` or `buffer_bytes` is reached. The message was not sent.

    Attributes:
        count: Number of messages in the buffer.
        bytes: Their size.
    """

    count: int = 0
    bytes: int = 0


class SelfTestError(SocketIOPostgresError):
    """The connections are open, but this server would not receive messages of other servers.

    Attributes:
        likely_cause: `transaction_pooling` (a pooler lends the connection to others after each transaction; LISTEN
            needs a direct connection or session mode), `other_database` (`dsn` and `listen_dsn` lead to different
            ones), `standby`, or `unknown`.
    """

    likely_cause: str = "unknown"


class OperationTimeoutError(SocketIOPostgresError, TimeoutError):
    """A call did not finish in time."""


class NotAServerError(SocketIOPostgresError, RuntimeError):
    """Only a server of the cluster can do this, because answers would not reach this manager. Nothing was sent.

    A `RuntimeError`, as python-socketio's own managers raise for a callback.
    """


class RequestTimeoutError(SocketIOPostgresError, TimeoutError):
    """Not every server, or not every client, answered a request in time.

    Attributes:
        missing_servers: Ids of the servers that did not answer. An empty id stands for clients of this server, and
            `advisory lock 123` for a server whose id is not known yet.
        responses: The answers that arrived. For `fetch_sockets` they are dicts with `id`, `handshake`, `rooms` and
            `data`, so that the exception can be pickled.
    """

    missing_servers: list[str] = []  # noqa: RUF012  (replaced by each instance)
    responses: list[object] = []  # noqa: RUF012


class EventStoreError(SocketIOPostgresError):
    """Base of the event store's own errors."""


class StoreClosedError(EventStoreError, ClosedError):
    """The event store was closed. `ErrStoreClosed` in Go."""


class InvalidConnectionError(EventStoreError):
    """LISTEN does not work over this connection; it needs a direct connection. `ErrInvalidConnection` in Go."""


class EventNotFoundError(EventStoreError, LookupError):
    """There is no such event. `ErrEventNotFound` in Go.

    Attributes:
        event_id: The requested id.
    """

    event_id: str = ""


class IncompatibleVersionError(EventStoreError, ValueError):
    """A value is not a version of an event. `ErrIncompatibleVersion` in Go.

    Attributes:
        value: The value.
    """

    value: object = None


class FilterError(EventStoreError, ValueError):
    """A filter does not exist, or does not accept this value. Nothing was attempted.

    Attributes:
        key: The filter's key.
    """

    key: str = ""


class WrongExpectedVersionError(EventStoreError):
    """An aggregate is not at the expected version. Nothing was stored.

    Attributes:
        aggregate_id: The aggregate.
        expected: The expected version; 0 means no events, -1 at least one event.
        actual: The version of its last event; 0 means that it has no events.
    """

    aggregate_id: str = ""
    expected: int = 0
    actual: int = 0


class DuplicateEventError(EventStoreError):
    """Another event has the same id. Nothing was stored.

    Attributes:
        event_id: The id.
        version: Version of the other event; 0 if it belongs to the same call.
    """

    event_id: str = ""
    version: int = 0


class AggregateIdTooLongError(EventStoreError, ValueError):
    """An aggregate id is too long for the channel name that go-sync-kit's trigger forms. Nothing was stored.

    Attributes:
        aggregate_id: The id.
        size_bytes: Its size.
        limit_bytes: The limit.
    """

    aggregate_id: str = ""
    size_bytes: int = 0
    limit_bytes: int = 0


class AggregateLockedError(EventStoreError):
    """Another transaction held an aggregate, or an event id, for longer than `lock_wait`; nothing was stored.

    Attributes:
        aggregate_id: The aggregate.
        pid: Server process of the session that held it at that moment; None for a prepared transaction, or when none
            was found.
        application_name: What that session calls itself, or None.
        state: What it does, for example `idle in transaction`, or None.
        seconds: For how long its transaction had been open, or None.
    """

    aggregate_id: str = ""
    pid: int | None = None
    application_name: str | None = None
    state: str | None = None
    seconds: float | None = None


class SchemaMismatchError(EventStoreError):
    """The table is missing, or cannot be used as an event table.

    Attributes:
        table_name: The table, quoted.
        reason: What is missing or different.
    """

    table_name: str = ""
    reason: str = ""


class LocksNotVisibleError(EventStoreError):
    """The server does not show the locks of writers, on which the order of events rests. Readers could miss events.

    PostgreSQL shows them; a compatible server may not. With `enable_serial_order` a table does not need them.

    Attributes:
        table_name: The table, quoted.
        sequence: The sequence of its versions, quoted.
    """

    table_name: str = ""
    sequence: str = ""


class StoreStalledError(EventStoreError):
    """A transaction that has stored events stays open, so that readers wait. Raised only with `on_stall="error"`.

    Attributes:
        position: The version up to which readers have read.
        seconds: How long they have been waiting.
        blockers: The open transactions, as returned by `AsyncEventStore.blockers`.
    """

    position: int = 0
    seconds: float = 0.0
    blockers: Sequence[object] = ()


class StoreRewoundError(EventStoreError):
    """The table went back in time: it ends before a position, or has another event there than the one delivered.

    That is after a restore, a truncated table, or a failover or crash that lost commits. Nothing of the new history was
    delivered. Decide where each reader continues.

    Attributes:
        position: The position.
        last_version: The last version given out now.
        event_id: Id of the event that was delivered at the position; None when it is not known.
        found_id: Id of the event that is there now; None when there is none.
    """

    position: int = 0
    last_version: int = 0
    event_id: str | None = None
    found_id: str | None = None


class AlreadyAcknowledgedError(EventStoreError):
    """The event was acknowledged before, by a transaction that is committed. Nothing was changed.

    Let it end your transaction, so that what the event does is not done again.

    Attributes:
        name: The subscription.
        version: The event's version.
        position: Version up to which events are acknowledged.
    """

    name: str = ""
    version: int = 0
    position: int = 0


class SubscriptionFencedError(EventStoreError):
    """The durable subscription, or this partition of it, has another owner, or was deleted. Nothing was changed.

    Attributes:
        name: The subscription.
    """

    name: str = ""


class SubscriptionRetiredError(SubscriptionFencedError):
    """A newer version of the projection has taken the place of this one, for good. Nothing was changed.

    Attributes:
        name: The subscription.
        replaced_by: The subscription of the version that is served now.
    """

    replaced_by: str = ""
