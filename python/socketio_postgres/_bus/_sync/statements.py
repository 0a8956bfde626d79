# Generated from async_statements.py by scripts/async_to_sync.py; edit that file.
"""Statements on a connection of the caller's own: psycopg, psycopg 2, asyncpg, SQLAlchemy or Django."""

from __future__ import annotations

from typing import Any

from socketio_postgres._bus.drivers import (
    asyncpg_has_transaction,
    bad_connection,
    django_has_transaction,
    library_of,
    percent,
    psycopg2_cursor,
    psycopg2_has_transaction,
    psycopg_cursor,
    psycopg_has_transaction,
    psycopg_sql,
    refuse_asyncpg,
    sqlalchemy_text,
    texts,
)
from socketio_postgres._bus.primitives import IS_ASYNC

__all__ = ["has_transaction", "rows_on", "run_on", "transaction_on"]


def has_transaction(connection: Any) -> bool:
    """Whether a transaction is open on a connection, or will be with its next statement. Sends nothing.

    Raises:
        OptionsError: It is no connection of a known library.
    """
    library = library_of(connection)
    if library == "psycopg":
        return psycopg_has_transaction(connection)
    if library == "psycopg2":
        return psycopg2_has_transaction(connection)
    if library == "asyncpg":
        return asyncpg_has_transaction(connection)
    if library == "django":
        return django_has_transaction(connection)
    if hasattr(connection, "get_bind"):  # a session
        connection = connection.connection()
    connection = getattr(connection, "sync_connection", connection)
    # SQLAlchemy begins a transaction before the next statement, unless the driver's connection commits each one.
    return not connection.connection.dbapi_connection.autocommit


def transaction_on(connection: Any) -> Any:
    """A context manager for a transaction on a connection: committed at its end, rolled back by an exception.

    Raises:
        OptionsError: It is no connection of psycopg or SQLAlchemy.
    """
    library = library_of(connection)
    if library == "asyncpg" and not IS_ASYNC:
        refuse_asyncpg()
    if library in {"psycopg2", "django"}:
        raise bad_connection(f"give a connection of psycopg, asyncpg or SQLAlchemy, not of {library}", library)
    return connection.begin() if library == "sqlalchemy" else connection.transaction()


def run_on(connection: Any, sql: str, values: list[Any]) -> int:
    """Run a statement with parameters `%s`; returns how many rows it changed.

    Raises:
        OptionsError: It is no connection of a known library, or needs `await` where nothing is awaited.
    """
    library = library_of(connection)
    if library == "asyncpg":
        refuse_asyncpg()
    if library == "sqlalchemy":
        text, named = sqlalchemy_text(sql, values)
        return int(connection.execute(text, named).rowcount)
    if library == "psycopg":
        with psycopg_cursor(connection) as cursor:
            return int(cursor.execute(psycopg_sql(cursor, sql), values).rowcount)
    with psycopg2_cursor(connection) if library == "psycopg2" else connection.cursor() as cursor:
        cursor.execute(percent(sql), values)
        return int(cursor.rowcount)


def rows_on(connection: Any, sql: str, values: list[Any]) -> list[tuple[Any, ...]]:
    """Run a query with parameters `%s`; returns its rows.

    Raises:
        OptionsError: It is no connection of a known library, or needs `await` where nothing is awaited.
    """
    library = library_of(connection)
    if library == "asyncpg":
        refuse_asyncpg()
    if library == "sqlalchemy":
        text, named = sqlalchemy_text(sql, values)
        return [texts(row) for row in connection.execute(text, named).all()]
    if library == "psycopg":
        with psycopg_cursor(connection) as cursor:
            return [texts(row) for row in cursor.execute(psycopg_sql(cursor, sql), values).fetchall()]
    with psycopg2_cursor(connection) if library == "psycopg2" else connection.cursor() as cursor:
        cursor.execute(percent(sql), values)
        return [texts(row) for row in cursor.fetchall()]
