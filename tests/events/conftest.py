"""A store on a table of either origin, and the stores of other processes on it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from socketio_postgres import AsyncEventStore
from socketio_postgres.events import async_durable_subscription
from socketio_postgres.events._sync import durable_subscription
from tests.fixtures.database import Database
from tests.fixtures.go_event_store import create_table
from tests.fixtures.waiting import TIMEOUT_S

GO_TABLE, OUR_TABLE = "go-sync-kit's table", "our table"


@pytest.fixture(autouse=True)
def _patient_leaving(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy server may take longer than the user's error may be kept waiting; then positions are not written."""
    for module in (async_durable_subscription, durable_subscription):
        for limit in ("CLOSE_LIMIT", "ERROR_LIMIT"):
            monkeypatch.setattr(module, limit, TIMEOUT_S)


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
