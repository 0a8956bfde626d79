"""Settings: names, types, defaults and limits are declared here, once; a value is checked against its declaration."""

from __future__ import annotations

import collections.abc
import dataclasses
import difflib
import functools
import types
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Literal, TypeAlias, TypedDict, Union, get_args, get_origin, get_type_hints

from socketio_postgres._typing import Self
from socketio_postgres.exceptions import OptionsError, UnknownOptionError

__all__ = [
    "SECRET",
    "BusKeywords",
    "BusOptions",
    "ConnectOptions",
    "HeartbeatOptions",
    "ManagerKeywords",
    "OnFull",
    "Options",
    "Password",
    "bad_option",
    "between",
]

Password: TypeAlias = Callable[[], str | Awaitable[str]]
"""Returns the password for one connection. Called for every connection, in a separate thread."""

OnFull: TypeAlias = Literal["wait", "raise", "drop"]
"""What happens to a message for which the buffer has no room."""

MIB: Final = 1024 * 1024

KEY_BYTES: Final = 16
"""Minimum length of a signing key: with one recorded message, keys can be tried as fast as a processor hashes."""


SECRET: Final = {"is_secret": True}
"""Declares that values of the field never appear in texts."""


def between(least: float, most: float) -> dict[str, float]:
    """Declares the limits of a number."""
    return {"least": least, "most": most}


@dataclasses.dataclass(frozen=True)
class Options:
    """A dataclass of settings, each of which is of the type, and between the limits, that its field declares."""

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            OptionsError: A value is wrong.
        """
        kind: Any = type(self)
        hints = _hints(kind)
        for field in dataclasses.fields(self):
            value, hint, limits = getattr(self, field.name), hints[field.name], field.metadata
            is_number = isinstance(value, (int, float)) and "least" in limits
            if not _takes(hint, value) or (is_number and not limits["least"] <= value <= limits["most"]):
                # For a value that may be a secret, the message names only its type.
                shown = type(value).__name__ if "is_secret" in limits else value
                raise bad_option(field.name, shown, limits.get("reason") or f"must be {_expected(hint, limits)}")


@dataclasses.dataclass(frozen=True)
class ConnectOptions(Options):
    """How to connect. See the classes derived from this one."""

    dsn: str = dataclasses.field(default="", repr=False, metadata=SECRET)
    listen_dsn: str | None = dataclasses.field(default=None, repr=False, metadata=SECRET)
    password: Password | None = dataclasses.field(
        default=None,
        metadata=SECRET | {"reason": "must be a callable that returns the password; a fixed one belongs in the DSN"},
    )

    @classmethod
    def of(cls, dsn: str, options: Mapping[str, Any]) -> Self:
        """From the arguments of a constructor.

        Raises:
            UnknownOptionError: There is no such option.
            OptionsError: A value is wrong.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        for option in options:
            if option not in names:
                close = difflib.get_close_matches(option, names, n=1)
                hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(names)}"
                raise UnknownOptionError(f"unknown option {option!r}: {hint}", option=option, value="", reason=hint)
        return cls(dsn, **options)


@dataclasses.dataclass(frozen=True)
class BusOptions(ConnectOptions):
    """Options of managers, emitters and clients. Durations are in seconds.

    Attributes:
        dsn: Connection string or URL as in libpq, for publishing and attachments. It may lead through a transaction
            pooler. Empty: only the `PG*` environment variables apply.
        listen_dsn: Connection string for LISTEN, if `dsn` leads through a pooler. Default: `dsn`.
        password: Function that returns the password, for tokens that expire. A coroutine function runs on the event
            loop that uses the object, or on a separate one if there is none, or if it is blocked. Default: the
            password in the DSN.
        channel: Channel prefix, `channelPrefix` in Node.js. Default `socket.io`.
        table_name: Attachment table, `tableName` in Node.js: `table` or `schema.table`, folded to lower case unless
            quoted. Default `socket_io_attachments`.
        create_table: Create the attachment table if it is missing. Default True.
        payload_threshold: Size of the JSON in bytes from which a message becomes an attachment, `payloadThreshold` in
            Node.js. Default 8000, which is also the maximum, because of PostgreSQL's limit.
        max_payload: Maximum size of a message in bytes; a larger one raises `PayloadTooLargeError`. Default 16 MiB.
        buffer_count: Maximum number of messages that wait for their commit. Default 10 000.
        buffer_bytes: Their maximum size in bytes. Default 64 MiB.
        buffer_age: How long a message waits during an outage before it fails: while the connection is lost, or is
            refused after an earlier one was accepted. Default 30.
        on_full: What an emit does when the buffer is full. `wait`: its message takes its place in the order, and the
            call returns once there is room (cancelling the call does not withdraw the message). `raise`: raise
            `BufferFullError`. `drop`: drop the message, which counts as failed: the next flush raises, `error_handler`
            receives the first of several, and receivers see a gap. Default `wait`.
        receive_buffer_bytes: Maximum size in bytes of received messages that wait for Python. Further messages are
            dropped and reported as a gap. Reading from PostgreSQL never pauses, because that would block the
            notification queue of the whole server. Default 64 MiB.
        signing_key: Secret of 16 bytes or more, the same on all servers and emitters of the cluster. Messages that are
            not signed with it are dropped. Node.js and Go servers cannot sign. Default: messages are not signed.
    """

    channel: str = "socket.io"
    table_name: str = "socket_io_attachments"
    create_table: bool = True
    payload_threshold: int = dataclasses.field(default=8000, metadata=between(1, 8000))
    max_payload: int = dataclasses.field(default=16 * MIB, metadata=between(1, 1024 * MIB - 1))
    buffer_count: int = dataclasses.field(default=10_000, metadata=between(1, 10_000_000))
    buffer_bytes: int = dataclasses.field(default=64 * MIB, metadata=between(1, 64 * 1024 * MIB))
    buffer_age: float = dataclasses.field(default=30.0, metadata=between(0.0, 86_400.0))
    on_full: OnFull = "wait"
    receive_buffer_bytes: int = dataclasses.field(default=64 * MIB, metadata=between(1, 64 * 1024 * MIB))
    signing_key: str | bytes | None = dataclasses.field(default=None, repr=False, metadata=SECRET)

    def __post_init__(self) -> None:
        """Check every field."""
        super().__post_init__()
        if self.signing_key is not None:
            key = self.signing_key.encode() if isinstance(self.signing_key, str) else self.signing_key
            if len(key) < KEY_BYTES:
                reason = f"must have at least {KEY_BYTES} bytes; take secrets.token_hex()"
                raise bad_option("signing_key", f"{len(key)} bytes", reason)


class ManagerKeywords(TypedDict, total=False):
    """The keyword arguments that managers pass on to `BusOptions`."""

    listen_dsn: str | None
    password: Password | None
    table_name: str
    create_table: bool
    payload_threshold: int
    max_payload: int
    buffer_count: int
    buffer_bytes: int
    buffer_age: float
    on_full: OnFull
    receive_buffer_bytes: int
    signing_key: str | bytes | None


class BusKeywords(ManagerKeywords, total=False):
    """The keyword arguments that emitters and clients pass on to `BusOptions`."""

    channel: str


@dataclasses.dataclass(frozen=True)
class HeartbeatOptions(Options):
    """Intervals of a server in seconds, with the defaults of the Node.js adapter.

    Attributes:
        heartbeat_interval: Silence after which a server sends a heartbeat, `heartbeatInterval`. Default 5.
        heartbeat_timeout: Silence after which a server is no longer counted, `heartbeatTimeout`. Default 10.
        cleanup_interval: Age at which attachments are deleted, and the interval between deletions, `cleanupInterval`.
            Default 30.
    """

    heartbeat_interval: float = dataclasses.field(default=5.0, metadata=between(0.01, 86_400.0))
    heartbeat_timeout: float = dataclasses.field(default=10.0, metadata=between(0.02, 86_400.0))
    cleanup_interval: float = dataclasses.field(default=30.0, metadata=between(0.1, 86_400.0))

    def __post_init__(self) -> None:
        """Check every field."""
        super().__post_init__()
        if self.heartbeat_timeout <= self.heartbeat_interval:
            raise bad_option(
                "heartbeat_timeout",
                self.heartbeat_timeout,
                f"must exceed heartbeat_interval ({self.heartbeat_interval} s), or every server seems dead",
            )


@dataclasses.dataclass(frozen=True)
class BusSettings(BusOptions):
    """What the core receives: the options, and the identity of this process.

    Attributes:
        uid: Server id under which messages are published.
        is_raw: Hand over notifications as they are, instead of cluster messages.
        probe_interval: Interval in seconds at which the listening session is probed, and its time to answer.
    """

    uid: str = ""
    is_raw: bool = False
    probe_interval: float = 5.0

    def __post_init__(self) -> None:
        """The options have been checked already."""

    @classmethod
    def make(cls, options: BusOptions, *, uid: str, is_raw: bool, probe_interval: float) -> BusSettings:
        """Complete `options`."""
        fields = {field.name: getattr(options, field.name) for field in dataclasses.fields(BusOptions)}
        if isinstance(options.signing_key, str):
            fields["signing_key"] = options.signing_key.encode()
        return cls(**fields, uid=uid, is_raw=is_raw, probe_interval=probe_interval)


def bad_option(option: str, value: object, reason: str) -> OptionsError:
    """The exception for an option that cannot work; an empty value is not shown, because it may be a secret."""
    shown = repr(value) if value != "" else ""
    return OptionsError(f"invalid {option}: {reason} (got {shown})", option=option, value=shown, reason=reason)


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _kinds(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in {Union, types.UnionType} else (hint,)


def _takes(hint: Any, value: object) -> bool:
    """Whether a value is of a type."""
    for kind in _kinds(hint):
        origin = get_origin(kind)
        if origin is Literal:
            is_one = isinstance(value, str) and value in get_args(kind)
        elif origin is collections.abc.Callable:
            is_one = callable(value)
        elif kind in {int, float}:
            is_one = isinstance(value, (int, kind)) and not isinstance(value, bool)
        else:
            is_one = isinstance(value, kind)
        if is_one:
            return True
    return False


def _expected(hint: Any, limits: Mapping[str, Any]) -> str:
    """What a value has to be, for the error."""
    words = {str: "a string", bytes: "bytes", bool: "True or False"}
    numbers = {int: "an integer", float: "a number of seconds"}
    found = []
    for kind in _kinds(hint):
        if kind in numbers:
            found.append(f"{numbers[kind]} from {limits['least']} to {limits['most']}")
        elif get_origin(kind) is Literal:
            found.append(f"one of {', '.join(get_args(kind))}")
        elif get_origin(kind) is collections.abc.Callable:
            found.append("a callable")
        elif kind is not type(None):
            found.append(words.get(kind) or f"a {kind.__module__}.{kind.__qualname__}")
    return " or ".join(found)
