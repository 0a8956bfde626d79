"""A store on a table of either origin, and the stores of other processes on it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from socketio_postgres import AsyncEventStore
from tests.fixtures.database import Database
from tests.fixtures.go_event_store import create_table

GO_TABLE, OUR_TABLE = "go-sync-kit's table", "our table"


@pytest.fixture(params=[GO_TABLE, OUR_TABLE])
def table(request: pytest.FixtureRequest, database: Database) -> str:
    """Who made the table; go-sync-kit's is made now, ours by the first store."""
    if request.param == GO_TABLE:
        create_table(database)
    return str(request.param)


@pytest.fixture
async def store(table: str, database: Database) -> AsyncIterator[AsyncEventStore]:
    """A store that is open."""
    async with AsyncEventStore(database.dsn) as store:
        yield store


@pytest.fixture
async def go_store(database: Database) -> AsyncIterator[AsyncEventStore]:
    """A store that is open on go-sync-kit's table."""
    create_table(database)
    async with AsyncEventStore(database.dsn) as store:
        yield store


@pytest.fixture
async def our_store(database: Database) -> AsyncIterator[AsyncEventStore]:
    """A store that is open on a table of its own."""
    async with AsyncEventStore(database.dsn) as store:
        yield store
