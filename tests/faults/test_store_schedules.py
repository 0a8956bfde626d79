"""Random schedules of writers and of consumers of every kind, over servers, poolers, links and sessions that break.

Every consumer must be given what was committed: nothing lost, nothing that was not committed, in order, and again only
where that may happen. Calls go through one proxy, directly or by a pooler, so that a failover can be made as
a cluster manager makes it: first nobody reaches the old primary any more, then it is stopped, then the other one takes
over. It has every commit that anybody was told of, because replication is synchronous.

SIO_PG_SCHEDULES    how many schedules; without it, one of each kind
SIO_PG_SEED         the first seed; it is also in the name of the test
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from socketio_postgres import AsyncEventStore
from tests.fixtures.database import Database
from tests.fixtures.event_consumers import EFFECTS, Consumers, commits, iterates, projects, runs, subscribes
from tests.fixtures.event_writers import AGGREGATES, Writers, is_open
from tests.fixtures.pgbouncer import PgBouncer
from tests.fixtures.postgres import OwnPostgres, standby_of
from tests.fixtures.proxy import Link, Proxy
from tests.fixtures.waiting import eventually

SCHEDULES = int(os.environ.get("SIO_PG_SCHEDULES", "1"))
FIRST_SEED = int(os.environ.get("SIO_PG_SEED", "0"))
WRITERS = 3
DISTURBANCES = 24
ANSWER_S = 2.0
LIMIT_S = 120
ADMIN = "the test"


@dataclass
class World:
    """Servers, poolers and a proxy in front of them, and how they are broken."""

    primary: OwnPostgres
    standby: OwnPostgres
    proxy: Proxy
    poolers: list[PgBouncer]
    chance: random.Random
    log: list[str] = field(default_factory=list)
    oid: int = 0
    later: list[asyncio.TimerHandle] = field(default_factory=list)

    @classmethod
    @contextlib.contextmanager
    def running(cls, pgbouncer_program: str, chance: random.Random) -> Iterator[World]:
        """Start everything."""
        with ExitStack() as stack:
            primary = stack.enter_context(OwnPostgres())
            standby = stack.enter_context(standby_of(primary))
            proxy = stack.enter_context(Proxy(primary.database))
            behind = Database(proxy.dsn)
            poolers = [
                stack.enter_context(PgBouncer(pgbouncer_program, behind, "session")),
                stack.enter_context(PgBouncer(pgbouncer_program, behind, "transaction", pool_size=5)),
            ]
            with primary.database.connect() as admin:
                admin.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
                admin.execute("SELECT pg_reload_conf()")
                admin.execute(EFFECTS)
            yield cls(primary, standby, proxy, poolers, chance)

    @property
    def dsns(self) -> list[str]:
        """The ways to the database: directly, through sessions, through transactions."""
        return [make_conninfo(dsn, connect_timeout=2) for dsn in (self.proxy.dsn, *(each.dsn for each in self.poolers))]

    async def disturb(self, consumers: list[Consumers]) -> None:
        """Break one thing after the other; in the middle, the standby takes over."""
        kinds: list[Callable[[], Awaitable[None]]] = [
            self.break_link,
            self.break_link,
            self.terminate,
            self.terminate,
            self.hold_lock,
            self.restart,
            self.break_pooler,
            lambda: self.chance.choice(consumers).disturb(),
            lambda: self.chance.choice(consumers).disturb(),
            lambda: self.chance.choice(consumers).disturb(),
        ]
        for number in range(DISTURBANCES):
            await asyncio.sleep(self.chance.random() * 0.4)
            if number == DISTURBANCES // 2:
                await self.fail_over()
            else:
                await self.chance.choice(kinds)()
        self.note("the end")
        for handle in self.later:
            handle.cancel()
        self.proxy.reset()

    def note(self, what: str) -> None:
        """Keep what happens, for a failure."""
        self.log.append(f"{time.monotonic():.2f} {what}")

    async def break_link(self) -> None:
        """Let one become a black hole, or half open, for a while, or cut it."""
        links = self.proxy.links
        if not links:
            return
        link = self.chance.choice(links)
        way: Callable[[Link], None] = self.chance.choice([Link.swallow, Link.freeze, Link.reset])
        self.note(f"{way.__name__} {link.server_port}")
        way(link)
        self.later.append(asyncio.get_running_loop().call_later(self.chance.random() * 2 * ANSWER_S, link.reset))

    async def terminate(self) -> None:
        """End sessions."""
        count = self.chance.choice([1, 1, 3, 30])
        self.note(f"terminate {count}")
        with contextlib.suppress(psycopg.OperationalError), self.primary.database.connect() as admin:
            admin.execute(
                "SELECT pg_terminate_backend(pid) FROM (SELECT pid FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
                " AND backend_type = 'client backend' ORDER BY random() LIMIT %s) AS them",
                (count,),
            )

    async def hold_lock(self) -> None:
        """Lock an aggregate, or the positions of consumers."""
        lock = self.chance.choice(
            [
                f"SELECT pg_advisory_xact_lock({self.oid}, hashtext('{self.chance.choice(AGGREGATES)}') & 1023)",
                "SELECT FROM events_subscriptions ORDER BY random() LIMIT 1 FOR UPDATE",
                "LOCK TABLE events_subscriptions",
            ]
        )
        self.note(lock)
        connection = await psycopg.AsyncConnection.connect(self.primary.database.dsn)
        async with connection:
            with contextlib.suppress(psycopg.errors.LockNotAvailable):
                await connection.execute("SET lock_timeout = '2s'")
                await connection.execute(lock.encode())
                await asyncio.sleep(self.chance.random() * 0.5)

    async def restart(self) -> None:
        """Restart the primary, in order or after a crash, or let it freeze for a while."""
        mode = self.chance.choice(["fast", "immediate", "freeze"])
        self.note(f"restart {mode}")
        if mode == "freeze":
            self.primary.freeze()
            await asyncio.sleep(self.chance.random() * 2 * ANSWER_S)
            self.primary.thaw()
        else:
            await asyncio.to_thread(self.primary.restart, mode)  # type: ignore[arg-type]

    async def break_pooler(self) -> None:
        """Restart a pooler, or let it freeze for a while."""
        pooler = self.chance.choice(self.poolers)
        mode = self.chance.choice(["restart", "freeze"])
        self.note(f"pooler {self.poolers.index(pooler)} {mode}")
        if mode == "freeze":
            pooler.freeze()
            await asyncio.sleep(self.chance.random() * ANSWER_S)
            pooler.thaw()
        else:
            await asyncio.to_thread(pooler.stop)
            await asyncio.sleep(self.chance.random() * 0.5)
            await asyncio.to_thread(pooler.start)

    async def supervise(self) -> None:
        """Start poolers again that have crashed, as the service manager of a machine does."""
        while True:
            await asyncio.sleep(0.5)
            for pooler in self.poolers:
                await asyncio.to_thread(pooler.revive)

    async def fail_over(self) -> None:
        """Let the standby take over. What nobody was told of may be lost; what anybody was told of is on both."""
        self.note("failover")
        self.proxy.refuse()
        self.proxy.reset()
        flushed = self.primary.database
        await asyncio.to_thread(flushed.value, "SELECT pg_logical_emit_message(true, 'flush', '')")
        await asyncio.to_thread(self.primary.stop, "immediate")
        self.proxy.redirect(self.standby.database)
        self.proxy.accept()
        await asyncio.sleep(self.chance.random())
        await asyncio.to_thread(self.standby.database.value, "SELECT pg_promote()")
        self.primary = self.standby


@pytest.mark.timeout(600)
@pytest.mark.parametrize("is_guarded", [False, True], ids=["", "guarded"])
@pytest.mark.parametrize("seed", range(FIRST_SEED, FIRST_SEED + SCHEDULES))
async def test_a_schedule(pgbouncer_program: str, seed: int, *, is_guarded: bool) -> None:
    chance = random.Random(seed)  # noqa: S311 - no secret
    with World.running(pgbouncer_program, chance) as world:
        direct, _, transactions = world.dsns
        options: Any = {"answer_timeout": ANSWER_S, "notification_timeout": ANSWER_S}
        async with AsyncExitStack() as stack:
            through: Any = {"listen_dsn": direct, "enable_prepared_stmts": False}
            stores = [
                AsyncEventStore(dsn, **options, **more) for dsn, more in zip(world.dsns, [{}, {}, through], strict=True)
            ]
            for store in stores:
                await eventually(functools.partial(is_open, store), "it is open")
                await stack.enter_async_context(store)
            if is_guarded:
                await stores[0].enable_guard()
            world.oid = stores[0].layout()["oid"]
            assert await stores[0].durable_subscriptions() == []  # makes their tables
            await check(world, stores, Writers([direct, transactions], chance, LIMIT_S), chance)


async def check(world: World, stores: list[AsyncEventStore], writers: Writers, chance: random.Random) -> None:
    """Run a schedule, and look at what came of it."""
    users = writers.users
    readers = [Consumers(f"plain {number}", subscribes, 1, [store], chance) for number, store in enumerate(stores)]
    durables = [
        Consumers("one", chance.choice([runs, iterates]), 2, stores, chance),
        Consumers("many", runs, 3, stores, chance, is_divided=True),
        Consumers("batches", iterates, 2, stores, chance, is_divided=True),
        Consumers("exact", commits, 3, stores, chance, is_exact=True, is_divided=True, users=users),
        Consumers("projection", projects, 2, stores, chance, is_exact=True, is_divided=True, users=users),
    ]
    everyone = readers + durables
    for each in everyone:
        each.begin()
    writing = [asyncio.create_task(writers.write(store)) for store in stores for _ in range(WRITERS)]
    disturbing = asyncio.create_task(world.disturb(durables))
    supervising = asyncio.create_task(world.supervise())
    try:
        await asyncio.gather(disturbing, *writing)
        with world.primary.database.connect() as connection:
            for each in everyone:
                await eventually(
                    functools.partial(is_through, each, connection), f"{each.name} is through", LIMIT_S, poll=0.1
                )
    except BaseException as error:
        for store in stores:
            world.note(f"{store.description}: {store.stats()}")
        for pooler in world.poolers:
            world.note(pooler.story)
        raise AssertionError("\n".join(world.log)) from error
    finally:
        for task in (disturbing, supervising, *writing):
            task.cancel()
        for handle in world.later:
            handle.cancel()
        await asyncio.gather(disturbing, supervising, *writing, return_exceptions=True)
        ends = await asyncio.gather(*(each.end() for each in everyone), return_exceptions=True)
    failed = [end for end in ends if end is not None]
    if failed:
        raise AssertionError("\n".join(world.log)) from failed[0]
    writers.check(world.primary.database)
    problems = [problem for each in everyone for problem in each.problems(world.primary.database)]
    assert not problems, "\n".join(problems + world.log)


def is_through(consumers: Consumers, connection: psycopg.Connection) -> bool:
    """Whether all events were given out, or no more will be."""
    if consumers.has_failed():
        return True
    (row,) = connection.execute(
        "SELECT array_agg(id) FROM events e"
        " WHERE NOT EXISTS (SELECT FROM effects f WHERE f.consumer = %s AND f.version = e.version)",
        (consumers.name,),
    )
    return set(row[0] or ()) <= {event_id for _, event_id, _ in consumers.seen}
