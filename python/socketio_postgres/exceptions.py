"""Every exception the package raises.

All derive from `SocketIOPostgresError`, carry their details as attributes (compare those, never the text) and can be
pickled, so that they cross process boundaries as they are.
"""

from __future__ import annotations

__all__ = [
    "AttachmentMissingError",
    "ClosedError",
    "ConnectionLostError",
    "DatabaseError",
    "DecodeError",
    "EncodeError",
    "ForkedProcessError",
    "OperationTimeoutError",
    "OptionsError",
    "PayloadTooLargeError",
    "ProtocolError",
    "RequestTimeoutError",
    "SocketIOPostgresError",
    "UnknownOptionError",
]


class SocketIOPostgresError(Exception):
    """Base of all exceptions of this package.

    Attributes:
        failed_count: Raised by a flush: how many messages failed; this exception is that of the first. Otherwise 1.
    """

    failed_count: int = 1

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
    """Something cannot be, or is not, a message of the cluster."""


class EncodeError(ProtocolError, TypeError, ValueError):
    """A value cannot travel to the cluster; nothing was sent.

    It is a `TypeError` and a `ValueError`, because `json.dumps` raises one or the other for the same mistakes.

    Attributes:
        path: Where in the arguments, for example `args[0]["user"]["born"]`.
        reason: Why, and what to send instead.
    """

    path: str = ""
    reason: str = ""


class DecodeError(ProtocolError, ValueError):
    """Bytes from the network are no message of the cluster; they were counted and skipped.

    Attributes:
        channel: Channel they came from; empty when decoded by hand.
        size_bytes: Their size.
        reason: What is wrong with them.
    """

    channel: str = ""
    size_bytes: int = 0
    reason: str = ""


class PayloadTooLargeError(ProtocolError, ValueError):
    """A message, a payload or a channel name exceeds its limit; nothing was sent.

    Attributes:
        size_bytes: Its size.
        limit_bytes: The limit.
    """

    size_bytes: int = 0
    limit_bytes: int = 0


class AttachmentMissingError(ProtocolError):
    """A notification announced an attachment whose row is gone; its message is lost.

    Attributes:
        attachment_id: Id of the row.
        channel: Channel it was announced on.
    """

    attachment_id: str = ""
    channel: str = ""


class DatabaseError(SocketIOPostgresError):
    """PostgreSQL refused.

    Attributes:
        sqlstate: Five-character SQLSTATE, for example `42501`; compare this.
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
    """No connection could be made, or it broke.

    Attributes:
        may_be_sent: True when a commit was in flight: it may or may not have happened.
    """

    may_be_sent: bool = False


class OperationTimeoutError(SocketIOPostgresError, TimeoutError):
    """A call did not finish in time."""


class RequestTimeoutError(SocketIOPostgresError, TimeoutError):
    """Not every server, or not every client, answered a request in time.

    Attributes:
        missing_servers: Server ids that owe an answer; an empty one stands for this server's own clients.
        responses: The answers that did come; of `fetch_sockets` the sockets as dicts with `id`, `handshake`, `rooms`
            and `data`, so that the exception can be pickled.
    """

    missing_servers: list[str] = []  # noqa: RUF012  (replaced by each instance)
    responses: list[object] = []  # noqa: RUF012
