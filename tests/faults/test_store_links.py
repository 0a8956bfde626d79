"""An event store behind links that break in every way: nothing hangs, and nothing is stored twice or lost unsaid."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator
from typing import Any

import pytest
from psycopg.conninfo import make_conninfo

from socketio_postgres import (
    NO_STREAM,
    AsyncEventStore,
    CommitInDoubtError,
    ConnectionLostError,
    Event,
    OperationTimeoutError,
    StoreClosedError,
)
from tests.fixtures.database import Database
from tests.fixtures.event_writers import is_open
from tests.fixtures.proxy import Proxy
from tests.fixtures.waiting import eventually

ANSWER_S = 8.0
"""Silence after which a statement is given up here. A busy server may be silent for some seconds, too."""
LIMIT_S = 120


@contextlib.asynccontextmanager
async def opened(dsn: str, **options: Any) -> AsyncIterator[AsyncEventStore]:
    """A store that gives up soon, but for opening it."""
    store = AsyncEventStore(dsn, answer_timeout=ANSWER_S, **options)
    await eventually(functools.partial(is_open, store), "it is open")
    async with store:
        yield store


async def test_nothing_waits_for_ever_behind_a_link_that_swallows(database: Database) -> None:
    with Proxy(database) as proxy:
        async with opened(make_conninfo(proxy.dsn, connect_timeout=5)) as store:
            await store.store(Event("T", "a", 0))
            proxy.swallow_from(b"", count=float("inf"))
            for link in proxy.links:
                link.swallow()
            calls = [
                store.store(Event("T", "a", 1)),
                store.store(Event("T", "b", 1), expected=NO_STREAM),
                store.store_batch([Event("T", "a", 1), Event("T", "b", 1)]),
                store.import_events([Event("T", "a", 1)]),
                store.load(),
                store.load_by_aggregate("a"),
                store.get("none"),
                store.latest_version(),
                store.latest_version(settled=False),
                store.wait_for(1),
            ]
            results = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), LIMIT_S)
            assert all(isinstance(result, (ConnectionLostError, OperationTimeoutError)) for result in results), results
            assert store.stats()["store_waiting"] == 0


@pytest.mark.parametrize("passes_on", [True, False], ids=["arrives", "does not arrive"])
@pytest.mark.parametrize("expected", [None, NO_STREAM], ids=["unconditional", "conditional"])
async def test_a_commit_whose_answer_is_swallowed(database: Database, *, passes_on: bool, expected: object) -> None:
    """The next connection tells whether it was stored."""
    given = {} if expected is None else {"expected": NO_STREAM}
    with Proxy(database) as proxy:
        async with opened(proxy.dsn) as store:
            await store.store(Event("T", "a"), **given)
            trap = proxy.swallow_from(b"the-id", passes_on=passes_on)
            result = await asyncio.wait_for(store.store(Event("T", "b", id="the-id"), **given), LIMIT_S)
            assert len(trap.caught) == 1
            assert result.is_duplicate == passes_on
            again = await asyncio.wait_for(store.store(Event("T", "b", id="the-id"), **given), LIMIT_S)
            assert (again.version, again.is_duplicate) == (result.version, True)
            await eventually(lambda: database.value(OPEN, database.name) == 0, "what was given up is not left behind")
            assert len(await store.load()) == 2
            assert (store.stats()["stored"], store.stats()["store_groups"]) == (2, 2)


@pytest.mark.parametrize("skip_existing", [True, False])
async def test_an_import_in_doubt(database: Database, *, skip_existing: bool) -> None:
    """It goes on by itself if it skips what exists; otherwise it says so, and can be run again."""
    events = [Event("T", f"a{number}", number) for number in range(1000)]
    with Proxy(database) as proxy:
        # Then statement and request are sent together.
        async with opened(proxy.dsn, enable_prepared_stmts=False) as store:
            await store.import_events([Event("T", "before")], skip_existing=skip_existing)
            trap = proxy.swallow_from(b"COMMIT\0", passes_on=True)
            importing = store.import_events(events, skip_existing=skip_existing)
            if skip_existing:
                assert await asyncio.wait_for(importing, LIMIT_S) == len(events)
                assert store.stats()["stored"] == 1 + len(events)
            else:
                with pytest.raises(CommitInDoubtError):
                    await asyncio.wait_for(importing, LIMIT_S)
                await asyncio.wait_for(store.import_events(events, skip_existing=True), LIMIT_S)
            assert len(trap.caught) == 1
            assert [event.data for event in await store.load(1)] == list(range(1000))


OPEN = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND state IN ('active', 'idle in transaction') \
AND pid <> pg_backend_pid()"
WAITING = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND wait_event_type = 'Lock'"


async def test_a_statement_that_waits_for_the_table_is_cancelled(database: Database) -> None:
    """Whoever gives up leaves no session behind that waits, and stores later what was told to have failed."""
    async with opened(database.dsn, lock_wait=1.5 * ANSWER_S) as store:
        await store.store(Event("T", "a", 0))
        with database.connect() as other, other.transaction():
            other.execute("LOCK TABLE events")
            calls = [store.store(Event("T", f"a{number}", 1)) for number in range(10)]
            results = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), LIMIT_S)
            assert all(isinstance(result, Exception) for result in results)
            await eventually(lambda: database.value(WAITING, database.name) == 0, "nobody waits any more")
        assert (await asyncio.wait_for(store.store(Event("T", "b")), LIMIT_S)).version > 0
        assert [event.aggregate_id for event in await store.load()] == ["a", "b"]


async def test_an_outage_of_the_server_is_waited_out(database: Database) -> None:
    """By writers and by readers: refused connections and refused logins alike."""
    with Proxy(database) as proxy:
        async with AsyncEventStore(proxy.dsn) as store:
            stored = await store.store(Event("T", "a", id="e1"))
            proxy.refuse()
            proxy.reset()
            calls = [
                asyncio.create_task(call)
                for call in (
                    store.store(Event("T", "a"), expected=stored.version),
                    store.load_by_aggregate("a", limit=1),
                    store.get("e1"),
                    store.latest_version(settled=False),
                    *(store.store(Event("T", f"b{number}")) for number in range(50)),
                )
            ]
            await asyncio.sleep(1)
            assert not any(call.done() for call in calls)
            proxy.accept()
            _, page, event, version, *_ = await asyncio.wait_for(asyncio.gather(*calls), LIMIT_S)
            assert (page[0], version >= 1) == (event, True)  # type: ignore[index, operator]
            assert len(await store.load()) == 52


async def test_a_reader_whose_session_is_ended_reads_again(database: Database) -> None:
    async with AsyncEventStore(database.dsn) as store:
        await store.store(Event("T", "a", id="e1"))
        for _ in range(10):
            with database.connect() as admin:
                admin.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            assert len(await store.load()) == 1
            assert (await store.get("e1")).version == 1
            assert await store.latest_version() == 1


async def test_closing_waits_for_a_commit_in_doubt(database: Database) -> None:
    """And whoever closes it meanwhile waits, too."""
    with Proxy(database) as proxy:
        store = AsyncEventStore(proxy.dsn)
        await store.store(Event("T", "a"))
        with database.connect() as blocker:
            blocker.execute("BEGIN")
            blocker.execute("LOCK TABLE events")
            call = asyncio.create_task(store.store(Event("T", "b")))
            await eventually(lambda: database.value(WAITING, database.name) == 1, "it is under way")
            proxy.refuse()
            proxy.reset()
            await eventually(lambda: store.stats()["store_waiting"] == 1, "it is in doubt")
            closing = [asyncio.create_task(store.close()) for _ in range(2)]
            done, _ = await asyncio.wait([call, *closing], timeout=1)
            assert not done
            blocker.execute("COMMIT")
        proxy.accept()
        assert (await asyncio.wait_for(call, LIMIT_S)).version > 1
        await asyncio.gather(*closing)
        with pytest.raises(StoreClosedError):
            await store.store(Event("T", "c"))
    assert database.value("SELECT count(*) FROM events") == 2


async def test_closing_does_not_wait_for_ever(database: Database) -> None:
    """A call in doubt is told so, any other one that it was not stored."""
    with Proxy(database) as proxy:
        store = AsyncEventStore(proxy.dsn)
        first = await store.store(Event("T", "a"))
        with database.connect() as blocker:
            blocker.execute("BEGIN")
            blocker.execute("LOCK TABLE events")
            doubtful = asyncio.create_task(store.store(Event("T", "b")))
            await eventually(lambda: database.value(WAITING, database.name) == 1, "it is under way")
            proxy.refuse()
            proxy.reset()
            await eventually(lambda: store.stats()["store_waiting"] == 1, "it is in doubt")
            other = asyncio.create_task(store.store(Event("T", "a"), expected=first.version))
            await eventually(lambda: store.stats()["store_waiting"] == 2, "the other one waits for the server")
            await asyncio.wait_for(store.close(), LIMIT_S)
            with pytest.raises(CommitInDoubtError):
                await doubtful
            with pytest.raises(StoreClosedError):
                await other
