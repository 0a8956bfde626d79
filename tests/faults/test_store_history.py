"""Random schedules of writers, locks and broken links, and whether what was answered is what is in the table."""

from __future__ import annotations

import asyncio
import functools
import random
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from socketio_postgres import AsyncEventStore
from tests.fixtures.database import Database
from tests.fixtures.event_writers import AGGREGATES, KINDS, Writers, is_open
from tests.fixtures.proxy import Proxy
from tests.fixtures.waiting import eventually

WRITERS = 6
DISTURBANCES = 40
SWALLOWS_S = 10
"""Longest time of a link as a black hole."""
STORE = "the stores"
BUSY = "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s AND state <> 'idle'"


async def disturb(
    database: Database, chance: random.Random, proxy: Proxy, oid: int, later: list[asyncio.TimerHandle]
) -> None:
    """Break links, end sessions and hold locks; not for ever, or a slow machine would get nothing else done."""
    loop = asyncio.get_running_loop()
    for _ in range(DISTURBANCES):
        await asyncio.sleep(chance.random() * 0.5)
        kind = chance.choice(["swallow", "reset", "terminate", "lock"])
        links = proxy.links  # there may be none the next time
        if kind == "swallow" and links:
            link = chance.choice(links)
            link.swallow()
            # The server ends its session some day. One that reads an import cannot be cancelled, and keeps its locks.
            later.append(loop.call_later(chance.random() * SWALLOWS_S, link.reset))
        elif kind == "reset" and links:
            chance.choice(links).reset()
        elif kind == "terminate":
            with database.connect() as admin:
                admin.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE application_name = %s ORDER BY random() LIMIT 1",
                    (STORE,),
                )
        else:
            async with await psycopg.AsyncConnection.connect(database.dsn) as holder:
                lock = "SELECT pg_advisory_xact_lock(%s::oid::int, hashtext(%s) & 1023)"
                await holder.execute(lock, (oid, chance.choice(AGGREGATES)))
                await asyncio.sleep(chance.random() * 0.3)


@pytest.mark.parametrize("is_guarded", [False, True], ids=["", "guarded"])
@pytest.mark.parametrize("seed", range(3))
async def test_a_history(database: Database, seed: int, *, is_guarded: bool) -> None:
    chance = random.Random(seed)  # noqa: S311 - no secret
    everyone = Writers([database.dsn], chance)
    with Proxy(database) as proxy:
        dsn = make_conninfo(proxy.dsn, application_name=STORE)
        # An import waits for both together, on each link that swallows it.
        limits: Any = {"answer_timeout": 2.0, "lock_wait": 5.0}
        one = AsyncEventStore(dsn, **limits)
        two = AsyncEventStore(dsn, max_open_conns=2, batch_size=20, **limits)
        for store in (one, two):
            await eventually(functools.partial(is_open, store), "it is open")
        async with one, two:
            if is_guarded:
                await one.enable_guard()
            writers = [asyncio.create_task(everyone.write(store)) for store in (one, two) for _ in range(WRITERS)]
            later: list[asyncio.TimerHandle] = []
            disturbing = asyncio.create_task(disturb(database, chance, proxy, one.layout()["oid"], later))
            try:
                await asyncio.gather(*writers)
            finally:
                disturbing.cancel()
                await asyncio.wait([disturbing])
            if not disturbing.cancelled():
                disturbing.result()
            # What was given up may still be under way on the server.
            await eventually(lambda: database.value(BUSY, STORE) == 0, "all have ended")
            for handle in later:
                handle.cancel()
            assert not any(store.stats()["store_waiting"] for store in (one, two))
    everyone.check(database)
    kinds = {call.kind for call in everyone.calls if isinstance(call.result, list)}
    assert kinds == KINDS
