# Generated from async_transaction.py by scripts/async_to_sync.py; edit that file.
"""`transaction_from`: a transaction on a connection of the caller's own pool, engine or function."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from socketio_postgres._bus._sync.statements import has_transaction, transaction_on
from socketio_postgres._bus.drivers import bad_connection, connection_of
from socketio_postgres._bus.primitives import opened
from socketio_postgres.exceptions import EventStoreError

__all__ = ["transaction_from"]


@contextlib.contextmanager
def transaction_from(connect: Any) -> Iterator[Any]:
    """A connection with a transaction, which the end of the block commits, and an exception rolls back.

    Raises:
        OptionsError: It is no connection of psycopg, asyncpg or SQLAlchemy, or one that commits each statement.
        EventStoreError: The block has raised psycopg's `Rollback`, which ends a transaction without an error.
    """
    is_whole = False
    with opened(connection_of(connect)) as conn, transaction_on(conn):
        if not has_transaction(conn):
            raise bad_connection("the engine commits each statement: give one without isolation_level AUTOCOMMIT")
        yield conn
        is_whole = True
    if not is_whole:
        raise EventStoreError("psycopg's Rollback has ended the transaction: raise an exception of another class")
