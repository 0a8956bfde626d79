"""Random schedules of transactions that emit, beside a model of what must arrive: what was committed, in that order.

SIO_PG_SCHEDULES    how many; without it so many that this takes some seconds
"""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest

from socketio_postgres import AsyncEmitter
from tests.fixtures.bus import BusReader
from tests.fixtures.database import Database
from tests.fixtures.waiting import eventually

SCHEDULES = int(os.environ.get("SIO_PG_SCHEDULES", "100"))
BATCH = 50
"""Schedules after which is checked what has arrived."""

Emitted = list[list[Any]]


@dataclass
class UserSession:
    """A session with an open transaction, and what the model says of it.

    Attributes:
        conn: The connection.
        levels: What was emitted since the transaction began, and since each savepoint that is still there.
        is_broken: Whether a statement has failed, so that only a rollback can follow.
        is_doomed: Whether the commit will fail.
    """

    conn: psycopg.AsyncConnection
    levels: list[Emitted] = field(default_factory=lambda: [[]])
    is_broken: bool = False
    is_doomed: bool = False
    doomed_at: int = 0


class Schedule:
    """One run of a few transactions side by side.

    Args:
        seed: Decides everything.
        io: Emits.
        admin: Ends sessions.
        committed: Where the model notes what has been committed.
    """

    def __init__(self, seed: int, io: AsyncEmitter, admin: psycopg.Connection, committed: Emitted) -> None:
        self.seed = seed
        self._random = random.Random(seed)  # noqa: S311 - a schedule is no secret
        self._io = io
        self._admin = admin
        self._committed = committed
        self._number = 0

    def _events(self, count: int) -> Iterator[list[Any]]:
        for _ in range(count):
            self._number += 1
            # Equal events in one transaction must all arrive, too.
            number = self._random.choice([self._number, 0])
            [body] = self._random.choices(["", b"\x00", "x" * 8000], [18, 1, 1])
            yield ["e", self.seed, number, body]

    async def run(self, conns: list[psycopg.AsyncConnection]) -> None:
        """Let transactions take turns until all have ended."""
        sessions = [UserSession(conn) for conn in conns]
        for _ in range(self._random.randint(2, 14)):
            await self._step(self._random.choice(sessions))
        self._random.shuffle(sessions)
        for session in sessions:
            await self._end(session)

    async def _step(self, session: UserSession) -> None:
        step = self._random.choices(
            [self._emit, self._emit_many, self._savepoint, self._rollback_to, self._release, self._fail, self._doom],
            [8, 3, 3, 2, 2, 0.5, 0.3],
        )[0]
        await step(session)

    async def _emit(self, session: UserSession) -> None:
        if not session.is_broken:
            [event] = self._events(1)
            await self._io.in_transaction(session.conn).to("a").emit(*event)
            session.levels[-1].append(event)

    async def _emit_many(self, session: UserSession) -> None:
        if not session.is_broken:
            events = list(self._events(self._random.randint(0, 6)))
            await self._io.in_transaction(session.conn).to("a").emit_many(events)
            session.levels[-1].extend(events)

    async def _savepoint(self, session: UserSession) -> None:
        if not session.is_broken:
            await session.conn.execute(f"SAVEPOINT s{len(session.levels)}")
            session.levels.append([])

    async def _rollback_to(self, session: UserSession) -> None:
        if len(session.levels) > 1:
            depth = self._random.randint(1, len(session.levels) - 1)
            await session.conn.execute(f"ROLLBACK TO s{depth}")
            del session.levels[depth + 1 :]
            session.levels[depth].clear()
            session.is_broken = False
            session.is_doomed = session.is_doomed and session.doomed_at < depth

    async def _release(self, session: UserSession) -> None:
        if len(session.levels) > 1 and not session.is_broken:
            depth = self._random.randint(1, len(session.levels) - 1)
            await session.conn.execute(f"RELEASE s{depth}")
            released = [event for level in session.levels[depth:] for event in level]
            del session.levels[depth:]
            session.levels[-1].extend(released)
            session.doomed_at = min(session.doomed_at, len(session.levels) - 1)

    async def _fail(self, session: UserSession) -> None:
        with contextlib.suppress(psycopg.Error):
            await session.conn.execute("SELECT 1 / 0")
        session.is_broken = True

    async def _doom(self, session: UserSession) -> None:
        """Violate a constraint that is checked by the commit."""
        if not session.is_broken and not session.is_doomed:
            await session.conn.execute("INSERT INTO children VALUES (1)")
            session.is_doomed, session.doomed_at = True, len(session.levels) - 1

    async def _end(self, session: UserSession) -> None:
        how = self._random.choices(["commit", "rollback", "kill", "close"], [10, 4, 0.7, 0.3])[0]
        if how == "close":
            await session.conn.close()
        elif how == "kill":
            self._admin.execute("SELECT pg_terminate_backend(%s, 10000)", [session.conn.info.backend_pid])
            with contextlib.suppress(psycopg.Error):
                await session.conn.execute("COMMIT")
            await session.conn.close()
        elif how == "rollback":
            await session.conn.rollback()
        elif session.is_doomed and not session.is_broken:
            with pytest.raises(psycopg.errors.ForeignKeyViolation):
                await session.conn.commit()
        else:
            await session.conn.commit()
            if not session.is_broken:
                self._committed.extend(event for level in session.levels for event in level)


@contextlib.asynccontextmanager
async def connections(database: Database, count: int) -> AsyncIterator[list[psycopg.AsyncConnection]]:
    """Connections that are closed at the end."""
    conns: list[psycopg.AsyncConnection] = []
    try:
        conns.extend([await psycopg.AsyncConnection.connect(database.dsn) for _ in range(count)])
        yield conns
    finally:
        for conn in conns:
            await conn.close()


@pytest.mark.timeout(180 + SCHEDULES)
async def test_what_arrives_is_what_was_committed(database: Database) -> None:
    committed: Emitted = []
    first = random.randrange(10**9)  # noqa: S311 - printed by a failure
    with database.connect() as admin:
        admin.execute("CREATE TABLE parents (id int PRIMARY KEY)")
        admin.execute("CREATE TABLE children (parent int REFERENCES parents DEFERRABLE INITIALLY DEFERRED)")
        async with (
            AsyncEmitter(database.dsn) as io,
            BusReader(database, heartbeat_timeout=60.0) as reader,
            connections(database, 3) as conns,
        ):
            for seed in range(first, first + SCHEDULES):
                for place, conn in enumerate(conns):
                    if conn.closed:
                        conns[place] = await psycopg.AsyncConnection.connect(database.dsn)
                await Schedule(seed, io, admin, committed).run(conns)
                if (seed - first + 1) % BATCH == 0 or seed == first + SCHEDULES - 1:
                    await _check(reader, io, committed)
            assert reader.stats["gaps"] == reader.stats["duplicates"] == 0
            assert reader.failures == []


async def _check(reader: BusReader, io: AsyncEmitter, committed: Emitted) -> None:
    """Compare what has arrived since the last check."""
    await io.emit("fence")
    await eventually(lambda: ["fence"] in reader.packets, "the fence arrives")
    packets = reader.packets[:-1]
    for found, expected in zip(packets, committed, strict=False):
        assert found == expected, f"schedule {expected[1]} or before"
    assert len(packets) == len(committed)
    reader.items.clear()
    committed.clear()
