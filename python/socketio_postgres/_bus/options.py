"""Settings: their defaults and checks live here and nowhere else."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal, TypeAlias, TypedDict, get_args

from socketio_postgres.exceptions import OptionsError, UnknownOptionError

__all__ = ["BusKeywords", "BusOptions", "HeartbeatOptions", "ManagerKeywords", "OnFull", "Password"]

Password: TypeAlias = Callable[[], str | Awaitable[str]]
"""Returns the password for one connection; asked at every connect, on a thread of its own."""

OnFull: TypeAlias = Literal["wait", "raise", "drop"]
"""What happens to a message for which the buffer has no room."""

MIB = 1024 * 1024

KEY_BYTES = 16
"""Shortest signing key: whoever records one signed message can try keys as fast as a processor hashes."""


@dataclasses.dataclass(frozen=True)
class BusOptions:
    """What any participant of the cluster needs to know. Durations are seconds.

    Attributes:
        dsn: Connection string or URL as libpq reads it, for publishing and attachments; may lead through a
            transaction pooler. Empty: the `PG*` environment variables alone.
        listen_dsn: Where to LISTEN, when `dsn` leads through a pooler. Default: `dsn`.
        password: Callable that returns the password, for tokens that expire. A coroutine function runs on the event
            loop that uses the object; on one of its own where there is none, or it is blocked. Default: the DSN's.
        channel: Channel prefix, `channelPrefix` in Node. Default `socket.io`.
        table_name: Attachment table, `tableName` in Node: `table` or `schema.table`, folded to lower case unless
            quoted. Default `socket_io_attachments`.
        create_table: Create it when it is missing. Default True.
        payload_threshold: Bytes of JSON from which on a message becomes an attachment, `payloadThreshold` in Node.
            Default 8000, which is also the most PostgreSQL allows.
        max_payload: Largest message accepted, in bytes; a larger one raises `PayloadTooLargeError`. Default 16 MiB.
        buffer_count: Messages that may wait to be committed. Default 10 000.
        buffer_bytes: The same in bytes. Default 64 MiB.
        buffer_age: Seconds a message waits for a connection that was lost, or is refused after it has worked, before it
            fails. Default 30.
        on_full: What happens to an emit when as many wait: `wait`, it takes its place in the order and returns once
            there is room again (cancelling it does not take it back); `raise` a `BufferFullError`; or `drop` the
            message, which counts as failed: the next flush raises, `error_handler` hears of the first in a row, and
            receivers see a gap. Default `wait`.
        receive_buffer_bytes: Bytes of messages that may wait for this process; further ones are dropped, and a gap
            says so. Reading from PostgreSQL never waits, because that would hold up the whole database. Default 64 MiB.
        signing_key: Secret of 16 bytes or more, shared by all servers and emitters of the cluster: what is not signed
            with it is dropped. Node.js and Go servers cannot sign. Default: nothing is signed.
    """

    dsn: str
    listen_dsn: str | None = None
    password: Password | None = None
    channel: str = "socket.io"
    table_name: str = "socket_io_attachments"
    create_table: bool = True
    payload_threshold: int = 8000
    max_payload: int = 16 * MIB
    buffer_count: int = 10_000
    buffer_bytes: int = 64 * MIB
    buffer_age: float = 30.0
    on_full: OnFull = "wait"
    receive_buffer_bytes: int = 64 * MIB
    signing_key: str | bytes | None = dataclasses.field(default=None, repr=False)

    @classmethod
    def of(cls, dsn: str, options: Mapping[str, Any]) -> BusOptions:
        """From the arguments of a constructor.

        Raises:
            UnknownOptionError: There is no such option.
            OptionsError: Its value is wrong.
        """
        check_names(cls, options)
        return cls(dsn, **options)

    def __post_init__(self) -> None:
        for name in ("dsn", "channel", "table_name"):
            _require(name, getattr(self, name), str, "must be a string")
        if self.listen_dsn is not None:
            _require("listen_dsn", self.listen_dsn, str, "must be a string")
        if self.password is not None and not callable(self.password):
            raise bad_option(
                "password", "", "must be a callable that returns the password; a fixed one belongs in the DSN"
            )
        if not isinstance(self.create_table, bool):
            raise bad_option("create_table", self.create_table, "must be True or False")
        _require_number("payload_threshold", self.payload_threshold, 1, 8000, is_integer=True)
        _require_number("max_payload", self.max_payload, 1, 1024 * MIB - 1, is_integer=True)
        _require_number("buffer_count", self.buffer_count, 1, 10_000_000, is_integer=True)
        _require_number("buffer_bytes", self.buffer_bytes, 1, 64 * 1024 * MIB, is_integer=True)
        _require_number("buffer_age", self.buffer_age, 0.0, 86_400.0)
        if self.on_full not in get_args(OnFull):
            raise bad_option("on_full", self.on_full, f"must be one of {', '.join(get_args(OnFull))}")
        _require_number("receive_buffer_bytes", self.receive_buffer_bytes, 1, 64 * 1024 * MIB, is_integer=True)
        if self.signing_key is not None:
            _check_key(self.signing_key)


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
class HeartbeatOptions:
    """Liveness of servers, in seconds, with the Node adapter's defaults.

    Attributes:
        heartbeat_interval: Silence after which a server says that it is alive, `heartbeatInterval`. Default 5.
        heartbeat_timeout: Silence after which a server is no longer counted, `heartbeatTimeout`. Default 10.
        cleanup_interval: Age at which attachments are deleted, and how often, `cleanupInterval`. Default 30.
    """

    heartbeat_interval: float = 5.0
    heartbeat_timeout: float = 10.0
    cleanup_interval: float = 30.0

    def __post_init__(self) -> None:
        _require_number("heartbeat_interval", self.heartbeat_interval, 0.01, 86_400.0)
        _require_number("heartbeat_timeout", self.heartbeat_timeout, 0.02, 86_400.0)
        _require_number("cleanup_interval", self.cleanup_interval, 0.1, 86_400.0)
        if self.heartbeat_timeout <= self.heartbeat_interval:
            raise bad_option(
                "heartbeat_timeout",
                self.heartbeat_timeout,
                f"must exceed heartbeat_interval ({self.heartbeat_interval} s), or every server seems dead",
            )


@dataclasses.dataclass(frozen=True)
class BusSettings(BusOptions):
    """What the core receives: the options, and who this process is.

    Attributes:
        uid: Server id to publish under.
        is_raw: Hand over notifications as they are instead of cluster messages.
        probe_interval: Seconds after which the listening session is probed, and seconds it has to answer.
    """

    uid: str = ""
    is_raw: bool = False
    probe_interval: float = 5.0

    @classmethod
    def make(cls, options: BusOptions, *, uid: str, is_raw: bool, probe_interval: float) -> BusSettings:
        """Complete `options`."""
        fields = {field.name: getattr(options, field.name) for field in dataclasses.fields(BusOptions)}
        if isinstance(options.signing_key, str):
            fields["signing_key"] = options.signing_key.encode()
        return cls(**fields, uid=uid, is_raw=is_raw, probe_interval=probe_interval)


def check_names(kind: type, options: Mapping[str, Any]) -> None:
    """Refuse keyword arguments that a dataclass of options has no field for, naming the one that was meant.

    Raises:
        UnknownOptionError: There is no such option.
    """
    names = [field.name for field in dataclasses.fields(kind)]
    for option in options:
        if option not in names:
            close = difflib.get_close_matches(option, names, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(names)}"
            raise UnknownOptionError(f"unknown option {option!r}: {hint}", option=option, value="", reason=hint)


def bad_option(option: str, value: object, reason: str) -> OptionsError:
    """The exception for an option that cannot work; an empty value is not shown, because it may be a secret."""
    shown = repr(value) if value != "" else ""
    return OptionsError(f"invalid {option}: {reason} (got {shown})", option=option, value=shown, reason=reason)


def _check_key(key: object) -> None:
    # The messages never show the key.
    if not isinstance(key, (str, bytes)):
        raise bad_option("signing_key", type(key).__name__, "must be a string or bytes")
    size = len(key.encode() if isinstance(key, str) else key)
    if size < KEY_BYTES:
        raise bad_option(
            "signing_key", f"{size} bytes", f"must have at least {KEY_BYTES} bytes; take secrets.token_hex()"
        )


def _require(option: str, value: Any, kind: type, reason: str) -> None:
    if not isinstance(value, kind):
        # A DSN may hold a password, so the message names its type and not its value.
        raise bad_option(option, type(value).__name__, reason)


def _require_number(option: str, value: Any, low: float, high: float, *, is_integer: bool = False) -> None:
    is_number = isinstance(value, int if is_integer else (int, float)) and not isinstance(value, bool)
    if not is_number or not low <= value <= high:
        kind = "an integer" if is_integer else "a number of seconds"
        raise bad_option(option, value, f"must be {kind} from {low} to {high}")
