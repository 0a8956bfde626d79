"""A statement on a connection of the user's own: psycopg or SQLAlchemy."""

from __future__ import annotations

import re
from typing import Any

from socketio_postgres.exceptions import OptionsError

__all__ = ["library_of", "run_on", "sqlalchemy_text"]


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


def sqlalchemy_text(sql: str, values: list[Any]) -> tuple[Any, dict[str, Any]]:
    """The statement with named parameters, which is what SQLAlchemy's `text` takes."""
    import sqlalchemy  # noqa: PLC0415 - the user has it, we do not need it

    places = iter(range(len(values)))
    text = re.sub("%s", lambda _: f":v{next(places)}", sql)
    return sqlalchemy.text(text), {f"v{index}": value for index, value in enumerate(values)}


def run_on(connection: Any, sql: str, values: list[Any]) -> int:
    """Blocking form of `async_user_connection.run_on`."""
    library = library_of(connection)
    if library == "asyncpg":
        raise OptionsError(
            "invalid conn: asyncpg needs asyncio; use AsyncEventStore",
            option="conn",
            value="asyncpg",
            reason="asyncpg needs asyncio",
        )
    if library == "sqlalchemy":
        text, named = sqlalchemy_text(sql, values)
        return int(connection.execute(text, named).rowcount)
    return int(connection.execute(sql, values).rowcount)
