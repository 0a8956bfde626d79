"""Notifications that outlive what the server knows of their senders: LISTEN is refused until they are tidied away.

Nobody listens, so they stay; then VACUUM removes the part of `pg_xact` that tells whether their transactions were
committed. PostgreSQL since November 2025 keeps the two together.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from socketio_postgres import AsyncEmitter, AsyncEventStore, Event
from tests.fixtures.bus import BusReader
from tests.fixtures.database import Database
from tests.fixtures.postgres import OwnPostgres, queue_usage
from tests.fixtures.proxy import Direction, Proxy
from tests.fixtures.waiting import TIMEOUT_S, eventually

PAGE_XIDS = 32768
SEGMENT_PAGES = 32
"""Of one file of `pg_xact`."""
SEGMENT_XIDS = SEGMENT_PAGES * PAGE_XIDS

REFUSAL = b"DO $$ BEGIN RAISE EXCEPTION 'could not access status of transaction 7' USING ERRCODE = '58P01'; END $$"


class _Refusing:
    """Has the server refuse every LISTEN of a proxy's clients, until it is asked how full the queue is."""

    def __init__(self) -> None:
        self.refused = 0
        self._is_tidy = False

    def __call__(self, direction: Direction, data: bytes) -> bytes:
        if direction == "to_server":
            self._is_tidy |= b"pg_notification_queue_usage()" in data and b"CASE" not in data
            is_comment = b"/*" in data  # such as says that somebody still reads
            if data.startswith(b"Q") and b"LISTEN " in data and not is_comment and not self._is_tidy:
                self.refused += 1
                return b"Q" + (len(REFUSAL) + 5).to_bytes(4, "big") + REFUSAL + b"\0"
        return data


@pytest.fixture(scope="module")
def own_postgres() -> Iterator[OwnPostgres]:
    """A server that keeps few pages of `pg_xact` in memory."""
    with OwnPostgres(shared_buffers="1MB") as server:
        yield server


@pytest.fixture(params=["by a server that forgot", "by any server"])
def stale(request: pytest.FixtureRequest, postgres: OwnPostgres) -> Iterator[Database]:
    """A database in which LISTEN is refused; newer servers do so only when they are told to."""
    database = postgres.database
    if request.param == "by any server":
        with Proxy(database) as proxy:
            proxy.rewrite = refusing = _Refusing()
            yield Database(proxy.dsn)
            assert refusing.refused == 1
        return
    with _forgotten(postgres):
        yield database


@contextmanager
def _forgotten(server: OwnPostgres) -> Iterator[None]:
    """Leave a notification in the queue, and take away what tells whether it was committed."""
    database = server.database
    number = int(str(database.value("SELECT pg_current_xact_id()::text::int8"))) // SEGMENT_XIDS
    segment = Path(server.data_dir) / "pg_xact" / f"{number:04X}"
    for each in ("postgres", "template1"):
        with psycopg.connect(database.dsn, dbname=each, autocommit=True) as admin:
            admin.execute("VACUUM FREEZE")  # rows do not ask
    # The next transactions are the last ones of this file.
    server.stop()
    with segment.open("r+b") as file:
        file.truncate(SEGMENT_PAGES * 8192)
    server._run("pg_resetwal", "--next-transaction-id", str((number + 1) * SEGMENT_XIDS - 20), str(server.data_dir))
    server.start()
    with database.connect() as admin:
        admin.execute("NOTIFY nobody_listens, 'old'")
        for _ in range(50):
            admin.execute("SELECT pg_current_xact_id()")
        admin.execute("CHECKPOINT")
        # Other pages take the place of the last one in the server's memory.
        pages = "SELECT pg_xact_status((%s + %s * page + 5000)::text::xid8) FROM generate_series(0, 30) AS page"
        admin.execute(pages, (number * SEGMENT_XIDS, PAGE_XIDS))
    aside = segment.rename(segment.with_suffix(".aside"))
    try:
        yield
    finally:
        aside.rename(segment)


async def test_a_listener_gets_past_them(stale: Database) -> None:
    async with BusReader(stale) as reader, AsyncEmitter(stale.dsn) as io:
        await io.emit("arrives")
        await reader.wait_for(1)
        assert reader.failures == [], "it was mended on the way"
    await eventually(lambda: queue_usage(stale) == 0, "the queue is empty")


async def test_a_subscription_gets_past_them(stale: Database) -> None:
    async with AsyncEventStore(stale.dsn) as store, store.subscribe() as live:
        await eventually(lambda: store.stats()["is_listening"], "it listens")
        await store.store(Event("T", "a", 1))
        assert (await live.next(TIMEOUT_S)).data == 1
        assert store.stats()["listener_outage"] is None
    with psycopg.connect(stale.dsn, autocommit=True) as admin:
        admin.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
