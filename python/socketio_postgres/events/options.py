"""Settings of an event store: their defaults and checks live here and nowhere else."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias, TypedDict

from socketio_postgres._bus.options import Password, bad_option, check_names
from socketio_postgres.events.blocker import Stall

__all__ = ["EventStoreKeywords", "EventStoreOptions", "OnStall"]

OnStall: TypeAlias = Literal["wait", "error"] | Callable[[Stall], object]


@dataclasses.dataclass(frozen=True)
class EventStoreOptions:
    """What an event store needs to know. Names and defaults are go-sync-kit's where it has them; durations are seconds.

    Attributes:
        dsn: Connection string or URL as libpq reads it, `ConnectionString` in Go; may lead through a transaction
            pooler. Empty: the `PG*` environment variables alone.
        listen_dsn: Where to LISTEN, when `dsn` leads through a pooler. Default: `dsn`.
        password: Callable that returns the password, for tokens that expire. A coroutine function runs on the event
            loop that uses the object; on one of its own where there is none, or it is blocked. Default: the DSN's.
        table_name: `table` or `schema.table`, folded to lower case unless quoted. Default `events`.
        create_table: Create it when it is missing. Default True.
        max_open_conns: Most connections for writing and reading; whoever needs another waits. Default 25.
        max_idle_conns: Most of them kept while idle. Default 10.
        conn_max_lifetime: Age at which a connection is replaced. Default 3600.
        conn_max_idle_time: Idle time after which a connection is closed. Default 900.
        notification_timeout: Silence after which the listening connection is probed, and time it has to answer.
            Default 30.
        reconnect_interval: Longest wait between attempts to listen again; the first ones are quicker. Default 5.
        max_reconnect_attempts: Failed attempts in a row to listen again after which subscriptions end with the error,
            whatever it is. Default None: never (Go: 10, but it reads the number nowhere). What refuses the first
            attempt and cannot be mended by waiting ends them at once.
        poll_interval: Longest time between two looks at the table while nothing is heard; covers a trigger that is
            missing or disabled. Default 1.
        batch_size: Most events in one statement, written or read. Default 1000.
        enable_prepared_stmts: Keep statements prepared on the server. Default True; turn it off behind a transaction
            pooler that cannot.
        stall_warning: Seconds after which an open transaction that holds readers up is logged, with its session, and
            `on_stall` applies; and again each time as many have passed. Default 5.
        on_stall: What else a subscription does then: `"wait"`, `"error"` (raise `StoreStalledError`), or a function
            that is called with a `Stall`, and may be a coroutine function for `AsyncEventStore`. Events are skipped
            in no case. Default `"wait"`.
        logger: Where to log. Default: the logger `socketio_postgres`.
        error_handler: Called with every background failure (an exception), after it was logged. Default None.
    """

    dsn: str = ""
    listen_dsn: str | None = None
    password: Password | None = None
    table_name: str = "events"
    create_table: bool = True
    max_open_conns: int = 25
    max_idle_conns: int = 10
    conn_max_lifetime: float = 3600.0
    conn_max_idle_time: float = 900.0
    notification_timeout: float = 30.0
    reconnect_interval: float = 5.0
    max_reconnect_attempts: int | None = None
    poll_interval: float = 1.0
    batch_size: int = 1000
    enable_prepared_stmts: bool = True
    stall_warning: float = 5.0
    on_stall: OnStall = "wait"
    logger: logging.Logger = dataclasses.field(default_factory=lambda: logging.getLogger("socketio_postgres"))
    error_handler: Callable[[Exception], object] | None = None

    @classmethod
    def of(cls, dsn: str, options: Mapping[str, Any]) -> EventStoreOptions:
        """From the arguments of a constructor.

        Raises:
            UnknownOptionError: There is no such option.
            OptionsError: Its value is wrong.
        """
        check_names(cls, options)
        return cls(dsn, **options)

    def __post_init__(self) -> None:
        for name in ("dsn", "table_name"):
            self._check_kind(name, str, "must be a string")
        for name in ("create_table", "enable_prepared_stmts"):
            self._check_kind(name, bool, "must be True or False")
        self._check_kind("logger", logging.Logger, "must be a logging.Logger")
        if self.listen_dsn is not None:
            self._check_kind("listen_dsn", str, "must be a string")
        for name in ("password", "error_handler"):
            if getattr(self, name) is not None and not callable(getattr(self, name)):
                raise bad_option(name, "", "must be a callable")
        if self.on_stall not in {"wait", "error"} and not callable(self.on_stall):
            raise bad_option("on_stall", self.on_stall, 'must be "wait", "error" or a callable')
        self._check_integer("max_open_conns", 1, 10_000)
        self._check_integer("max_idle_conns", 0, 10_000)
        self._check_integer("batch_size", 1, 10_000)
        if self.max_reconnect_attempts is not None:
            self._check_integer("max_reconnect_attempts", 1, 1_000_000)
        for name in ("conn_max_lifetime", "conn_max_idle_time"):
            self._check_seconds(name, 0.001, 10 * 365 * 86_400.0)
        for name in ("notification_timeout", "reconnect_interval", "poll_interval", "stall_warning"):
            self._check_seconds(name, 0.001, 86_400.0)

    def _check_kind(self, name: str, kind: type, reason: str) -> None:
        value = getattr(self, name)
        if not isinstance(value, kind):
            # A DSN may hold a password, so the message names its type and not its value.
            raise bad_option(name, type(value).__name__, reason)

    def _check_integer(self, name: str, low: int, high: int) -> None:
        value = getattr(self, name)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise bad_option(name, value, f"must be an integer from {low} to {high}")

    def _check_seconds(self, name: str, low: float, high: float) -> None:
        value = getattr(self, name)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not low <= value <= high:
            raise bad_option(name, value, f"must be a number of seconds from {low} to {high}")


class EventStoreKeywords(TypedDict, total=False):
    """The keyword arguments of an event store; see `EventStoreOptions`."""

    listen_dsn: str | None
    password: Password | None
    table_name: str
    create_table: bool
    max_open_conns: int
    max_idle_conns: int
    conn_max_lifetime: float
    conn_max_idle_time: float
    notification_timeout: float
    reconnect_interval: float
    max_reconnect_attempts: int | None
    poll_interval: float
    batch_size: int
    enable_prepared_stmts: bool
    stall_warning: float
    on_stall: OnStall
    logger: logging.Logger
    error_handler: Callable[[Exception], object] | None
