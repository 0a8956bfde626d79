"""Settings of an event store: names, types, defaults and limits are declared here, once."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from typing import Final, Literal, TypeAlias, TypedDict

from socketio_postgres._bus.options import MIB, ConnectOptions, Password, between
from socketio_postgres.events.blocker import Stall

__all__ = ["EventStoreKeywords", "EventStoreOptions", "OnStall", "OnStoreFull"]

OnStall: TypeAlias = Literal["wait", "error"] | Callable[[Stall], object]

OnStoreFull: TypeAlias = Literal["wait", "raise"]

_DAY: Final = 86_400.0
_TEN_YEARS: Final = 3650 * _DAY


@dataclasses.dataclass(frozen=True)
class EventStoreOptions(ConnectOptions):
    """What an event store needs to know. Names and defaults are go-sync-kit's where it has them; durations are seconds.

    Attributes:
        dsn: Connection string or URL as libpq reads it, `ConnectionString` in Go; may lead through a transaction
            pooler. Empty: the `PG*` environment variables alone.
        listen_dsn: Where to LISTEN, when `dsn` leads through a pooler. Default: `dsn`.
        password: Callable that returns the password, for tokens that expire. A coroutine function runs on the event
            loop that uses the object, or on a separate one if there is none, or if it is blocked. Default: the DSN's.
        table_name: `table` or `schema.table`, folded to lower case unless quoted. Default `events`.
        create_table: Create it when it is missing. Default True.
        max_open_conns: Maximum number of connections for writing and reading. Further calls wait. Default 25.
        max_idle_conns: Most of them kept while idle. Default 10.
        conn_max_lifetime: Age at which a connection is replaced. Default 3600.
        conn_max_idle_time: Idle time after which a connection is closed. Default 900.
        notification_timeout: Silence after which the listening connection is probed, and time it has to answer.
            Default 30.
        reconnect_interval: Longest wait between attempts to listen again; the first ones are quicker. Default 5.
        max_reconnect_attempts: Failed attempts in a row to listen after which subscriptions end with the error,
            whatever it is. Default None: never (Go: 10, but it reads the number nowhere). What refuses the first
            attempt and cannot be mended by waiting ends them at once.
        poll_interval: Longest time between two looks at the table while nothing is heard; covers a trigger that is
            missing or disabled. Default 1.
        batch_size: Most events of different calls in one statement that writes, and most events in a page of `read`. A
            single call is one statement, whatever its size. Default 1000.
        enable_prepared_stmts: Keep statements prepared on the server. Default True; turn it off behind a transaction
            pooler that cannot.
        lock_wait: Seconds that storing waits for an aggregate, or an event id, that another transaction holds, before
            `AggregateLockedError`. Default 30.
        answer_timeout: Silence of the server after which a statement is cancelled and its connection given up; a large
            statement has more time. Also the time that a call waits for a server that is away, and that the store tries
            to find out whether a commit in doubt took place. Default 30.
        buffer_count: Calls of `store` and `store_batch` that may wait to be committed. Default 10 000.
        buffer_bytes: The same in bytes. Default 64 MiB.
        on_full: What happens to a call when as many wait: `wait`, it waits until there is room; or `raise` a
            `BufferFullError`. Default `wait`.
        stall_warning: Seconds after which an open transaction that holds readers up is logged, with its session, and
            `on_stall` applies; and again each time as many have passed. Default 5.
        on_stall: What else a subscription does then: `"wait"`, `"error"` (raise `StoreStalledError`), or a function
            or coroutine function that is called with a `Stall`. Events are skipped in no case. Default `"wait"`.
        logger: Where to log. Default: the logger `socketio_postgres`.
        error_handler: Function or coroutine function that is called with every background failure (an exception),
            after it was logged. Default None.
    """

    table_name: str = "events"
    create_table: bool = True
    max_open_conns: int = dataclasses.field(default=25, metadata=between(1, 10_000))
    max_idle_conns: int = dataclasses.field(default=10, metadata=between(0, 10_000))
    conn_max_lifetime: float = dataclasses.field(default=3600.0, metadata=between(0.001, _TEN_YEARS))
    conn_max_idle_time: float = dataclasses.field(default=900.0, metadata=between(0.001, _TEN_YEARS))
    notification_timeout: float = dataclasses.field(default=30.0, metadata=between(0.001, _DAY))
    reconnect_interval: float = dataclasses.field(default=5.0, metadata=between(0.001, _DAY))
    max_reconnect_attempts: int | None = dataclasses.field(default=None, metadata=between(1, 1_000_000))
    poll_interval: float = dataclasses.field(default=1.0, metadata=between(0.001, _DAY))
    batch_size: int = dataclasses.field(default=1000, metadata=between(1, 10_000))
    enable_prepared_stmts: bool = True
    lock_wait: float = dataclasses.field(default=30.0, metadata=between(0.001, _DAY))
    answer_timeout: float = dataclasses.field(default=30.0, metadata=between(0.001, _DAY))
    buffer_count: int = dataclasses.field(default=10_000, metadata=between(1, 10_000_000))
    buffer_bytes: int = dataclasses.field(default=64 * MIB, metadata=between(1, 64 * 1024 * MIB))
    on_full: OnStoreFull = "wait"
    stall_warning: float = dataclasses.field(default=5.0, metadata=between(0.001, _DAY))
    on_stall: OnStall = "wait"
    logger: logging.Logger = dataclasses.field(default_factory=lambda: logging.getLogger("socketio_postgres"))
    error_handler: Callable[[Exception], object] | None = None


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
    lock_wait: float
    answer_timeout: float
    buffer_count: int
    buffer_bytes: int
    on_full: OnStoreFull
    stall_warning: float
    on_stall: OnStall
    logger: logging.Logger
    error_handler: Callable[[Exception], object] | None
