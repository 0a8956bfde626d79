"""Statements on a connection of the user's own: psycopg, asyncpg or SQLAlchemy."""

from __future__ import annotations

from typing import Any

from socketio_postgres.events.user_connection import (
    library_of,
    numbered,
    percent,
    psycopg_cursor,
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
        status = await connection.execute(numbered(sql), *values)
        return int(str(status).rpartition(" ")[2])
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
        return [tuple(row) for row in await connection.fetch(numbered(sql), *values)]
    if library == "sqlalchemy":
        text, named = sqlalchemy_text(sql, values)
        return [texts(row) for row in (await connection.execute(text, named)).all()]
    async with psycopg_cursor(connection) as cursor:
        return [texts(row) for row in await (await cursor.execute(percent(sql), values)).fetchall()]
