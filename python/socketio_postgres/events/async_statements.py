"""Statements on a connection of the caller's own: psycopg, asyncpg or SQLAlchemy."""

from __future__ import annotations

from typing import Any

from socketio_postgres._bus.primitives import IS_ASYNC
from socketio_postgres.events.drivers import (
    library_of,
    numbered,
    percent,
    psycopg_cursor,
    refuse_asyncpg,
    sqlalchemy_text,
    texts,
)

__all__ = ["rows_on", "run_on"]


async def run_on(connection: Any, sql: str, values: list[Any]) -> int:
    """Run a statement with parameters `%s`; returns how many rows it changed.

    Raises:
        OptionsError: It is no connection of psycopg, asyncpg or SQLAlchemy for asyncio.
    """
    library = library_of(connection)
    if library == "asyncpg":
        if IS_ASYNC:
            status = await connection.execute(numbered(sql), *values)
            return int(str(status).rpartition(" ")[2])
        refuse_asyncpg()
    if library == "sqlalchemy":
        text, named = sqlalchemy_text(sql, values)
        return int((await connection.execute(text, named)).rowcount)
    return int((await connection.execute(percent(sql), values)).rowcount)


async def rows_on(connection: Any, sql: str, values: list[Any]) -> list[tuple[Any, ...]]:
    """Run a query with parameters `%s`; returns its rows.

    Raises:
        OptionsError: It is no connection of psycopg, asyncpg or SQLAlchemy for asyncio.
    """
    library = library_of(connection)
    if library == "asyncpg":
        if IS_ASYNC:
            return [tuple(row) for row in await connection.fetch(numbered(sql), *values)]
        refuse_asyncpg()
    if library == "sqlalchemy":
        text, named = sqlalchemy_text(sql, values)
        return [texts(row) for row in (await connection.execute(text, named)).all()]
    async with psycopg_cursor(connection) as cursor:
        return [texts(row) for row in await (await cursor.execute(percent(sql), values)).fetchall()]
