"""Whoever notifies waits at the commit for one lock of the whole server: for as long as others write theirs to disk."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager

import psycopg
import pytest

from socketio_postgres import ANY, NO_STREAM, AsyncEventStore, CommitInDoubtError, DatabaseError, Event
from tests.fixtures.database import Database
from tests.fixtures.postgres import OwnPostgres
from tests.fixtures.waiting import TIMEOUT_S, eventually, nothing_arrives

STANDBY = {"synchronous_standby_names": "nobody", "synchronous_commit": "local"}
"""Whoever wants to, waits at the commit for a standby that never comes."""
WAITS_FOR_STANDBY = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
WAITS_FOR_LOCK = "SELECT count(*) FROM pg_locks WHERE locktype = 'object' AND database = 0 AND NOT granted"


@pytest.fixture(scope="module")
def server() -> Iterator[Database]:
    with OwnPostgres(**STANDBY) as postgres:
        database = postgres.database
        with database.connect() as admin:
            admin.execute("ALTER DATABASE postgres SET synchronous_commit = local")
        yield database


@contextmanager
def slow_commit(database: Database) -> Iterator[None]:
    """Somebody who notifies is committing, and does not come to an end."""

    def commit() -> None:
        with database.connect() as other:
            other.execute("SET synchronous_commit = on")
            other.execute("SELECT pg_notify('somewhere', ''), pg_logical_emit_message(true, 'a', 'write')")

    committing = threading.Thread(target=commit)
    committing.start()
    with database.connect() as admin:
        while (row := admin.execute(WAITS_FOR_STANDBY).fetchone()) is None:
            assert committing.is_alive()
        try:
            yield
        finally:
            admin.execute("SELECT pg_cancel_backend(%s)", row)  # it is committed here
            committing.join(TIMEOUT_S)


Calls = list[Callable[[], Coroutine[object, object, object]]]


def calls_of(store: AsyncEventStore, kind: str) -> tuple[Calls, int]:
    """Calls, and how many events they store."""
    if kind == "many":
        return [functools.partial(store.store, Event("T", f"m{number}")) for number in range(20)], 20
    two = [Event("T", "a"), Event("T", "b")]
    kinds: dict[str, tuple[Calls, int]] = {
        "one": ([lambda: store.store(two[0])], 1),
        "conditional": ([lambda: store.store(two[0], expected=ANY)], 1),
        "batch": ([lambda: store.store_batch(two)], 2),
        "import": ([lambda: store.import_events(two)], 2),
        "import again": ([lambda: store.import_events(two, skip_existing=True)], 2),
    }
    return kinds[kind]


@pytest.mark.parametrize("kind", ["one", "conditional", "batch", "many", "import", "import again"])
async def test_a_call_waits_for_those_that_commit_before_it(server: Database, kind: str) -> None:
    """It is no reason to give up its transaction, and the versions that it has drawn."""
    lock_wait = 0.05 if kind.startswith("import") else 30.0
    async with AsyncEventStore(server.dsn, lock_wait=lock_wait, answer_timeout=TIMEOUT_S) as store:
        first = await store.store(Event("T", "first"))
        calls, count = calls_of(store, kind)
        with slow_commit(server):
            waiting = [asyncio.create_task(each()) for each in calls]
            await eventually(lambda: server.value(WAITS_FOR_LOCK), "it waits")
            await nothing_arrives()
        await asyncio.gather(*waiting)
        assert await store.latest_version() == first.version + count, "no version was drawn in vain"


async def test_it_does_not_wait_for_ever(server: Database) -> None:
    async with AsyncEventStore(server.dsn, answer_timeout=2, lock_wait=2) as store:
        first = await store.store(Event("T", "first"))
        with slow_commit(server), pytest.raises((DatabaseError, CommitInDoubtError)) as failed:
            await asyncio.wait_for(store.store(Event("T", "a")), 3 * TIMEOUT_S)
        if isinstance(failed.value, DatabaseError):
            assert failed.value.sqlstate == "57014"
            assert await store.latest_version() == first.version, "it was not stored"


async def test_a_call_from_the_waiting_room_waits_for_them(server: Database) -> None:
    async with (
        AsyncEventStore(server.dsn, answer_timeout=TIMEOUT_S) as store,
        await psycopg.AsyncConnection.connect(server.dsn) as user,
    ):
        held = await store.store_in(user, Event("T", "held"), expected=NO_STREAM)
        waiting = asyncio.create_task(store.store(Event("T", "held")))
        await eventually(lambda: store.stats()["store_alone"] > 0, "it waits in the waiting room")
        with slow_commit(server):
            await user.rollback()
            await eventually(lambda: server.value(WAITS_FOR_LOCK), "it waits at the commit")
            await nothing_arrives()
        assert (await waiting).version == held.version + 1, "no version was drawn in vain"
