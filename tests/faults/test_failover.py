"""The primary is lost and its standby takes over; both hosts are in the connection string."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable

import pytest

from socketio_postgres import AsyncEventStore, DatabaseError, Event
from tests.fixtures.bus import serving
from tests.fixtures.postgres import OwnPostgres, either_of, standby_of
from tests.fixtures.tables import Recovered
from tests.fixtures.waiting import TIMEOUT_S, eventually
from tests.fixtures.workload import Receiver, Workload, at_rest

READ_ONLY = "25006"
RECOVERY_S = 10.0
"""From the promotion on: the longest back-off, and both hosts are tried in turn."""


async def test_a_standby_is_promoted(recovered: Recovered) -> None:
    with OwnPostgres() as primary, standby_of(primary) as standby:
        either = either_of(primary, standby)
        async with Receiver(either) as receiver, Workload(primary.database, either.dsn) as work:
            await work.recover(receiver)
            await asyncio.to_thread(primary.stop, "immediate")
            await eventually(lambda: not receiver.stats["is_listening"], "the receiver notices")
            await asyncio.sleep(1)
            assert not receiver.stats["is_listening"], "a standby is of no use"
            since = time.time()
            standby.database.value("SELECT pg_promote()")
            recovered(await work.recover(receiver, since), RECOVERY_S)
            await eventually(lambda: receiver.reconnects() == 1, "the gap is told once")
            verdict = await work.check(receiver)
            assert verdict.failed == verdict.in_doubt
        await at_rest(standby.database)


async def test_the_roles_are_swapped_back(recovered: Recovered) -> None:
    """The old primary comes back beside the new one: nobody may return to it, whatever the order of the hosts."""
    with OwnPostgres() as primary, standby_of(primary) as standby:
        either = either_of(primary, standby)
        async with Receiver(either) as receiver:
            await asyncio.to_thread(primary.stop)
            standby.database.value("SELECT pg_promote()")
            await eventually(lambda: receiver.reconnects() == 1, "it listens at the new primary")
            # Fenced, as any failover manager does: it accepts connections, and no writes.
            (primary.data_dir / "standby.signal").touch()
            await asyncio.to_thread(primary.start)
            await asyncio.to_thread(standby.restart, "immediate")
            await eventually(lambda: receiver.reconnects() == 2, "it listens again")
            async with Workload(standby.database, either.dsn, kinds=["emitter"]) as work:
                recovered(await work.recover(receiver), RECOVERY_S)
                verdict = await work.check(receiver)
                assert (verdict.lost, verdict.failed) == (0, 0)


async def test_a_standby_alone_is_refused() -> None:
    with OwnPostgres() as primary, standby_of(primary) as standby:
        for options in ({"dsn": standby.database.dsn}, {"listen_dsn": standby.database.dsn}):
            async with serving(primary.database, **options) as one:
                with pytest.raises(DatabaseError, match="is a hot standby: LISTEN/NOTIFY need the primary") as caught:
                    await asyncio.wait_for(one.manager.start(), TIMEOUT_S)
                assert caught.value.sqlstate == READ_ONLY


async def test_a_store_on_a_standby_alone_is_refused() -> None:
    """Whatever is done with it first."""
    with OwnPostgres() as primary, standby_of(primary) as standby:
        async with AsyncEventStore(primary.database.dsn) as store:
            await store.store(Event("T", "a"))
        refusing = AsyncEventStore(standby.database.dsn)
        await _is_refused(anext(refusing.subscribe()))
        await _is_refused(refusing.durable("d").__aenter__())
        await _is_refused(refusing.durable_subscriptions())
        await refusing.close()


async def _is_refused(call: Awaitable[object]) -> None:
    with pytest.raises(DatabaseError, match="is a hot standby") as caught:
        await asyncio.wait_for(call, TIMEOUT_S)
    assert caught.value.sqlstate == READ_ONLY
