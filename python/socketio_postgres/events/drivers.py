"""Connections of the caller's own, and how psycopg, asyncpg and SQLAlchemy take a statement.

Statements have parameters `%s`, each of them a text or a number; what else looks like a parameter is escaped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, NoReturn

from socketio_postgres.exceptions import OptionsError

__all__ = [
    "asyncpg_has_transaction",
    "is_passing",
    "library_of",
    "numbered",
    "percent",
    "psycopg_cursor",
    "psycopg_has_transaction",
    "refuse_asyncpg",
    "sqlalchemy_text",
    "texts",
]


def library_of(connection: object) -> str:
    """`psycopg`, `asyncpg` or `sqlalchemy`.

    Raises:
        OptionsError: None of them.
    """
    for kind in type(connection).__mro__:
        library = kind.__module__.partition(".")[0]
        if library in {"psycopg", "asyncpg", "sqlalchemy"}:
            return library
    name = type(connection).__qualname__
    raise OptionsError(
        f"invalid conn: give a connection of psycopg, asyncpg or SQLAlchemy, not {name}",
        option="conn",
        value=name,
        reason="must be a connection of psycopg, asyncpg or SQLAlchemy",
    )


def percent(sql: str) -> str:
    """The statement for psycopg: `%` is doubled except in parameters."""
    return "%s".join(part.replace("%", "%%") for part in sql.split("%s"))


def numbered(sql: str) -> str:
    """The statement as asyncpg takes it: parameters `$1`, `$2`."""
    first, *others = sql.split("%s")
    return first + "".join(f"${number}{part}" for number, part in enumerate(others, 1))


def psycopg_cursor(connection: Any) -> Any:
    """A cursor of psycopg whose rows are tuples, whatever the connection's are."""
    from psycopg.rows import tuple_row  # noqa: PLC0415 - the user has it, we do not need it

    # A cursor will do as well: then its connection is meant.
    return getattr(connection, "connection", connection).cursor(row_factory=tuple_row)


_PASSING = ("08", "40", "53", "57P")
"""Classes of SQLSTATEs of a transaction that another one, or an outage, has ended."""


def is_passing(error: BaseException) -> bool:
    """Whether the same transaction may succeed later: a conflict with another one, or a lost connection."""
    if isinstance(error, OSError):  # ours is a ConnectionError, too
        return True
    error = getattr(error, "orig", None) or error  # SQLAlchemy wraps the driver's error, and its adapter once more
    if type(error).__module__.startswith("sqlalchemy"):
        error = error.__cause__ or error
    sqlstate = getattr(error, "sqlstate", None)
    if sqlstate:
        return str(sqlstate).startswith(_PASSING)
    kind = type(error)
    return kind.__module__.startswith(("psycopg", "asyncpg")) and kind.__name__ in {
        "OperationalError",
        "InterfaceError",
    }


def psycopg_has_transaction(connection: Any) -> bool:
    """Whether a transaction is open on a connection of psycopg, or will be with its next statement."""
    from psycopg.pq import TransactionStatus  # noqa: PLC0415 - the user has it, we do not need it

    connection = getattr(connection, "connection", connection)
    return not connection.autocommit or connection.info.transaction_status != TransactionStatus.IDLE


def asyncpg_has_transaction(connection: Any) -> bool:
    """Whether a transaction is open on a connection of asyncpg; a pool never has one."""
    is_open = getattr(connection, "is_in_transaction", None)
    return is_open is not None and bool(is_open())


def sqlalchemy_text(sql: str, values: list[Any]) -> tuple[Any, dict[str, Any]]:
    """The statement with named parameters, which is what SQLAlchemy's `text` takes."""
    import sqlalchemy  # noqa: PLC0415 - the user has it, we do not need it

    first, *others = (re.sub(r"(?<![:\\]):(?=\w)", r"\\:", part) for part in sql.split("%s"))
    text = first + "".join(f":v{index}{part}" for index, part in enumerate(others))
    return sqlalchemy.text(text), {f"v{index}": value for index, value in enumerate(values)}


def texts(row: Iterable[Any]) -> tuple[Any, ...]:
    """A row without bytes: psycopg gives them for text where database and client are SQL_ASCII."""
    return tuple(value.decode() if isinstance(value, bytes) else value for value in row)


def refuse_asyncpg() -> NoReturn:
    """Say that a blocking store cannot wait for asyncpg."""
    raise OptionsError(
        "invalid conn: asyncpg needs asyncio; use AsyncEventStore",
        option="conn",
        value="asyncpg",
        reason="asyncpg needs asyncio",
    )
