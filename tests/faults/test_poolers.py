"""PgBouncer in between, in the mode that works and in those that swallow LISTEN."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator

import psycopg
import pytest
from psycopg import sql

from socketio_postgres import AsyncEmitter, SelfTestError
from tests.faults.conftest import Rounds
from tests.fixtures.bus import BusReader, acquainted, serving
from tests.fixtures.clients import PythonClient
from tests.fixtures.database import Database
from tests.fixtures.pgbouncer import PgBouncer, PoolMode
from tests.fixtures.tables import Recovered
from tests.fixtures.waiting import TIMEOUT_S, eventually
from tests.fixtures.workload import CHANNEL, SHORT_PROBE_INTERVAL_S, Receiver, Workload, at_rest

RECOVERY_S = 6.0


@pytest.fixture
def transactions(pgbouncer_program: str, database: Database) -> Iterator[PgBouncer]:
    """Lends two sessions to everybody, for a transaction at a time."""
    with PgBouncer(pgbouncer_program, database, "transaction", pool_size=2) as running:
        yield running


@pytest.fixture
def pooled_sessions(pgbouncer_program: str, database: Database) -> Iterator[PgBouncer]:
    """Lends a session for as long as the client stays."""
    with PgBouncer(pgbouncer_program, database, "session") as running:
        yield running


async def test_publishing_through_transactions(
    database: Database, transactions: PgBouncer, rounds: Rounds, recovered: Recovered
) -> None:
    """Three senders and a reader of attachments share two sessions; only listening goes around the pooler."""
    pooled = Database(transactions.dsn)
    async with (
        Receiver(pooled, listen_dsn=database.dsn, probe_interval=10) as receiver,
        Workload(database, transactions.dsn) as work,
    ):
        await work.recover(receiver)
        await eventually(lambda: receiver.stats["attachments"], "attachments are read")
        assert receiver.gaps == []
        for _ in rounds(2):
            transactions.stop()
            since = time.time()
            transactions.start()
            recovered(await work.recover(receiver, since), RECOVERY_S)
        verdict = await work.check(receiver)
        assert verdict.lost == 0
        assert verdict.failed == verdict.in_doubt
        assert receiver.reconnects() == 0
    await at_rest(database)


async def test_users_transactions_through_transactions(database: Database, transactions: PgBouncer) -> None:
    """A user's connection through the pooler, and an emitter that does not know of it."""
    async with (
        AsyncEmitter(database.dsn) as io,
        BusReader(database) as reader,
        await psycopg.AsyncConnection.connect(transactions.dsn, prepare_threshold=None) as one,
        await psycopg.AsyncConnection.connect(transactions.dsn, prepare_threshold=None) as two,
    ):
        for number in range(10):
            await io.in_transaction(one).emit("one", number)
            await io.in_transaction(two).emit("two", number, b"x")
            await io.in_transaction(two).emit_many([("two", number), ("two", number)])
            await two.commit()
            await (one.rollback() if number % 2 else one.commit())
        expected: list[list[object]] = []
        for number in range(10):
            expected += [["two", number, b"x"], ["two", number], ["two", number]]
            expected += [] if number % 2 else [["one", number]]
        assert await reader.wait_for(len(expected)) == expected


async def test_everything_through_sessions(
    database: Database, pooled_sessions: PgBouncer, rounds: Rounds, recovered: Recovered
) -> None:
    async with (
        Receiver(Database(pooled_sessions.dsn)) as receiver,
        Workload(database, pooled_sessions.dsn) as work,
    ):
        await work.recover(receiver)
        await asyncio.sleep(1)
        assert receiver.gaps == []
        for number in rounds(2):
            pooled_sessions.stop()
            since = time.time()
            pooled_sessions.start()
            recovered(await work.recover(receiver, since), RECOVERY_S)
            await eventually(lambda number=number: receiver.reconnects() == number, "the gap is told once")  # type: ignore[misc]
        await work.check(receiver)
    await at_rest(database)


async def test_a_whole_server_behind_sessions(pooled_sessions: PgBouncer) -> None:
    pooled = Database(pooled_sessions.dsn)
    async with serving(pooled) as one, serving(pooled) as other, AsyncEmitter(pooled.dsn) as io:
        await acquainted(one, other)
        client = await PythonClient.connect(one.url)
        await io.emit("hello", 1, b"")
        assert await client.wait_for("hello") == [(1, b"")]
        await client.disconnect()


@pytest.mark.parametrize("mode", ["transaction", "statement"])
async def test_listening_through_transactions_is_refused(
    pgbouncer_program: str, database: Database, mode: PoolMode
) -> None:
    """LISTEN seems to work there, and nothing arrives: `start` finds out and says why."""
    with PgBouncer(pgbouncer_program, database, mode) as pooler:
        async with serving(Database(pooler.dsn)) as one:
            with pytest.raises(SelfTestError) as caught:
                await asyncio.wait_for(one.manager.start(), TIMEOUT_S)
            assert caught.value.likely_cause == "transaction_pooling"
            assert "listen_dsn" in str(caught.value), "what to do"


async def test_a_session_that_others_use_as_well_is_noticed(database: Database, transactions: PgBouncer) -> None:
    """Even if nothing is published here, and so nothing can come back: each probe looks at what the session holds."""
    listen = sql.SQL("LISTEN {}").format(sql.Identifier(CHANNEL))

    def causes() -> list[str]:
        return [failure.likely_cause for failure in receiver.failures if isinstance(failure, SelfTestError)]

    async def is_noticed(before: int) -> bool:
        """Whether it is; not if a probe had the session at that moment, and so another one was taken."""
        with contextlib.suppress(AssertionError):
            await eventually(lambda: len(causes()) > before, timeout=6 * SHORT_PROBE_INTERVAL_S)
        return len(causes()) > before

    async with Receiver(Database(transactions.dsn), probe_interval=SHORT_PROBE_INTERVAL_S) as receiver:
        with Database(transactions.dsn).connect() as one, Database(transactions.dsn).connect() as two:
            for _ in range(5):
                one.execute("UNLISTEN *")
                if await is_noticed(0):  # it has lost its channels
                    break
            await eventually(lambda: receiver.reconnects() > 0, "it listens again")
            before = len(causes())
            for _ in range(5):
                with one.transaction():
                    one.execute("SELECT 1")  # keeps the session, so the next one is another
                    two.execute(listen)
                    if await is_noticed(before):  # it is lent another one, with the same channels
                        break
            assert len(causes()) > before > 0
    assert set(causes()) == {"transaction_pooling"}


async def test_listening_to_another_database_is_refused(database: Database, postgres_dsn: str) -> None:
    async with serving(database, listen_dsn=postgres_dsn) as one:
        with pytest.raises(SelfTestError) as caught:
            await asyncio.wait_for(one.manager.start(), TIMEOUT_S)
        assert caught.value.likely_cause == "other_database"


async def test_a_pooler_that_is_reconfigured_while_we_run(pgbouncer_program: str, database: Database) -> None:
    """From session to transaction mode, on a quiet day: nobody else's fault shows it, and we would be deaf."""
    with PgBouncer(pgbouncer_program, database, "session") as pooler:
        server = serving(database, listen_dsn=pooler.dsn, heartbeat_interval=2.0, heartbeat_timeout=4.0)
        async with server as one:
            await one.manager.start()
            pooler.reconfigure("transaction")
            await eventually(
                lambda: [error for error in one.errors if isinstance(error, SelfTestError)], "it is noticed"
            )
            assert {error.likely_cause for error in one.errors if isinstance(error, SelfTestError)} == {
                "transaction_pooling"
            }
            pooler.stop()
            await eventually(lambda: not one.manager.stats()["is_listening"], "it knows that it does not listen")
            pooler.reconfigure("session")
            await eventually(lambda: one.manager.stats()["is_listening"], "it listens again")
            client = await PythonClient.connect(one.url)
            async with AsyncEmitter(database.dsn) as io:
                await io.emit("hello", 1)
            assert await client.wait_for("hello") == [(1,)]
            await client.disconnect()
