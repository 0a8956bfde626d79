"""A database in which the SQL functions are installed."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from socketio_postgres import Emitter
from tests.fixtures.database import Database


@pytest.fixture
def installed(database: Database) -> Database:
    """The test's database, with the functions in the schema `socketio`."""
    with Emitter(database.dsn) as io:
        io.install_sql()
    return database


@pytest.fixture
def psql(installed: Database) -> Iterator[psycopg.Connection]:
    """A plain connection that commits each statement."""
    with installed.connect() as connection:
        yield connection
