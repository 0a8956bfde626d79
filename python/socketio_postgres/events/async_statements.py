"""Statements on a connection of the caller's own: psycopg, asyncpg or SQLAlchemy."""

from __future__ import annotations

import uuid
from typing import Any, Final

from socketio_postgres._bus.primitives import IS_ASYNC
from socketio_postgres.events.drivers import (
    asyncpg_has_transaction,
    library_of,
    numbered,
    percent,
    psycopg_cursor,
    psycopg_has_transaction,
    refuse_asyncpg,
    sqlalchemy_text,
    texts,
)

__all__ = ["has_transaction", "rows_on", "run_on", "transaction_on"]

_MARK: Final = "socketio_postgres.transaction"


async def has_transaction(connection: Any) -> bool:
    """Whether a transaction is open on a connection, or will be with its next statement.

    Raises:
        OptionsError: It is no connection of psycopg, asyncpg or SQLAlchemy.
    """
    library = library_of(connection)
    if library == "psycopg":
        return psycopg_has_transaction(connection)
    if library == "asyncpg":
        return asyncpg_has_transaction(connection)
    # The driver's connection may commit each statement: whether a setting of the transaction lasts shows that.
    mark = uuid.uuid4().hex
    await rows_on(connection, f"SELECT pg_catalog.set_config('{_MARK}', %s, true)", [mark])
    ((found,),) = await rows_on(connection, f"SELECT pg_catalog.current_setting('{_MARK}', true)", [])
    return bool(found == mark)


def transaction_on(connection: Any) -> Any:
    """A context manager for a transaction on a connection: committed at its end, rolled back by an exception.

    Raises:
        OptionsError: It is no connection of psycopg, asyncpg or SQLAlchemy.
    """
    library = library_of(connection)
    if library == "asyncpg" and not IS_ASYNC:
        refuse_asyncpg()
    return connection.begin() if library == "sqlalchemy" else connection.transaction()


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
