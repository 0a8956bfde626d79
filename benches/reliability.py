"""What being a cluster costs PostgreSQL, and how fast faults are over: the figures of docs/reliability.md.

    python -m benches.reliability            # about four minutes; prints the tables as Markdown

The servers of this package and those of Node.js run in the same minutes, each kind on a PostgreSQL of its own with
`fsync` on, so that what the server counts belongs to one of them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from socketio_postgres import AsyncEmitter
from socketio_postgres.demo.embedded import EmbeddedPostgres
from tests.fixtures.bus import Serving, acquainted, serving
from tests.fixtures.clients import PythonClient
from tests.fixtures.database import Database
from tests.fixtures.node import NodePeer, NodeServer, install_packages
from tests.fixtures.postgres import LISTENS, PUBLISHES, OwnPostgres, either_of, sessions, standby_of, terminate
from tests.fixtures.waiting import eventually

COUNT = 1000
SETTLE_S = 2.0
"""Statistics of PostgreSQL's processes become visible within a second."""

SETTINGS = {
    "fsync": "on",
    "full_page_writes": "on",
    "autovacuum": "off",  # its own writes are nobody's here
    "checkpoint_timeout": "1h",
    "max_connections": "50",
}


@dataclass(frozen=True)
class Cost:
    """What a server has counted: WAL bytes, transaction ids, flushes of the WAL."""

    wal_bytes: int
    xids: int
    fsyncs: int

    def __sub__(self, other: Cost) -> Cost:
        return Cost(self.wal_bytes - other.wal_bytes, self.xids - other.xids, self.fsyncs - other.fsyncs)

    def __str__(self) -> str:
        return f"{self.wal_bytes:,} B, {self.xids:,} xids, {self.fsyncs:,} fsyncs"


async def read_cost(server: EmbeddedPostgres) -> Cost:
    """Ask a server, once its processes have told it what they did."""
    await asyncio.sleep(SETTLE_S)
    fsyncs = "(SELECT coalesce(sum(fsyncs), 0)::bigint FROM pg_stat_io WHERE object = 'wal')"
    if server._binaries.major < 18:
        fsyncs = "(SELECT wal_sync FROM pg_stat_wal)"
    with Database(server.dsn("postgres")).connect() as connection:
        row = connection.execute(
            "SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint, "
            f"pg_snapshot_xmax(pg_current_snapshot())::text::bigint, {fsyncs}"
        ).fetchone()
    assert row is not None
    return Cost(*row)


@contextlib.asynccontextmanager
async def our_cluster(server: EmbeddedPostgres) -> AsyncIterator[tuple[Serving, Serving]]:
    """Two servers of this package, with the default heartbeats."""
    database = Database(server.dsn("postgres"))
    async with serving(database) as one, serving(database) as two:
        await acquainted(one, two)
        yield one, two


@contextlib.asynccontextmanager
async def node_cluster(server: EmbeddedPostgres) -> AsyncIterator[tuple[NodePeer, NodePeer]]:
    """Two servers of Node.js, with the default heartbeats."""
    database = Database(server.dsn("postgres"))
    async with NodePeer("one") as one, NodePeer("two") as two:
        for peer in (one, two):
            await NodeServer.start(peer, database, adapter={"heartbeatInterval": 5000})

        async def know_each_other() -> bool:
            return await one.call("server.serverCount") == 2 == await two.call("server.serverCount")

        await eventually(know_each_other, "they know each other", 30)
        yield one, two


@dataclass(frozen=True)
class Job:
    """So many emits of one kind."""

    title: str
    name: str
    args: tuple[object, ...]
    is_waited_for: bool = False

    async def do_ours(self, server: Serving, client: PythonClient) -> None:
        """Emit from one of our servers to a client of the other, and see all arrive."""
        for _ in range(COUNT):
            await server.sio.emit(self.name, self.args)
            if self.is_waited_for:
                await server.manager.flush()
        await server.manager.flush()
        await client.wait_for(self.name, COUNT)

    async def do_node(self, peer: NodePeer) -> None:
        """The same from a server of Node.js; its commits end some time after the call."""
        if self.is_waited_for:
            for _ in range(COUNT):
                await peer.call("server.emit", name=self.name, args=list(self.args))
        else:
            await peer.call("server.emitAll", messages=[{"name": self.name, "args": list(self.args)}] * COUNT)
        await asyncio.sleep(2 * SETTLE_S)


JOBS = (
    Job(f"{COUNT:,} small emits in a burst", "burst", (1,)),
    Job(f"{COUNT:,} small emits, each waited for", "single", (1,), is_waited_for=True),
    Job(f"{COUNT:,} emits of 9,000 bytes in a burst", "large", ("x" * 9000,)),
)


async def measure_costs(idle_s: float) -> None:
    """Print what emits and idle minutes cost, ours beside Node's."""
    with EmbeddedPostgres(settings=SETTINGS) as ours_on, EmbeddedPostgres(settings=SETTINGS) as node_on:
        async with our_cluster(ours_on) as (one, two), node_cluster(node_on) as (peer, _):
            client = await PythonClient.connect(two.url)
            version = ours_on._binaries.version
            print(f"PostgreSQL {version}, fsync on, one namespace, two servers of each kind.\n")
            print("| What | this package | Node.js |\n|---|---|---|")

            async def measured(title: str, work: Awaitable[None]) -> None:
                before = await read_cost(ours_on), await read_cost(node_on)
                await work
                after = await read_cost(ours_on), await read_cost(node_on)
                print(f"| {title} | {after[0] - before[0]} | {after[1] - before[1]} |", flush=True)

            async def both(job: Job) -> None:
                await job.do_ours(one, client)
                await job.do_node(peer)

            await measured(f"two idle servers, {idle_s:.0f} s", asyncio.sleep(idle_s))
            for job in JOBS:
                await measured(job.title, both(job))
            await client.disconnect()


async def until_heard(io: AsyncEmitter, client: PythonClient, name: str) -> None:
    """Emit until one of it arrives; what is lost meanwhile is the fault's."""
    number = 0
    while not client.received(name):
        number += 1
        with contextlib.suppress(Exception):
            await io.emit(name, number)
        await asyncio.sleep(0.02)


async def timed(name: str, database: Database, fault: Callable[[], object], manager: dict[str, Any]) -> None:
    """Print the time from a fault to the first message that gets through again."""
    async with serving(database, **manager) as one, AsyncEmitter(database.dsn) as io:
        await one.manager.start()
        client = await PythonClient.connect(one.url)
        await until_heard(io, client, "before")
        losses = one.manager.stats()["listener_reconnects"] + one.manager.stats()["publisher_reconnects"]
        start = time.monotonic()
        ended = fault()
        if asyncio.iscoroutine(ended):
            await ended
        at_end = time.monotonic()
        await asyncio.wait_for(until_heard(io, client, "after"), 60)
        stats = one.manager.stats()
        reconnects = stats["listener_reconnects"] + stats["publisher_reconnects"] - losses
        print(
            f"| {name} | {time.monotonic() - start:.2f} s | {time.monotonic() - at_end:.2f} s | {reconnects} "
            f"| {stats['gaps']} |",
            flush=True,
        )
        await client.disconnect()


async def measure_recovery() -> None:
    """Print how long messages do not get through after each fault, with the default options."""
    print("\n| Fault | from the fault | from its end | reconnects | gaps told |\n|---|---|---|---|---|")
    with OwnPostgres() as server:
        database = server.database

        def freeze_listener() -> None:
            for pid in sessions(database, LISTENS):
                os.kill(pid, signal.SIGSTOP)

        def restart() -> None:
            server.stop("immediate")
            server.start()

        await timed("listener's session terminated", database, lambda: terminate(database, LISTENS), {})
        await timed("publisher's session terminated", database, lambda: terminate(database, PUBLISHES), {})
        await timed("all sessions terminated", database, lambda: terminate(database), {})
        await timed("listener's session frozen (SIGSTOP)", database, freeze_listener, {})
        for pid in sessions(database):
            os.kill(pid, signal.SIGCONT)
        await timed("server stopped at once and started", database, restart, {})
    with (
        OwnPostgres(wal_level="replica", max_wal_senders="4", hot_standby="on") as primary,
        standby_of(primary) as standby,
    ):

        def fail_over() -> None:
            primary.stop("immediate")
            standby._run("pg_ctl", "promote", "--pgdata", os.fspath(standby.data_dir), "--wait")

        await timed("failover to a promoted standby", either_of(primary, standby), fail_over, {})


def main() -> None:
    """Measure both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--idle", type=float, default=60.0, help="seconds of idleness measured")
    arguments = parser.parse_args()
    install_packages()
    asyncio.run(measure_costs(arguments.idle))
    asyncio.run(measure_recovery())


if __name__ == "__main__":
    main()
