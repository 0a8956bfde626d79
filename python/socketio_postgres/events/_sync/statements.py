# Generated from async_statements.py by scripts/async_to_sync.py; edit that file.
"""Statements on a connection of the caller's own: psycopg or SQLAlchemy."""

from __future__ import annotations

from typing import Any

from socketio_postgres.events.drivers import (
    library_of,
    percent,
    psycopg_cursor,
    refuse_asyncpg,
    sqlalchemy_text,
    texts,
)

__all__ = ["rows_on", "run_on"]


def run_on(connection: Any, sql: str, values: list[Any]) -> int:
    """Run a statement with parameters `%s`; returns how many rows it changed.

    Raises:
        OptionsError: It is no connection of psycopg or SQLAlchemy.
    """
    library = library_of(connection)
    if library == "asyncpg":
        refuse_asyncpg()
    if library == "sqlalchemy":
        text, named = sqlalchemy_text(sql, values)
        return int(connection.execute(text, named).rowcount)
    return int(connection.execute(percent(sql), values).rowcount)


def rows_on(connection: Any, sql: str, values: list[Any]) -> list[tuple[Any, ...]]:
    """Run a query with parameters `%s`; returns its rows.

    Raises:
        OptionsError: It is no connection of psycopg or SQLAlchemy.
    """
    library = library_of(connection)
    if library == "asyncpg":
        refuse_asyncpg()
    if library == "sqlalchemy":
        text, named = sqlalchemy_text(sql, values)
        return [texts(row) for row in connection.execute(text, named).all()]
    with psycopg_cursor(connection) as cursor:
        return [texts(row) for row in cursor.execute(percent(sql), values).fetchall()]
