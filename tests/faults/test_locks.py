"""Somebody holds a lock on the attachment table: a migration, a `VACUUM FULL`, a session that was forgotten.

PostgreSQL does not look whether the client of a session that waits is still there. What is given up must be cancelled,
or each attempt leaves a session that waits, and that commits once the lock falls.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from socketio_postgres import (
    ClosedError,
    CommitInDoubtError,
    ConnectionLostError,
    DatabaseError,
    Message,
    MessageType,
    OperationTimeoutError,
)
from socketio_postgres._bus.bus import Bus
from socketio_postgres._bus.options import BusOptions
from tests.fixtures.bus import BusReader
from tests.fixtures.database import Database
from tests.fixtures.pgbouncer import PgBouncer
from tests.fixtures.postgres import OwnPostgres, sessions
from tests.fixtures.proxy import Proxy
from tests.fixtures.waiting import eventually

LIMIT_S = 1.0
"""Silence after which a statement is given up here. A busy server may be silent for as long."""
TABLE = "socket_io_attachments"
WAITS = f"wait_event_type = 'Lock' AND query ~ '{TABLE}'"
QUERY_CANCELED = "57014"


@contextlib.asynccontextmanager
async def bus_of(dsn: str, probe_interval: float = LIMIT_S / 2, **options: Any) -> AsyncIterator[Bus]:
    """A bus whose limits are short, and whose database has the table."""
    bus = Bus(BusOptions(dsn, **options), uid=lambda: "0123456789abcdef", probe_interval=probe_interval)
    try:
        await in_the_end(lambda: bus.call(bus.core.ensure_table))
        yield bus
    finally:
        await bus.close(0.0)


async def in_the_end(call: Callable[[], Awaitable[Any]]) -> Any:
    """What a call gives once the server answers it within the limit."""
    given: list[Any] = []

    async def is_answered() -> bool:
        with contextlib.suppress(ConnectionLostError, DatabaseError, OperationTimeoutError):
            given.append(await call())
        return bool(given)

    await eventually(is_answered, "it is answered")
    return given[0]


@contextlib.contextmanager
def locked(database: Database) -> Iterator[Callable[[], None]]:
    """Lock the table inside the block; gives what lets go of it earlier."""
    with psycopg.connect(database.dsn) as connection:
        connection.execute(f"LOCK TABLE {TABLE}")
        yield connection.rollback
        connection.rollback()


def large_message(number: int) -> Message:
    """A broadcast that becomes an attachment."""
    return Message(MessageType.BROADCAST, "/", packet=["large", number, "x" * 20_000])


def count_rows(database: Database) -> object:
    return database.value(f"SELECT count(*) FROM {TABLE}")


@dataclass
class Under:
    """What became of large messages under a lock."""

    ends: dict[int, str] = field(default_factory=dict)
    reasons: set[tuple[str, str]] = field(default_factory=set)
    most_sessions: int = 0
    most_waiting: int = 0

    async def emit(self, bus: Bus, number: int) -> None:
        """Emit one, and note its end."""
        try:
            await bus.publish(large_message(number))
        except CommitInDoubtError:
            self.ends[number] = "in doubt"
        except (DatabaseError, ConnectionLostError, OperationTimeoutError) as error:
            self.ends[number] = "failed"
            self.reasons.add((getattr(error, "sqlstate", ""), str(error).partition(": canceling")[0]))
        else:
            self.ends[number] = "committed"

    def is_clear(self) -> bool:
        """Whether the server said in time what became of each, and had one session that ended and one that began."""
        reason = "commit messages: cancelled, there was no answer within"
        are_cancelled = all(code == QUERY_CANCELED and text.startswith(reason) for code, text in self.reasons)
        return are_cancelled and "in doubt" not in self.ends.values() and self.most_sessions <= 1 >= self.most_waiting


async def under_a_lock(database: Database) -> Under:
    """Large messages go on for many limits: what failed never comes, what did not fail comes once, in order."""
    seen = Under()
    async with BusReader(database) as reader, bus_of(database.dsn, buffer_age=3.0) as bus:
        await in_the_end(lambda: bus.publish(large_message(0)))
        await eventually(lambda: reader.packets, "the first is in")
        reader.items.clear()
        with locked(database) as unlock:
            before = len(sessions(database))
            emits = []
            for number in range(1, 41):
                emits.append(asyncio.ensure_future(seen.emit(bus, number)))
                await asyncio.sleep(0.2)
                seen.most_sessions = max(seen.most_sessions, len(sessions(database)) - before)
            seen.most_waiting = len(sessions(database, WAITS))
            unlock()
        await asyncio.gather(*emits)
        await in_the_end(lambda: bus.publish(large_message(1000)))
        await eventually(lambda: reader.packets and reader.packets[-1][1] == 1000, "all are in")
        came = [packet[1] for packet in reader.packets if packet[1] in seen.ends]
        assert "failed" in seen.ends.values(), "or the lock was too short"
        assert [number for number in came if seen.ends[number] != "in doubt"] == [
            number for number in range(1, 41) if seen.ends[number] == "committed"
        ]
        assert came == sorted(set(came))
    return seen


async def test_a_lock_costs_no_sessions_and_tells_no_lies(database: Database) -> None:
    """One try of five is enough: the server has a second to say what became of a statement, and may be busy."""
    tries: list[Under] = []
    while not tries or (not tries[-1].is_clear() and len(tries) < 5):
        tries.append(await under_a_lock(database))
    assert tries[-1].is_clear(), tries


CALLS: dict[str, tuple[Any, ...]] = {
    "insert_attachment": (b"body",),
    "get_attachment": (1,),
    "expire_attachments": (30.0,),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("way", ["direct", "pooled"])
async def test_a_call_behind_a_lock_is_taken_back(
    database: Database, request: pytest.FixtureRequest, name: str, way: str
) -> None:
    """Also when several stand in line on one connection, and when a pooler is in between."""
    with contextlib.ExitStack() as stack:
        dsn = database.dsn
        if way == "pooled":
            program = request.getfixturevalue("pgbouncer_program")
            dsn = stack.enter_context(PgBouncer(program, database, "transaction", pool_size=5)).dsn
        async with bus_of(dsn) as bus:
            call = functools.partial(getattr(bus.core, name), *CALLS[name])
            with locked(database):
                are_clear = []
                for _ in range(3):
                    ends = await asyncio.gather(*(bus.call(call) for _ in range(5)), return_exceptions=True)
                    for error in ends:
                        assert isinstance(error, DatabaseError | ConnectionLostError), error
                    are_clear.append(not any(getattr(error, "may_be_sent", False) for error in ends))
                    await eventually(lambda: not sessions(database, WAITS), "nothing waits any more")
                assert any(are_clear), "the server said so, unless it was too busy to do so within a second"
            assert count_rows(database) == 0
            await in_the_end(lambda: bus.call(call))


async def test_closing_takes_back_what_is_under_way(database: Database) -> None:
    async with bus_of(database.dsn, probe_interval=60.0) as bus:
        with locked(database):
            commit = asyncio.ensure_future(bus.publish(large_message(1)))
            insert = asyncio.ensure_future(bus.call(functools.partial(bus.core.insert_attachment, b"body")))
            await eventually(lambda: len(sessions(database, WAITS)) == 2, "both wait for the lock")
            await bus.close(0.2)
            await eventually(lambda: not sessions(database, WAITS), "nothing waits any more")
            with pytest.raises(CommitInDoubtError, match="the publisher was closed"):
                await commit
            with pytest.raises((DatabaseError, ClosedError, ConnectionLostError)):
                await insert
        assert count_rows(database) == 0


async def test_a_link_that_breaks_takes_back_what_is_under_way(postgres: OwnPostgres) -> None:
    """The server does not notice, as long as the session waits, and would commit."""
    database = postgres.database
    with Proxy(database) as proxy:
        async with bus_of(proxy.dsn, probe_interval=60.0) as bus:
            before = count_rows(database)
            with locked(database):
                insert = asyncio.ensure_future(bus.call(functools.partial(bus.core.insert_attachment, b"body")))
                await eventually(lambda: sessions(database, WAITS), "it waits for the lock")
                proxy.reset()
                with pytest.raises(CommitInDoubtError):
                    await insert
                await eventually(lambda: not sessions(database, WAITS), "nothing waits any more")
            assert count_rows(database) == before


async def test_only_the_connection_that_failed_is_ended(postgres: OwnPostgres) -> None:
    """One that somebody else has opened meanwhile has nothing to do with it."""
    database = postgres.database
    with Proxy(database) as proxy:
        limit = 10.0
        async with bus_of(proxy.dsn, probe_interval=limit / 2) as bus:
            fetch = functools.partial(bus.core.get_attachment, 2**62)
            await bus.call(fetch)
            [link] = proxy.links
            link.freeze()
            first = asyncio.ensure_future(bus.call(fetch))
            await asyncio.sleep(2)
            second = asyncio.ensure_future(bus.call(fetch))
            with pytest.raises(ConnectionLostError):
                await first
            with locked(database):
                began = time.monotonic()
                third = asyncio.ensure_future(bus.call(fetch))
                await eventually(lambda: sessions(database, WAITS), "it is asked on another connection")
                with pytest.raises(ConnectionLostError):
                    await second
                assert time.monotonic() - began < limit, "or the third is given up as well"
            assert await third is None


async def test_an_attempt_that_failed_ends_no_newer_connection(postgres: OwnPostgres) -> None:
    """Whoever stood in line behind it hears of it as well, or asks on a connection that nobody ends."""
    database = postgres.database
    async with bus_of(database.dsn) as direct:
        fetch = functools.partial(direct.core.get_attachment, 2**62)
        await direct.call(fetch)
    with Proxy(database) as proxy:
        proxy.swallow_from(b"user\0")
        bus = Bus(
            BusOptions(make_conninfo(proxy.dsn, connect_timeout=1)), uid=lambda: "0123456789abcdef", probe_interval=60.0
        )
        try:
            with locked(database):
                fetch = functools.partial(bus.core.get_attachment, 2**62)
                calls = [asyncio.ensure_future(bus.call(fetch)) for _ in range(5)]
                await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
                await asyncio.sleep(0.2)  # whatever follows from the first failure has followed
            ends = await asyncio.gather(*calls, return_exceptions=True)
            assert {type(end) for end in ends} <= {OperationTimeoutError, type(None)}, ends
            assert await in_the_end(lambda: bus.call(fetch)) is None
        finally:
            await bus.close(0.0)
