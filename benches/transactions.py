"""What events cost the transactions that emit them, on one server that flushes.

    python -m benches.transactions            # about two minutes; saves results for the report
    python -m benches.transactions --check    # each job once and small, nothing is saved

A transaction inserts one row. Beside that it emits nothing, emits in the transaction, emits through the emitter's
buffer after the commit, or writes a row to an outbox that a relay publishes. A listener counts what arrives.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import asyncpg
import psycopg

from benches.results import Row, Section, Table, save
from socketio_postgres import AsyncEmitter, Emitter
from socketio_postgres.demo.embedded import EmbeddedPostgres
from tests.fixtures.database import Database

SETTINGS = {"fsync": "on", "full_page_writes": "on", "synchronous_commit": "on", "max_connections": "100"}
TABLES = """
CREATE TABLE orders (id bigserial PRIMARY KEY, customer text, total int);
CREATE TABLE outbox (id bigserial PRIMARY KEY, room text, total int);
"""
INSERT = "INSERT INTO orders (customer, total) VALUES ('c-4711', $1)"
TAKE = """
DELETE FROM outbox WHERE id IN (SELECT id FROM outbox ORDER BY id LIMIT 500 FOR UPDATE SKIP LOCKED)
RETURNING room, total
"""
LOOK_SECONDS = 0.05
"""How long the relay sleeps when the outbox is empty."""
LIMIT_SECONDS = 60.0
CONNECTIONS = (1, 8)
NOTHING = "no event"


@dataclass(frozen=True)
class Scale:
    """How much of everything."""

    repetitions: int
    transactions: int
    """Of each connection."""


FULL, CHECK = Scale(5, 500), Scale(1, 20)

Work = Callable[[Any, int], Awaitable[None]]
"""One transaction on a connection."""


@contextlib.asynccontextmanager
async def nothing(_: str) -> AsyncIterator[Work]:
    """The transaction alone."""

    async def work(conn: Any, number: int) -> None:
        async with conn.transaction():
            await conn.execute(INSERT, number)

    yield work


@contextlib.asynccontextmanager
async def in_transaction(dsn: str) -> AsyncIterator[Work]:
    """Ours: delivered if and only if it commits."""
    async with AsyncEmitter(dsn) as io:

        async def work(conn: Any, number: int) -> None:
            async with conn.transaction():
                await conn.execute(INSERT, number)
                await io.in_transaction(conn).to("c-4711").emit("order", {"total": number})

        yield work


@contextlib.asynccontextmanager
async def buffered(dsn: str) -> AsyncIterator[Work]:
    """Ours: lost if the process dies between the commit and the emitter's."""
    with Emitter(dsn) as io:

        async def work(conn: Any, number: int) -> None:
            async with conn.transaction():
                await conn.execute(INSERT, number)
            io.to("c-4711").emit("order", {"total": number})

        yield work


@contextlib.asynccontextmanager
async def outbox(dsn: str) -> AsyncIterator[Work]:
    """By hand: a row for each event, which a relay deletes and publishes."""
    async with AsyncEmitter(dsn) as io:

        async def work(conn: Any, number: int) -> None:
            async with conn.transaction():
                await conn.execute(INSERT, number)
                await conn.execute("INSERT INTO outbox (room, total) VALUES ('c-4711', $1)", number)

        async def relay(conn: Any) -> None:
            while True:
                async with conn.transaction():
                    rows = await conn.fetch(TAKE)
                    # Published before the delete commits: what fails in between is published twice, not lost.
                    await asyncio.gather(*(io.to(row[0]).emit("order", {"total": row[1]}) for row in rows))
                if not rows:
                    await asyncio.sleep(LOOK_SECONDS)

        conn = await asyncpg.connect(dsn)
        relaying = asyncio.create_task(relay(conn))
        try:
            yield work
        finally:
            relaying.cancel()
            await asyncio.gather(relaying, return_exceptions=True)
            await conn.close()


WAYS: dict[str, Callable[[str], contextlib.AbstractAsyncContextManager[Work]]] = {
    NOTHING: nothing,
    "ours: in the transaction": in_transaction,
    "ours: buffered, after the commit": buffered,
    "by hand: outbox and relay": outbox,
}


async def turn(dsn: str, way: str, connections: int, transactions: int) -> float:
    """Transactions per second; checks that each row is there, and that each event arrived."""
    count = connections * transactions
    arrived, everything = 0, asyncio.Event()

    def hear(*_: object) -> None:
        nonlocal arrived
        arrived += 1
        if arrived == count:
            everything.set()

    async with contextlib.AsyncExitStack() as stack:
        work = await stack.enter_async_context(WAYS[way](dsn))
        pool = [await asyncpg.connect(dsn) for _ in range(connections + 1)]
        for conn in pool:
            stack.push_async_callback(conn.close)
        listener, *workers = pool
        await listener.execute("TRUNCATE orders, outbox")
        await listener.add_listener("socket.io#/", hear)

        async def run(conn: Any) -> None:
            for number in range(transactions):
                await work(conn, number)

        begin = time.perf_counter()
        await asyncio.gather(*map(run, workers))
        seconds = time.perf_counter() - begin
        assert await listener.fetchval("SELECT count(*) FROM orders") == count
        if way != NOTHING:
            await asyncio.wait_for(everything.wait(), LIMIT_SECONDS)
        await listener.remove_listener("socket.io#/", hear)
    assert arrived == (0 if way == NOTHING else count)
    return count / seconds


def table(dsn: str, scale: Scale, connections: int) -> Table:
    """All ways in turn, each time beginning with another."""
    names = list(WAYS)
    values: dict[str, list[float]] = {name: [] for name in names}
    for name in names:  # once unmeasured
        asyncio.run(turn(dsn, name, connections, max(scale.transactions // 10, 1)))
    for repetition in range(scale.repetitions):
        first = repetition % len(names)
        for name in names[first:] + names[:first]:
            values[name].append(asyncio.run(turn(dsn, name, connections, scale.transactions)))
    for name in names:
        sys.stderr.write(f"  {connections}, {name}: {', '.join(f'{value:,.0f}' for value in values[name])}\n")
    who = "1 connection" if connections == 1 else f"{connections} connections"
    return Table(
        id=f"transactions_{connections}",
        title=f"Transactions that emit, {who}",
        unit="transactions/s",
        rows=[Row(name, found, name.startswith("ours")) for name, found in values.items()],
        notes=[
            "Each transaction inserts one row. Measured until the last commit; all events were seen to arrive.",
            "Buffered, an event may be lost with the process, and one that is rolled back must not be emitted by hand.",
            f"The relay looks every {LOOK_SECONDS * 1000:.0f} ms when the outbox is empty, so events arrive later.",
        ],
    )


def measure(scale: Scale) -> Section:
    """Everything."""
    with EmbeddedPostgres(settings=SETTINGS) as server:
        dsn = Database(server.dsn("postgres")).url
        with psycopg.connect(dsn, autocommit=True) as admin:
            admin.execute(TABLES)
        tables = [table(dsn, scale, connections) for connections in CONNECTIONS]
        settings = {
            "PostgreSQL": server.version,
            "driver": f"asyncpg {asyncpg.__version__}",
            "transactions": f"{scale.transactions} of each connection",
            "repetitions": str(scale.repetitions),
            **SETTINGS,
        }
    return Section(
        name="transactions",
        title="Events in transactions",
        order=15,
        command="python -m benches.transactions",
        settings=settings,
        tables=tables,
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benches.transactions", description=__doc__)
    parser.add_argument("--check", action="store_true", help="each job once and small, nothing is saved")
    arguments = parser.parse_args()
    section = measure(CHECK if arguments.check else FULL)
    if not arguments.check:
        sys.stderr.write(f"saved {save(section)}\n")


if __name__ == "__main__":
    main()
