"""A table that goes back in time: whoever had read on is told, before anything of the new history is given out."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from socketio_postgres import (
    END,
    AsyncEventStore,
    AsyncSubscription,
    Event,
    SchemaMismatchError,
    StoredEvent,
    StoreRewoundError,
)
from tests.fixtures.database import Database, patient
from tests.fixtures.pgbouncer import PgBouncer, pgbouncer_program
from tests.fixtures.postgres import OwnPostgres, either_of, standby_of
from tests.fixtures.waiting import eventually

__all__ = ["pgbouncer_program"]

NEXT_S = 60.0
INSERT = (
    "INSERT INTO events (id, aggregate_id, event_type) SELECT 'new' || i, 'a', 'T' FROM generate_series(1, {}) AS i"
)


def truncate(database: Database, count: int) -> None:
    """Another history of so many events, in one transaction."""
    with database.connect() as admin, admin.transaction():
        admin.execute("TRUNCATE events RESTART IDENTITY")
        admin.execute(INSERT.format(count).encode())


def set_back(database: Database, count: int) -> None:
    """The sequence is set back, and what was there stored again with other ids."""
    with database.connect() as admin, admin.transaction():
        admin.execute("DELETE FROM events WHERE version > 1")
        # `setval` would be seen before the commit.
        admin.execute("ALTER SEQUENCE events_version_seq RESTART WITH 2")
        admin.execute(INSERT.format(count).encode())


def end(database: Database, count: int) -> None:
    """Nothing new is there."""
    del count
    with database.connect() as admin:
        admin.execute("TRUNCATE events RESTART IDENTITY")


async def rewound(live: AsyncSubscription) -> StoreRewoundError:
    """The error, before any event."""
    with pytest.raises(StoreRewoundError) as caught:
        await live.next(NEXT_S)
    return caught.value


async def all_of(live: AsyncSubscription, seen: list[StoredEvent]) -> None:
    """Take whatever comes."""
    while True:
        seen.append(await live.next(NEXT_S))


async def store_some(store: AsyncEventStore, count: int, prefix: str = "old") -> list[int]:
    """Events with ids of their own; gives their versions."""
    results = await store.store_batch(Event("T", "a", id=f"{prefix}{i}") for i in range(1, count + 1))
    return [result.version for result in results]


@pytest.mark.parametrize("go_back", [truncate, set_back, end])
async def test_while_it_waits(
    store: AsyncEventStore, database: Database, go_back: Callable[[Database, int], None]
) -> None:
    """S6: at version 3 of one history, and there are five events of another one."""
    await store_some(store, 3)
    async with store.subscribe() as live, store.subscribe(types="none") as other:
        assert [(await live.next(NEXT_S)).id for _ in range(3)] == ["old1", "old2", "old3"]
        waiting = asyncio.create_task(other.next(NEXT_S))
        await eventually(lambda: store.stats()["is_listening"], "it listens")
        await asyncio.to_thread(go_back, database, 5)
        error = await rewound(live)
        assert (error.position, error.event_id) == (3, "old3")
        expected = {"truncate": ("new3", 5), "set_back": ("new2", 6), "end": (None, 0)}
        found_id, last_version = expected[go_back.__name__]
        assert error.found_id == found_id
        assert error.last_version in (3, last_version), "it is read before the event"
        with pytest.raises(StoreRewoundError):
            await waiting
    async with store.subscribe() as again:  # whoever decides to begin anew may
        if go_back is not end:
            assert (await again.next(NEXT_S)).version == 1


async def test_while_it_catches_up(store: AsyncEventStore, database: Database) -> None:
    """Far behind what is kept in memory, page by page."""
    await store_some(store, 300)
    async with store.subscribe(prefetch=10) as live, store.subscribe(types="none", prefetch=10) as other:
        await live.next(NEXT_S)
        await asyncio.to_thread(truncate, database, 500)
        seen: list[StoredEvent] = []
        with pytest.raises(StoreRewoundError):
            await all_of(live, seen)
        assert [event.id for event in seen] == [f"old{i}" for i in range(2, len(seen) + 2)]
        await rewound(other)


async def test_the_last_event_handled_is_where_to_go_on(store: AsyncEventStore, database: Database) -> None:
    """With its id, another process can tell, too."""
    await store_some(store, 3)
    async with store.subscribe() as live:
        events = [await live.next(NEXT_S) for _ in range(3)]
        assert (live.position, live.position_id) == (3, "old3")
    async with store.subscribe(events[1]) as live:
        assert await live.next(NEXT_S) == events[2]
    await asyncio.to_thread(truncate, database, 5)
    async with AsyncEventStore(database.dsn) as fresh:
        with pytest.raises(StoreRewoundError) as caught:
            await fresh.subscribe(events[1]).next(NEXT_S)
        assert (caught.value.position, caught.value.event_id, caught.value.found_id) == (2, "old2", "new2")
        assert "'new2'" not in str(caught.value)
        assert 'event "new2" instead of "old2" at position 2' in str(caught.value)


async def test_progress_without_events_has_an_id(store: AsyncEventStore) -> None:
    await store_some(store, 3)
    async with store.subscribe(types="none") as live:
        assert (live.position, live.position_id) == (0, None)
        assert await live.next_or_idle(0.0) is None
        while live.position != 3:
            assert await live.next_or_idle(0.1) is None
        assert live.position_id == "old3"


# ------------------------------------------------------------------------------------------------ servers


async def caught_up(live: AsyncSubscription, version: int) -> None:
    """Take events up to this version."""
    while (await live.next(NEXT_S)).version < version:
        pass


async def ids_of(store: AsyncEventStore) -> list[str]:
    """What is there."""
    return [event.id for event in await store.load()]


def copy(source: Path, target: Path) -> None:
    """A copy of a data folder, with its owners."""
    shutil.rmtree(target, ignore_errors=True)
    subprocess.run(["cp", "-a", str(source), str(target)], check=True)  # noqa: S607 - cp of the PATH


async def replayed(primary: OwnPostgres, standby: OwnPostgres) -> None:
    """Wait until the standby has what was committed so far."""
    end = primary.database.value("SELECT pg_current_wal_insert_lsn()::text")
    has_it = "SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn"
    await eventually(lambda: standby.database.value(has_it, end), "the standby has it")


@pytest.mark.parametrize("new", [0, 1, 5])
async def test_a_restored_backup(new: int) -> None:
    """The same server, with its data of yesterday; what was stored since has other events in its place, or none."""
    with OwnPostgres() as server:
        async with AsyncEventStore(patient(server.database.dsn), reconnect_interval=0.1) as store:
            await store_some(store, 3)
            backup = server.data_dir.parent / "backup"
            await asyncio.to_thread(server.stop)
            await asyncio.to_thread(copy, server.data_dir, backup)
            await asyncio.to_thread(server.start)
            async with store.subscribe() as live:
                (*_, last) = await store_some(store, 3, "lost")
                await caught_up(live, last)
                await asyncio.to_thread(server.stop)
                await asyncio.to_thread(copy, backup, server.data_dir)
                await asyncio.to_thread(server.start)
                if new:
                    with server.database.connect() as admin:
                        admin.execute(INSERT.format(new).encode())
                assert (await rewound(live)).event_id == "lost3"


async def test_a_crash_that_loses_commits() -> None:
    """Commits without `synchronous_commit` are seen before they are safe."""
    with OwnPostgres(wal_writer_delay="10s", synchronous_commit="on") as server:
        dsn = patient(server.database.dsn)
        async with AsyncEventStore(dsn, reconnect_interval=0.1) as store:
            await store_some(store, 3)
            for attempt in range(5):
                async with store.subscribe(END) as live:
                    await eventually(lambda: store.stats()["is_listening"], "it listens")
                    with server.database.connect() as writer:
                        writer.execute("SET synchronous_commit = off")
                        writer.execute(INSERT.replace("'new'", f"'lost{attempt}-'").format(1).encode())
                    seen = await live.next(NEXT_S)
                    await asyncio.to_thread(server.restart, "immediate")
                    if seen.id in await ids_of(store):
                        continue  # it was written by chance
                    await store_some(store, 40, f"later{attempt}-")
                    assert (await rewound(live)).event_id == seen.id
                    return
        raise AssertionError("no commit was lost")


async def test_a_crash_that_loses_nothing() -> None:
    """Neither is an ordinary restart; the sequence may skip versions."""
    with OwnPostgres() as server:
        async with (
            AsyncEventStore(patient(server.database.dsn), reconnect_interval=0.1) as store,
            store.subscribe() as live,
        ):
            stored: list[str] = []
            for mode in ("immediate", "fast", "immediate"):
                await store_some(store, 3, mode + str(len(stored)))
                stored = await ids_of(store)
                await asyncio.to_thread(server.restart, mode)
            await store_some(store, 3)
            seen = [(await live.next(NEXT_S)).id for _ in range(12)]
            assert seen == await ids_of(store)


async def test_a_failover_that_loses_commits() -> None:
    with OwnPostgres() as primary, standby_of(primary) as standby:
        either = either_of(primary, standby)
        async with AsyncEventStore(patient(either.dsn), reconnect_interval=0.1) as store, store.subscribe() as live:
            (*_, last) = await store_some(store, 3)
            await caught_up(live, last)
            await replayed(primary, standby)
            with standby.database.connect() as admin:
                admin.execute("ALTER SYSTEM SET primary_conninfo = ''")
                admin.execute("SELECT pg_reload_conf()")
            sending = "SELECT count(*) FROM pg_stat_replication"
            await eventually(lambda: primary.database.value(sending) == 0, "it follows no more")
            (*_, last) = await store_some(store, 2, "lost")
            await caught_up(live, last)
            await asyncio.to_thread(primary.stop, "immediate")
            standby.database.value("SELECT pg_promote()")
            with standby.database.connect() as admin:
                admin.execute(INSERT.format(40).encode())
            assert (await rewound(live)).event_id == "lost2"


async def test_a_failover_that_loses_nothing() -> None:
    with OwnPostgres() as primary, standby_of(primary) as standby:
        either = either_of(primary, standby)
        async with AsyncEventStore(patient(either.dsn), reconnect_interval=0.1) as store, store.subscribe() as live:
            (*_, last) = await store_some(store, 3)
            await caught_up(live, last)
            await replayed(primary, standby)
            await asyncio.to_thread(primary.stop, "immediate")
            standby.database.value("SELECT pg_promote()")
            with standby.database.connect() as admin:
                admin.execute(INSERT.format(2).encode())
            assert [(await live.next(NEXT_S)).id for _ in range(2)] == ["new1", "new2"]


ATTEMPTS = 8
"""What a crash is to lose is written every ten seconds; one of so many crashes comes before that."""


def draw_in_vain(admin: psycopg.Connection) -> int:
    """Draw versions that a crash loses, if it comes soon; gives the last one."""
    admin.execute("CHECKPOINT")
    admin.execute("SET synchronous_commit = off")
    row = admin.execute("SELECT max(nextval('events_version_seq')) FROM generate_series(1, 1000)").fetchone()
    assert row is not None
    return int(row[0])


def has_gone_back(database: Database, drawn: int) -> bool:
    """Whether a crash has lost them."""
    return int(str(database.value("SELECT last_value FROM events_version_seq"))) < drawn


async def test_a_crash_behind_a_pooler(pgbouncer_program: str) -> None:
    """S9: the connection stays, and what was known of the server before is of no use.

    Versions that were drawn and never stored are drawn again. To know them as final would be to pass whoever has one.
    """
    with (
        OwnPostgres(wal_writer_delay="10s", synchronous_commit="on") as server,
        PgBouncer(pgbouncer_program, server.database, "transaction") as pooler,
    ):
        options = {
            "listen_dsn": patient(server.database.dsn),
            "enable_prepared_stmts": False,
            "reconnect_interval": 0.1,
        }
        async with AsyncEventStore(patient(pooler.dsn), **options) as store, store.subscribe() as live:  # type: ignore[arg-type]
            await store_some(store, 1)
            await caught_up(live, 1)
            for _ in range(ATTEMPTS):
                with server.database.connect() as admin:
                    drawn = draw_in_vain(admin)
                looks = store.stats()["lock_looks"]
                await eventually(lambda: store.stats()["lock_looks"] > looks + 1, "it has looked since")  # noqa: B023
                await asyncio.to_thread(server.restart, "immediate")
                if has_gone_back(server.database, drawn):
                    break
            with server.database.connect() as slow:
                slow.execute("BEGIN")
                low = slow.execute(
                    "INSERT INTO events (id, aggregate_id, event_type) VALUES ('slow', 'a', 'T') RETURNING version"
                ).fetchone()
                assert low is not None
                assert low[0] < drawn, "the sequence went back"
                with server.database.connect() as quick:
                    quick.execute(INSERT.format(1).encode())
                waiting = asyncio.create_task(live.next(NEXT_S))
                await eventually(lambda: store.stats()["gap_seconds"] is not None, "the gap is seen")
                slow.execute("COMMIT")
            assert [(await waiting).id, (await live.next(NEXT_S)).id] == ["slow", "new1"]


# ------------------------------------------------------------------------------------- the sequence and the triggers


async def test_a_sequence_behind_the_table_is_refused(store: AsyncEventStore, database: Database) -> None:
    """S7: as after a restore of the rows alone. The text has what to run."""
    await store.close()
    with database.connect() as admin:
        admin.execute(
            "INSERT INTO events (version, id, aggregate_id, event_type)"
            " SELECT i, 'old' || i, 'a', 'T' FROM generate_series(1, 5) AS i"
        )
    with pytest.raises(SchemaMismatchError, match="behind version 5") as caught:
        await AsyncEventStore(database.dsn).open()
    statement = caught.value.reason[caught.value.reason.index("SELECT pg_catalog.setval") :]
    with database.connect() as admin:
        admin.execute(statement.encode())
    async with AsyncEventStore(database.dsn) as mended:
        assert (await mended.store(Event("T", "a"))).version == 6
        with database.connect() as admin:
            admin.execute("SELECT setval('events_version_seq', 3)")
        with pytest.raises(SchemaMismatchError, match="behind version 6"):
            await all_of(mended.subscribe(3), [])


async def test_a_version_that_exists_is_no_duplicate_of_an_event(store: AsyncEventStore, database: Database) -> None:
    """S7: the sequence was set back under a store that is open."""
    await store.store_batch(Event("T", "a") for _ in range(5))
    with database.connect() as admin:
        admin.execute("SELECT setval('events_version_seq', 1)")
    with pytest.raises(SchemaMismatchError, match="behind version 5"):
        await store.store(Event("T", "a"))
    with pytest.raises(SchemaMismatchError, match="behind version 5"):
        await store.store_batch([Event("T", "a"), Event("T", "b")])
    with pytest.raises(SchemaMismatchError, match="behind version 5"):
        await store.import_events([Event("T", "a")])
    async with await psycopg.AsyncConnection.connect(database.dsn) as conn:
        with pytest.raises(SchemaMismatchError, match="behind the table"):
            await store.store_in(conn, Event("T", "a"))


CHANGES = {
    "ALTER SEQUENCE events_version_seq CACHE 50": "CACHE 1",
    "ALTER SEQUENCE events_version_seq INCREMENT 2": "INCREMENT 1",
    "ALTER TABLE events ALTER version DROP DEFAULT": "default of its column version",
    "ALTER SEQUENCE events_version_seq OWNED BY NONE; CREATE SEQUENCE another OWNED BY events.version;"
    " ALTER TABLE events ALTER version SET DEFAULT nextval('another')": "from another sequence now, another",
}


@pytest.mark.parametrize("change", CHANGES)
async def test_what_must_hold_is_looked_at_again(store: AsyncEventStore, database: Database, change: str) -> None:
    """S10: after the store was opened."""
    async with store.subscribe() as live:
        await eventually(lambda: store.stats()["is_listening"], "it listens")
        with database.connect() as admin:
            admin.execute(change.encode())
        with pytest.raises(SchemaMismatchError, match=CHANGES[change]):
            await live.next(NEXT_S)


async def test_writers_that_cache_versions_are_not_passed(store: AsyncEventStore, database: Database) -> None:
    """S10: their later events come before what others have stored meanwhile."""
    async with store.subscribe() as live:
        await eventually(lambda: store.stats()["is_listening"], "it listens")
        insert = b"INSERT INTO events (id, aggregate_id, event_type) VALUES (gen_random_uuid()::text, 'a', 'T')"
        with database.connect() as admin, database.connect() as cacher:
            admin.execute("ALTER SEQUENCE events_version_seq CACHE 50")
            cacher.execute(insert)
            admin.execute(insert)
            seen: list[StoredEvent] = []
            with pytest.raises(SchemaMismatchError, match="CACHE 1"):
                await all_of(live, seen)
            assert [event.version for event in seen] in ([], [1]), "51 follows a gap that is not empty"


async def test_serial_order_without_its_trigger(database: Database) -> None:
    store = AsyncEventStore(database.dsn)
    await store.enable_serial_order()
    await store.close()
    always = "SELECT tgenabled = 'A' FROM pg_trigger WHERE tgname = %s"
    assert database.value(always, "events_serial"), "also for sessions that replicate"
    async with AsyncEventStore(database.dsn) as store, store.subscribe() as live:
        await store.store(Event("T", "a"))
        await live.next(NEXT_S)
        with database.connect() as admin:
            admin.execute("ALTER TABLE events DISABLE TRIGGER events_serial")
        with pytest.raises(SchemaMismatchError, match="events_serial"):
            await live.next(NEXT_S)


@pytest.mark.parametrize(
    ("change", "reason"),
    [("DISABLE TRIGGER events_guard", "events_guard"), ("SET UNLOGGED", "it is UNLOGGED now")],
)
async def test_what_does_not_affect_readers_is_told(database: Database, change: str, reason: str) -> None:
    """They go on."""
    async with AsyncEventStore(database.dsn) as first:
        await first.enable_guard()
    told: list[Exception] = []
    async with AsyncEventStore(database.dsn, error_handler=told.append) as store:
        live = store.subscribe()
        live._patience = 0.1
        async with live:
            with database.connect() as admin:
                assert database.value("SELECT tgenabled = 'A' FROM pg_trigger WHERE tgname = 'events_guard'")
                admin.execute(f"ALTER TABLE events {change}".encode())
            waiting = asyncio.create_task(live.next(NEXT_S))
            await eventually(lambda: told, "it is told")
            await store.store(Event("T", "a", id="after"))
            event: StoredEvent = await waiting
            assert event.id == "after"
    assert [type(error) for error in told] == [SchemaMismatchError]
    assert reason in str(told[0])


async def test_a_table_of_an_older_release(database: Database) -> None:
    """It has no settled mark, and its triggers are not `ENABLE ALWAYS` until they are asked for again."""
    async with AsyncEventStore(database.dsn) as store:
        await store.enable_guard()
        await store.enable_serial_order()
        await store.store(Event("T", "a", id="e1"))
    names = ("guard", "serial")
    with database.connect() as admin:
        admin.execute("DROP TABLE events_settled")
        admin.execute("DELETE FROM events_migrations WHERE name NOT IN ('events', 'guard', 'serial')")
        for name in names:
            admin.execute(f"ALTER TABLE events ENABLE TRIGGER events_{name}".encode())
        admin.execute("ALTER FUNCTION events_guard() RESET ALL")
    async with AsyncEventStore(database.dsn) as store, store.subscribe() as live:
        assert store.layout()["is_serial"]
        assert (await live.next(NEXT_S)).id == "e1"
        await store.store(Event("T", "a", id="e2"))
        assert (await live.next(NEXT_S)).id == "e2"
        await store.enable_guard()
        await store.enable_serial_order()
        await store.durable_subscriptions()
    assert database.value("SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'events_%%' AND tgenabled = 'A'") == 2
    assert database.value("SELECT proconfig IS NOT NULL FROM pg_proc WHERE proname = 'events_guard'")
    assert database.value("SELECT to_regclass('events_settled') IS NOT NULL")


async def test_the_server_recovers_by_itself() -> None:
    """As when a session is killed, for example because memory is short; the time of its start stays the same."""
    with OwnPostgres(wal_writer_delay="10s", synchronous_commit="on") as server:
        async with AsyncEventStore(patient(server.database.dsn)) as store:
            await store_some(store, 1)
            for _ in range(ATTEMPTS):
                with server.database.connect() as admin, server.database.connect() as other:
                    drawn = draw_in_vain(admin)
                    assert await store.latest_version() == 1, "and what was drawn last is known as final"
                    os.kill(admin.info.backend_pid, signal.SIGKILL)
                    # Until it has noticed, it takes connections.
                    await eventually(lambda: not is_alive(other), "it ends all sessions")
                await eventually(lambda: is_up(server.database), "it has recovered")
                if has_gone_back(server.database, drawn):
                    break
            with server.database.connect() as slow:
                slow.execute("BEGIN")
                low = slow.execute(
                    "INSERT INTO events (id, aggregate_id, event_type) VALUES ('slow', 'a', 'T') RETURNING version"
                ).fetchone()
                assert low is not None
                assert low[0] < drawn, "the sequence went back"
                with server.database.connect() as quick:
                    quick.execute(INSERT.format(1).encode())
                page = await store.load(types="T")
                assert [event.id for event in page] == ["old1", "new1"]
                assert page.safe_since <= 1, "an event may come in between"
                slow.execute("COMMIT")


def is_alive(connection: psycopg.Connection) -> bool:
    """Whether a session goes on."""
    try:
        connection.execute("SELECT 1")
    except psycopg.OperationalError:
        return False
    return True


def is_up(database: Database) -> bool:
    """Whether it accepts connections."""
    try:
        return database.value("SELECT true") is True
    except psycopg.OperationalError:
        return False
