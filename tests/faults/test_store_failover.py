"""A store, and consumers of every kind, whose primary is lost and whose standby takes over, moment by moment.

Behind a pooler the connections of clients outlive it. From the moment on at which the pooler leads to the standby, and
until that is promoted, they lead to a server that refuses what writes, shows the past, and does not show who writes.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest

from socketio_postgres import (
    NO_STREAM,
    AlreadyAcknowledgedError,
    AsyncEventStore,
    Event,
    Park,
    StoredEvent,
    StoreRewoundError,
    SubscriptionFencedError,
)
from socketio_postgres.stats import Outage
from tests.fixtures.database import Database
from tests.fixtures.pgbouncer import PgBouncer
from tests.fixtures.postgres import OwnPostgres, standby_of
from tests.fixtures.proxy import Proxy
from tests.fixtures.waiting import TIMEOUT_S, eventually

IDLE_S = 600
"""Longer than a test: nobody looks by itself."""
READ_ONLY = "25006"
USERS_COMMIT = b"Q\0\0\0\x0bCOMMIT\0"
"""As psycopg sends it; the store commits in other messages."""
STORED = "INSERT INTO events (id, aggregate_id, event_type) VALUES (%s, 'a', 'T')"


@dataclass
class Failover:
    """A primary that is lost, its standby, and what leads to whichever of them it should be."""

    primary: OwnPostgres
    standby: OwnPostgres
    proxy: Proxy
    """Leads the pooler, or whoever needs none."""
    listening: Proxy
    """The same for listening sessions, which hear nothing of the failover before they are told."""
    pooler: PgBouncer

    def store(self, **options: Any) -> AsyncEventStore:
        """A store behind the pooler that is idle unless it is woken."""
        idle = {"poll_interval": IDLE_S, "notification_timeout": IDLE_S, "reconnect_interval": 0.1}
        ways = {"listen_dsn": self.listening.dsn, "enable_prepared_stmts": False}
        return AsyncEventStore(self.pooler.dsn, **(idle | ways | options))  # type: ignore[arg-type]

    @contextlib.contextmanager
    def silent(self) -> Iterator[psycopg.Connection]:
        """A session of another writer, whose commits wake nobody."""
        with self.primary.database.connect() as connection:
            connection.execute("SET session_replication_role = replica")
            yield connection

    async def stop_replay(self) -> None:
        """From now on the standby receives what is committed, and shows nothing of it."""
        end = self.primary.database.value("SELECT pg_current_wal_insert_lsn()::text")
        has_it = "SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn"
        await eventually(lambda: self.standby.database.value(has_it, end), "the standby has all before")
        self.standby.database.value("SELECT pg_wal_replay_pause()::text")
        is_paused = "SELECT pg_get_wal_replay_pause_state() = 'paused'"
        await eventually(lambda: self.standby.database.value(is_paused), "it replays no more")

    async def stop_receiving(self) -> None:
        """From now on the standby gets nothing: what is committed will be lost."""
        await self._receives_all()
        with self.standby.database.connect() as admin:
            admin.execute("ALTER SYSTEM SET primary_conninfo = ''")
            admin.execute("SELECT pg_reload_conf()")
        sending = "SELECT count(*) FROM pg_stat_replication"
        await eventually(lambda: self.primary.database.value(sending) == 0, "it follows no more")

    async def _receives_all(self) -> None:
        end = self.primary.database.value("SELECT pg_current_wal_flush_lsn()::text")
        received = "SELECT pg_last_wal_receive_lsn() >= %s::pg_lsn"
        await eventually(lambda: self.standby.database.value(received, end), "the standby has received all")

    async def lose_primary(self, *, with_the_rest: bool = True) -> None:
        """The primary is lost, and all ways lead to the standby, which is not promoted yet."""
        if with_the_rest:
            await self._receives_all()
        for link in self.listening.links:
            link.freeze()
        for proxy in (self.proxy, self.listening):
            proxy.redirect(self.standby.database)
        await asyncio.to_thread(self.primary.stop, "immediate")
        behind = Database(self.pooler.dsn)
        await eventually(lambda: is_standby(behind), "the pooler leads to the standby")

    def wake(self) -> None:
        """Let readers look."""
        self.listening.reset()

    def promote(self) -> None:
        """Let the standby take over."""
        assert self.standby.database.value("SELECT pg_promote()")


def is_standby(database: Database) -> bool:
    """Whether this leads to a standby; a connection to a server that has just gone may be the first that is found."""
    try:
        return bool(database.value("SELECT pg_is_in_recovery()"))
    except psycopg.OperationalError:
        return False


@pytest.fixture
def failover(pgbouncer_program: str) -> Iterator[Failover]:
    """Everything, running."""
    with (
        OwnPostgres() as primary,
        standby_of(primary) as standby,
        Proxy(primary.database) as proxy,
        Proxy(primary.database) as listening,
        PgBouncer(pgbouncer_program, Database(proxy.dsn), "transaction") as pooler,
    ):
        yield Failover(primary, standby, proxy, listening, pooler)


# ----------------------------------------------------------------------------------------- before it is promoted


@pytest.mark.parametrize("missing", ["a lower version", "the last one"])
async def test_a_reader_does_not_believe_a_standby(failover: Failover, missing: str) -> None:
    """It may lack what was committed: a lower version than it shows, or what was delivered before."""
    async with failover.store() as store, store.subscribe() as live:
        await eventually(lambda: store.is_listener_connected, "it listens")
        await store.store(Event("T", "a", id="first"))
        assert (await live.next(TIMEOUT_S)).id == "first"
        # Whoever begins lets the reader look, which may be before it hears of the event.
        await eventually(lambda: store.stats()["notifications"], "it has heard")
        await asyncio.sleep(2)  # and it has looked
        if missing == "a lower version":
            with failover.silent() as slow, failover.silent() as quick:
                slow.execute("BEGIN")
                slow.execute(STORED, ("slow",))
                quick.execute(STORED, ("quick",))
                await failover.stop_replay()
                slow.execute("COMMIT")
            expected = ["slow", "quick"]
        else:
            await failover.stop_replay()
            await store.store(Event("T", "a", id="last"))
            assert (await live.next(TIMEOUT_S)).id == "last"
            expected = ["new"]
        await failover.lose_primary()
        coming = asyncio.create_task(live.next(2 * TIMEOUT_S))
        failover.wake()
        # Before that it may still find that its session ended with the primary.
        await eventually(lambda: coming.done() or _is_read_only(store.stats()["reader_outage"]), "it looks")
        assert not coming.done(), coming
        failover.promote()
        if missing == "the last one":
            await store.store(Event("T", "a", id="new"))
        assert [(await coming).id, *[(await live.next(TIMEOUT_S)).id for _ in expected[1:]]] == expected
        assert store.stats()["reader_outage"] is None


def _is_read_only(outage: Outage | None) -> bool:
    return outage is not None and outage["sqlstate"] == READ_ONLY


async def test_a_page_of_a_standby_is_not_believed(failover: Failover) -> None:
    """A reader that keeps its own position, and one that catches up beside the others."""
    async with failover.store() as store:
        results = await store.store_batch(Event("T", "a", id=f"e{i}") for i in range(3))
        await failover.stop_replay()
        last = await store.store(Event("T", "a", id="last"))
        (event,) = await store.load(results[-1].version)
        await failover.lose_primary()
        loading = asyncio.create_task(store.load(last.version))
        live = store.subscribe(event)
        coming = asyncio.create_task(live.next(2 * TIMEOUT_S))
        await asyncio.sleep(1)
        assert not loading.done(), loading
        assert not coming.done(), coming
        failover.promote()
        assert list(await loading) == []
        await store.store(Event("T", "a", id="new"))
        failover.wake()
        assert (await coming).id == "new"
        live.close()


@pytest.mark.parametrize("call", ["store", "expected", "batch", "import", "skip_existing"])
async def test_a_writer_waits_for_the_promotion(failover: Failover, call: str) -> None:
    """What a standby refuses is an outage, as its logins are, and no answer."""
    events = [Event("T", "b", id="new")]
    async with failover.store() as store:
        await store.store(Event("T", "a"))
        await failover.lose_primary()
        calls: dict[str, Any] = {
            "store": lambda: store.store(events[0]),
            "expected": lambda: store.store(events[0], expected=NO_STREAM),
            "batch": lambda: store.store_batch(events),
            "import": lambda: store.import_events(events),
            "skip_existing": lambda: store.import_events(events, skip_existing=True),
        }
        storing = asyncio.ensure_future(calls[call]())
        await asyncio.sleep(1)
        assert not storing.done(), storing
        failover.promote()
        await asyncio.wait_for(storing, TIMEOUT_S)
        assert [event.id for event in await store.load_by_aggregate("b")] == ["new"]


async def test_a_consumer_does_not_believe_a_standby(failover: Failover) -> None:
    """It shows the position of before, and owners of before: nothing was set back or lost."""
    async with failover.store() as store:
        await store.store_batch(Event("T", "a", i) for i in range(4))
        async with store.durable("d", partitions=2, lease=IDLE_S, checkpoint_interval=0) as durable:
            await failover.stop_replay()
            for _ in range(2):
                event = await anext(durable)
            await durable.ack(event)
            await failover.lose_primary()
            handled: list[int] = []
            running = asyncio.create_task(durable.run(lambda event: handled.append(event.data)))
            looking = asyncio.create_task(durable._look_at(durable._partition_with(event)))
            await asyncio.sleep(2)  # it looks around more than once
            assert not running.done(), running
            assert not looking.done(), looking
            assert durable.partitions == [0, 1]
            failover.promote()
            # The consumer goes on beside the look, and may have acknowledged more by then.
            assert await asyncio.wait_for(looking, TIMEOUT_S) >= event.version
            await eventually(lambda: running.done() or handled == [2, 3], "it goes on")
            assert not running.done(), running
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


# --------------------------------------------------------------------------------------------- what is under way


async def users_connection(failover: Failover) -> psycopg.AsyncConnection:
    """A connection of the user's, through the pooler."""
    return await psycopg.AsyncConnection.connect(failover.pooler.dsn, prepare_threshold=None)


def applied(database: Database) -> list[int]:
    """Effects, in order; no key hides what came twice."""
    with database.connect() as admin:
        return [data for (data,) in admin.execute("SELECT data FROM effects ORDER BY id").fetchall()]


async def prepare(failover: Failover, store: AsyncEventStore, count: int) -> None:
    """Store numbered events of one aggregate, and make a table for effects."""
    with failover.primary.database.connect() as admin:
        admin.execute("CREATE TABLE effects (id bigserial, data int)")
    await store.store_batch(Event("T", "a", i) for i in range(count))
    assert await store.durable_subscriptions() == []  # makes their tables


@pytest.mark.parametrize("is_committed", [False, True], ids=["not committed", "answer lost"])
async def test_a_transaction_of_the_users(failover: Failover, *, is_committed: bool) -> None:
    """Its `ack_in` was rolled back, or committed and not told; on the new primary the call tells which."""
    async with failover.store() as store:
        await prepare(failover, store, 3)
        async with store.durable("d", lease=IDLE_S) as durable:
            event = await anext(durable)
            connection = await users_connection(failover)
            await connection.execute("INSERT INTO effects (data) VALUES (%s)", (event.data,))
            await durable.ack_in(connection, event)
            if is_committed:
                trap = failover.proxy.swallow_from(USERS_COMMIT, passes_on=True)
                committing = asyncio.create_task(connection.commit())
                await eventually(lambda: applied(failover.primary.database) == [0], "it is committed")
                await failover.lose_primary()
                failover.proxy.reset(trap.caught)
            else:
                await failover.lose_primary()
                committing = asyncio.create_task(connection.commit())
            with pytest.raises(psycopg.OperationalError):
                await committing
            await connection.close()  # the pooler may have kept it
            failover.promote()
            async with await users_connection(failover) as connection:
                if is_committed:
                    with pytest.raises(AlreadyAcknowledgedError):
                        await durable.ack_in(connection, event)
                    await connection.rollback()
                else:
                    await connection.execute("INSERT INTO effects (data) VALUES (%s)", (event.data,))
                    await durable.ack_in(connection, event)
                    await connection.commit()
                failover.wake()
                for _ in range(2):
                    event = await asyncio.wait_for(anext(durable), TIMEOUT_S)
                    await connection.execute("INSERT INTO effects (data) VALUES (%s)", (event.data,))
                    await durable.ack_in(connection, event)
                    await connection.commit()
        (state,) = await store.durable_subscriptions()
        assert (state.position, state.owner) == (3, None)
    assert applied(failover.standby.database) == [0, 1, 2]


@pytest.mark.parametrize("is_committed", [False, True], ids=["not committed", "answer lost"])
async def test_a_projection(failover: Failover, *, is_committed: bool) -> None:
    """Its transaction is lost with the primary, or was committed and not told. Each event is applied once."""
    async with failover.store() as store:
        await prepare(failover, store, 3)
        reached, lost = asyncio.Event(), asyncio.Event()

        async def handle(conn: Any, events: Any) -> None:
            for event in events:
                await conn.execute("INSERT INTO effects (data) VALUES (%s)", (event.data,))
            if not lost.is_set():
                reached.set()
                await (asyncio.sleep(0) if is_committed else lost.wait())

        trap = failover.proxy.swallow_from(USERS_COMMIT, passes_on=True) if is_committed else None
        projection = store.projection("p")(handle)
        running = asyncio.create_task(store.run(projection, connect=lambda: users_connection(failover), lease=IDLE_S))
        await eventually(lambda: running.done() or reached.is_set(), "it is at work")
        if is_committed:
            await eventually(lambda: applied(failover.primary.database) == [0, 1, 2], "it is committed")
        await failover.lose_primary()
        lost.set()
        if trap is not None:
            failover.proxy.reset(trap.caught)
        await asyncio.sleep(0.5)  # it tries on the standby
        assert not running.done(), running
        failover.promote()
        failover.wake()
        await store.store(Event("T", "a", 3))
        new = failover.standby.database
        await eventually(lambda: running.done() or len(applied(new)) >= 4, "it goes on")
        assert not running.done(), running
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert applied(new) == [0, 1, 2, 3]


# ---------------------------------------------------------------------------------------- a failover that loses commits


async def test_an_owner_that_the_new_primary_does_not_know(failover: Failover) -> None:
    """Its claim is lost, and the next one has the same epoch. It can change nothing."""
    async with failover.store() as store:
        await prepare(failover, store, 3)
        async with store.durable("d"):
            pass
        await failover.stop_receiving()
        async with store.durable("d", lease=IDLE_S) as old, AsyncEventStore(failover.proxy.dsn) as other:
            event = await anext(old)
            token = old.fencing_token(event)
            await failover.lose_primary(with_the_rest=False)
            failover.promote()
            failover.wake()
            async with other.durable("d", lease=IDLE_S) as new:
                assert (await anext(new)).version == event.version
                assert new.fencing_token(event) == token
                async with await users_connection(failover) as connection:
                    for call in (old.ack(event), old.park(event, None), old.ack_in(connection, event)):
                        with pytest.raises(SubscriptionFencedError):
                            await asyncio.wait_for(call, TIMEOUT_S)
                    await connection.rollback()
                (state,) = await other.durable_subscriptions()
                assert (state.position, state.parked, state.is_owned) == (0, 0, True)


@pytest.mark.parametrize("call", ["ack", "ack_in", "park", "loop"])
async def test_a_position_that_the_new_primary_does_not_know(failover: Failover, call: str) -> None:
    """Owner and epoch are the same. What was acknowledged would come again, without a word."""
    async with failover.store() as store:
        await prepare(failover, store, 3)
        async with store.durable("d", lease=IDLE_S, checkpoint_interval=0) as durable:
            await failover.stop_receiving()
            await durable.ack(await anext(durable))
            event = await anext(durable)
            await failover.lose_primary(with_the_rest=False)
            failover.promote()
            failover.wake()
            async with await users_connection(failover) as connection:
                calls: dict[str, Any] = {
                    "ack": lambda: durable.ack(event),
                    "ack_in": lambda: durable.ack_in(connection, event),
                    "park": lambda: durable.park(event, None),
                    "loop": lambda: durable.run(lambda _: None),
                }
                with pytest.raises(StoreRewoundError, match="was at version 1; now the database has it at version 0"):
                    await asyncio.wait_for(calls[call](), TIMEOUT_S)


async def test_a_parking_is_there_on_the_new_primary(failover: Failover) -> None:
    """With its position, in one transaction; it is replayed there, once."""
    async with failover.store() as store:
        await prepare(failover, store, 3)
        handled: list[int] = []

        async def handler(event: StoredEvent) -> None:
            if event.data == 0 and not handled:
                raise ValueError("zero")
            handled.append(event.data)

        async with store.durable("d", lease=IDLE_S) as durable:
            running = asyncio.create_task(durable.run(handler, Park(whole_aggregate=False)))
            await eventually(lambda: handled == [1, 2], "the others are handled")
            await failover.lose_primary()
            failover.promote()
            failover.wake()
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            assert [each.version for each in await durable.parked()] == [1]
            assert await durable.replay_parked(handler) == 1
            assert await durable.replay_parked(handler) == 0
    assert handled == [1, 2, 0]
