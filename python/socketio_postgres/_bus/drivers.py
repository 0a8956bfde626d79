"""Connections of the caller's own, and how each library takes a statement.

Statements have parameters `%s`, each of them a text or a number. What else looks like a parameter is escaped, also in
the name of a table.
"""

from __future__ import annotations

import inspect
import re
import socket
from collections.abc import Iterable
from typing import Any, Final, NoReturn

from socketio_postgres.exceptions import OptionsError

__all__ = [
    "asyncpg_has_transaction",
    "bad_connection",
    "check_connect",
    "check_kind",
    "connection_of",
    "django_has_transaction",
    "is_passing",
    "is_unavailable",
    "library_of",
    "literal",
    "numbered",
    "percent",
    "psycopg2_cursor",
    "psycopg2_has_transaction",
    "psycopg_cursor",
    "psycopg_has_transaction",
    "psycopg_sql",
    "question",
    "refuse_asyncpg",
    "sqlalchemy_text",
    "sqlstate_of",
    "texts",
    "was_too_long",
]

_OWN: Final = {
    "psycopg": "execute",
    "psycopg2": "cursor",
    "asyncpg": "is_in_transaction",
    "sqlalchemy": "execute",
    "django": "cursor",
}
"""The libraries, and what their connections have and their pools and engines lack."""


def bad_connection(reason: str, value: str = "") -> OptionsError:
    """The error for a connection that will not do."""
    return OptionsError(f"invalid conn: {reason}", option="conn", value=value, reason=reason)


def library_of(connection: object) -> str:
    """`psycopg`, `psycopg2`, `asyncpg`, `sqlalchemy` or `django`.

    Raises:
        OptionsError: None of them, or a pool, or Django's connection to another database system.
    """
    name = type(connection).__qualname__
    # A tracing library's proxy says that it is of the class of what it wraps.
    for kind in connection.__class__.__mro__:
        library = kind.__module__.partition(".")[0].removesuffix("_pool")
        if library not in _OWN:
            continue
        if not hasattr(connection, _OWN[library]):
            raise bad_connection(
                f"{name} has no transaction of its own: give a connection of it, and open a transaction on that first",
                name,
            )
        vendor = getattr(connection, "vendor", "") if library == "django" else "postgresql"
        if vendor != "postgresql":
            raise bad_connection(f"Django's connection leads to {vendor}, not to PostgreSQL", name)
        return library
    raise bad_connection(f"give a connection of psycopg, asyncpg, SQLAlchemy or Django, not {name}", name)


def check_kind(connection: object, *, is_async: bool) -> None:
    """Refuse a connection that needs `await` where nothing is awaited, and the other way round.

    Raises:
        OptionsError: It is of the other kind, or as `library_of`.
    """
    library = library_of(connection)
    needs_await = library == "asyncpg" or inspect.iscoroutinefunction(getattr(connection, "execute", None))
    if needs_await is not is_async:
        kind, classes = ("blocking", "a blocking") if is_async else ("asyncio", "an Async")
        raise bad_connection(f"this is a connection of {library} for {kind} code: use {classes} emitter or manager")


def connection_of(connect: Any) -> Any:
    """A connection, or what becomes one, from a pool, an engine or a function.

    Raises:
        OptionsError: It is none of them.
    """
    for name in ("connection", "acquire", "connect"):  # pools of psycopg and asyncpg, engines of SQLAlchemy
        method = getattr(connect, name, None)
        if method is not None:
            return method()
    if callable(connect):
        return connect()
    raise _bad_connect(connect)


def check_connect(connect: Any) -> None:
    """Check what connections are to come from. Nothing is connected yet.

    Raises:
        OptionsError: It is no pool, engine or function; perhaps a connection.
    """
    methods = (getattr(connect.__class__, name, None) for name in ("connection", "acquire", "connect"))
    if not callable(connect) and not any(map(callable, methods)):
        raise _bad_connect(connect)
    # A connection of psycopg has a `connect`, too: a class method, which would lead somewhere else.
    if connect.__class__.__module__.partition(".")[0] == "psycopg":
        raise _bad_connect(connect)


def _bad_connect(connect: object) -> OptionsError:
    reason = "must be a pool, an engine, or a function that returns a connection"
    shown = type(connect).__name__
    return OptionsError(f"invalid connect: {reason} (got {shown})", option="connect", value=shown, reason=reason)


def literal(text: str) -> str:
    """A text as SQL, however the session reads backslashes."""
    quoted = "'" + text.replace("'", "''").replace("\\", "\\\\") + "'"
    return f"E{quoted}" if "\\" in text else quoted


_QUOTED_OR_PARAMETER: Final = re.compile(r"""("(?:[^"]|"")*"|'(?:[^']|'')*')|%s""")


def _between_parameters(sql: str) -> list[str]:
    """The statement, cut at its parameters; in quotes there are none."""
    parts, start = [], 0
    for found in _QUOTED_OR_PARAMETER.finditer(sql):
        if found[1] is None:
            parts.append(sql[start : found.start()])
            start = found.end()
    return [*parts, sql[start:]]


def percent(sql: str) -> str:
    """The statement for psycopg and Django: `%` is doubled except in parameters."""
    return "%s".join(part.replace("%", "%%") for part in _between_parameters(sql))


def question(sql: str) -> str:
    """The statement with parameters `?`."""
    return "?".join(_between_parameters(sql))


def numbered(sql: str) -> str:
    """The statement as asyncpg takes it: parameters `$1`, `$2`."""
    first, *others = _between_parameters(sql)
    return first + "".join(f"${number}{part}" for number, part in enumerate(others, 1))


def psycopg_cursor(connection: Any) -> Any:
    """A cursor of psycopg whose rows are tuples, whatever the connection's are."""
    from psycopg.rows import tuple_row  # noqa: PLC0415 - the user has it, we do not need it

    # A cursor will do as well: then its connection is meant.
    return getattr(connection, "connection", connection).cursor(row_factory=tuple_row)


def psycopg_sql(cursor: Any, sql: str) -> str:
    """The statement as a cursor of psycopg takes it: the user chooses the class of a connection's cursors."""
    import psycopg  # noqa: PLC0415 - the user has it, we do not need it

    raw = tuple(
        getattr(psycopg, name) for name in ("RawCursor", "AsyncRawCursor") if hasattr(psycopg, name)
    )  # from 3.2
    return numbered(sql) if isinstance(cursor, raw) else percent(sql)


def psycopg2_cursor(connection: Any) -> Any:
    """A cursor of psycopg 2 whose rows are tuples, whatever the connection's are."""
    from psycopg2.extensions import cursor  # noqa: PLC0415 - the user has it, we do not need it

    return connection.cursor(cursor_factory=cursor)


def sqlstate_of(error: BaseException) -> str | None:
    """The SQLSTATE of an error of any of the libraries."""
    # SQLAlchemy wraps the driver's error, and its adapter once more; Django has the driver's error as the cause.
    error = getattr(error, "orig", None) or error
    if type(error).__module__.startswith(("sqlalchemy", "django")):
        error = error.__cause__ or error
    return getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)


_TOO_LONG = ("25P03", "25P04")
"""SQLSTATEs of a transaction that the server has ended, with its session, because it was idle or open for too long."""

_PASSING = ("08", "25006", "40", "53", "57P", *_TOO_LONG)
"""SQLSTATEs, and classes of them, of a transaction that another one, a standby, the server or an outage has ended."""


def is_passing(error: BaseException) -> bool:
    """Whether the same transaction may succeed later: a conflict with another one, or a lost connection."""
    if isinstance(error, (ConnectionError, socket.gaierror)) or type(error).__module__ == "ssl":
        return True  # ours is a ConnectionError, too
    if type(error) in {OSError, TimeoutError}:
        return error.errno is not None  # type: ignore[attr-defined]  # the system's, and not of `asyncio.timeout`
    sqlstate = sqlstate_of(error)
    if sqlstate:
        return sqlstate.startswith(_PASSING)
    error = getattr(error, "orig", None) or error
    if type(error).__module__.startswith("sqlalchemy"):
        error = error.__cause__ or error
    kind = type(error)
    # Without a SQLSTATE, psycopg's InternalError is an answer with which the end of the session came.
    return kind.__module__.startswith(("psycopg", "asyncpg")) and kind.__name__ in {
        "InterfaceError",
        "InternalError",
        "OperationalError",
    }


_UNAVAILABLE = ("55P03", "57014", "58")
"""SQLSTATEs, and classes of them, with which a limit, or the system, ends a statement that waits for a lock."""

_NO_CONNECTION = {"ConnectionTimeout", "OperationalError", "PoolTimeout", "TimeoutError", "TooManyRequests"}
"""Names of errors, of psycopg, its pool and SQLAlchemy's, when there is no connection for a while."""


def is_unavailable(error: BaseException) -> bool:
    """Whether a transaction that has done nothing but wait for its connection and a lock may get them later."""
    if isinstance(error, OSError) or is_passing(error):
        return True
    kind = type(error)
    if kind.__module__.startswith(("psycopg", "sqlalchemy", "asyncio")) and kind.__name__ in _NO_CONNECTION:
        return not sqlstate_of(error)
    return (sqlstate_of(error) or "").startswith(_UNAVAILABLE)


def was_too_long(error: BaseException) -> bool:
    """Whether the server has ended a transaction because it took too long, if the library says so."""
    return (sqlstate_of(error) or "") in _TOO_LONG


def psycopg_has_transaction(connection: Any) -> bool:
    """Whether a transaction is open on a connection of psycopg, or will be with its next statement."""
    from psycopg.pq import TransactionStatus  # noqa: PLC0415 - the user has it, we do not need it

    connection = getattr(connection, "connection", connection)
    return not connection.autocommit or connection.info.transaction_status != TransactionStatus.IDLE


def psycopg2_has_transaction(connection: Any) -> bool:
    """The same of psycopg 2."""
    from psycopg2.extensions import TRANSACTION_STATUS_IDLE  # noqa: PLC0415 - the user has it, we do not need it

    return not connection.autocommit or connection.info.transaction_status != TRANSACTION_STATUS_IDLE


def asyncpg_has_transaction(connection: Any) -> bool:
    """Whether a transaction is open on a connection of asyncpg."""
    return bool(connection.is_in_transaction())


def django_has_transaction(connection: Any) -> bool:
    """Whether a transaction is open on a connection of Django, or will be with its next statement."""
    return bool(connection.in_atomic_block) or not connection.get_autocommit()


def sqlalchemy_text(sql: str, values: list[Any]) -> tuple[Any, dict[str, Any]]:
    """The statement with named parameters, which is what SQLAlchemy's `text` takes."""
    import sqlalchemy  # noqa: PLC0415 - the user has it, we do not need it

    first, *others = (re.sub(r"(?<![:\\]):(?=\w)", r"\\:", part) for part in _between_parameters(sql))
    text = first + "".join(f":v{index}{part}" for index, part in enumerate(others))
    return sqlalchemy.text(text), {f"v{index}": value for index, value in enumerate(values)}


def texts(row: Iterable[Any]) -> tuple[Any, ...]:
    """A row without bytes: psycopg gives them for text where database and client are SQL_ASCII."""
    return tuple(value.decode() if isinstance(value, bytes) else value for value in row)


def refuse_asyncpg() -> NoReturn:
    """Say that blocking code cannot wait for asyncpg."""
    raise bad_connection("asyncpg needs asyncio; use the Async class", "asyncpg")
