"""At its start a store looks whether the server shows the locks that the order of events is told from."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from psycopg.conninfo import make_conninfo

from socketio_postgres import AsyncEventStore, Event, EventStore, LocksNotVisibleError
from tests.fixtures.database import Database


@pytest.fixture
def blind(database: Database) -> str:
    """Where `pg_locks` has no rows, as on a server that does not show its locks. In this database only."""
    with database.connect() as admin:
        admin.execute("SET allow_system_table_mods TO on")
        admin.execute("CREATE OR REPLACE VIEW pg_catalog.pg_locks AS SELECT * FROM pg_lock_status() AS l WHERE false")
    return database.dsn


@pytest.fixture
def reader(database: Database) -> Iterator[str]:
    """A role that may read the table and nothing else; not even the table's sequence."""
    with EventStore(database.dsn) as store:
        store.store(Event("T", "a"))
    name = f"reader_of_{database.name}"  # roles belong to the server, which others may use
    with database.connect() as admin:
        admin.execute(f"CREATE ROLE {name} LOGIN".encode())
        admin.execute(f"GRANT SELECT ON events TO {name}".encode())
        admin.execute(f"REVOKE TEMPORARY ON DATABASE {database.name} FROM PUBLIC".encode())
    yield name
    with database.connect() as admin:
        admin.execute(f"DROP OWNED BY {name}".encode())
        admin.execute(f"DROP ROLE {name}".encode())


@pytest.mark.usefixtures("table")
async def test_locks_that_are_not_shown(blind: str) -> None:
    """Refused before anything is read; serial order, which needs no locks, is the way out."""
    store = AsyncEventStore(blind)
    with pytest.raises(LocksNotVisibleError, match="enable_serial_order") as caught:
        await store.load()
    assert caught.value.sequence == "events_version_seq"
    await store.enable_serial_order()
    stored = await store.store(Event("T", "a"))
    assert (await store.load()).safe_since == stored.version
    assert store.layout()["is_serial"]
    await store.close()


async def test_no_version_is_drawn_for_it(database: Database) -> None:
    for _ in range(3):
        async with AsyncEventStore(database.dsn) as store:
            await store.open()
    async with AsyncEventStore(database.dsn) as store:
        assert (await store.store(Event("T", "a"))).version == 1


async def test_a_role_that_may_only_read(reader: str, database: Database) -> None:
    dsn = make_conninfo(database.dsn, user=reader)
    async with AsyncEventStore(dsn) as store:
        await store.open()
        with database.connect() as admin:
            admin.execute(f"GRANT SELECT ON events_version_seq TO {reader}".encode())
        assert [event.aggregate_id for event in await store.load()] == ["a"]
    async with AsyncEventStore(dsn) as store:
        assert (await store.load()).safe_since == 1
