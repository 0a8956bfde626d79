"""A statement on a connection of the user's own: psycopg, asyncpg or SQLAlchemy."""

from __future__ import annotations

import re
from typing import Any

from socketio_postgres.user_connection import library_of, sqlalchemy_text

__all__ = ["run_on"]


async def run_on(connection: Any, sql: str, values: list[Any]) -> int:
    """Run a statement with parameters `%s`; returns how many rows it changed.

    Raises:
        TypeError: It is no connection of psycopg, asyncpg or SQLAlchemy for asyncio.
    """
    library = library_of(connection)
    if library == "asyncpg":
        places = iter(range(1, len(values) + 1))
        status = await connection.execute(re.sub("%s", lambda _: f"${next(places)}", sql), *values)
        return int(str(status).rpartition(" ")[2])
    if library == "sqlalchemy":
        text, named = sqlalchemy_text(sql, values)
        return int((await connection.execute(text, named)).rowcount)
    return int((await connection.execute(sql, values)).rowcount)
