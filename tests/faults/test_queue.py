"""PostgreSQL's notification queue fills up because somebody else does not read it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest

from socketio_postgres import AsyncEmitter, DatabaseError
from tests.fixtures.database import Database
from tests.fixtures.postgres import OwnPostgres, queue_usage
from tests.fixtures.tables import Recovered
from tests.fixtures.waiting import eventually
from tests.fixtures.workload import Receiver, Workload, at_rest

QUEUE_FULL = "54000"
QUEUE_BYTES = 64 * 8192
FAILED = "SELECT xact_rollback FROM pg_stat_database WHERE datname = current_database()"
"""Transactions; servers count theirs with some delay."""


@pytest.fixture(scope="module")
def own_postgres() -> Iterator[OwnPostgres]:
    """A server whose queue is full soon; older ones have 8 GB."""
    server = OwnPostgres(max_notify_queue_pages="64")
    if server._binaries.major < 17:
        pytest.skip(f"max_notify_queue_pages needs PostgreSQL 17 or newer, this is {server.version}")
    with server:
        yield server


@contextmanager
def third_party(database: Database) -> Iterator[psycopg.Connection]:
    """A listener of some other program, idle in a transaction: nothing is delivered to it, and the queue is kept."""
    with psycopg.connect(database.dsn, autocommit=True) as connection:
        connection.execute("LISTEN something")
        connection.execute("BEGIN")
        connection.execute("SELECT 1")
        yield connection
        connection.execute("ROLLBACK")


async def test_somebody_elses_transaction_holds_only_him_up(postgres: OwnPostgres) -> None:
    database = postgres.database
    # So few that the queue is not full when they have come, however slowly.
    async with Receiver(database) as receiver, Workload(database, rate=5) as work:
        with third_party(database):
            await work.recover(receiver)
            verdict = await work.check(receiver)
            assert verdict.received == verdict.sent
            assert receiver.gaps == []
    await at_rest(database)


async def test_a_full_queue_fails_what_does_not_fit_and_nothing_else(
    postgres: OwnPostgres, recovered: Recovered
) -> None:
    """Senders are told the truth while it lasts, and everything goes on once there is room."""
    database = postgres.database
    async with Receiver(database) as receiver, Workload(database, rate=1000) as work:
        await work.recover(receiver)
        with third_party(database):
            await eventually(lambda: queue_usage(database) > 0.9, "the queue is full")
            before = database.value(FAILED)
            await eventually(lambda: database.value(FAILED) != before, "commits fail", poll=0.1)
            assert receiver.stats["is_listening"]
        recovered(await work.recover(receiver), 6.0)
        verdict = await work.check(receiver)
        assert verdict.failed > 0
        assert verdict.in_doubt == 0, "PostgreSQL refused these; it did not keep silent"
        assert verdict.lost == 0
        assert {gap.reason for gap in receiver.gaps} == {"hole"}, "the session was never lost"
        assert sum(gap.missing or 0 for gap in receiver.gaps) == verdict.failed
    await at_rest(database)


async def test_the_error_names_the_queue(postgres: OwnPostgres) -> None:
    database = postgres.database
    async with AsyncEmitter(database.dsn) as io:
        with third_party(database):
            emits = [io.emit("fill", "x" * 7000) for _ in range(2 * QUEUE_BYTES // 7000)]
            ends = await asyncio.gather(*emits, return_exceptions=True)
            failures = [end for end in ends if end is not None]
            assert failures
            assert {(type(failure), getattr(failure, "sqlstate", "")) for failure in failures} == {
                (DatabaseError, QUEUE_FULL)
            }
        await eventually(lambda: queue_usage(database) == 0, "the queue is empty")
        await io.emit("after")
