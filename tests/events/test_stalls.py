"""A transaction that stays open: it is named, can be ended, and nothing is ever skipped because of it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from functools import partial

import psycopg
import pytest

from socketio_postgres import (
    END,
    NO_STREAM,
    AsyncEventStore,
    AsyncSubscription,
    Blocker,
    Event,
    EventStore,
    OperationTimeoutError,
    OptionsError,
    Stall,
    StoreStalledError,
)
from tests.fixtures.database import Database, patient
from tests.fixtures.event_schedule import drop_notify_triggers
from tests.fixtures.postgres import OwnPostgres, sessions
from tests.fixtures.proxy import Proxy
from tests.fixtures.waiting import eventually, nothing_arrives

INSERT = "INSERT INTO events (id, aggregate_id, event_type, data) VALUES ('e', 'a', 'T', '\"late\"')"
ANSWER_S = 12.0
"""Of a question during an outage: long enough to open a store on a busy machine."""


async def test_a_function_is_told_and_may_end_it(
    store: AsyncEventStore, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    stalls: list[Stall] = []
    ended: list[bool] = []

    async def end(stall: Stall) -> None:
        stalls.append(stall)
        # Whoever looks at the sequence at this moment is listed, too.
        sleepers = [blocker for blocker in stall.blockers if blocker.application_name == "the sleeper"]
        ended.extend([await strict.end_blocker(blocker) for blocker in sleepers])

    caplog.set_level(logging.WARNING, "socketio_postgres")
    await store.store(Event("T", "a", "before"))
    async with AsyncEventStore(database.dsn, stall_warning=0.1, on_stall=end) as strict, strict.subscribe() as live:
        assert (await live.next(20)).data == "before"
        with database.connect() as writer:
            pid = writer.info.backend_pid
            writer.execute("SET application_name = 'the sleeper'")
            writer.execute("BEGIN")
            writer.execute(INSERT)
            await store.store(Event("T", "a", "waits"))
            assert (await live.next(20)).data == "waits"
            with pytest.raises(psycopg.OperationalError):
                writer.execute("COMMIT")
        await eventually(lambda: ended, "it has the answer")
        # Until the session that was ended is gone, it may be told again.
        stall = stalls[0]
        assert ended[0]
        assert (stall.position, stall.blockers[0].application_name, stall.blockers[0].pid) == (1, "the sleeper", pid)
        assert stall.seconds >= 0.1
        assert "the sleeper" in caplog.text
        assert "after version 1" in caplog.text
        assert not await strict.end_blocker(stall.blockers[0]), "it is gone, and nobody else is meant"


async def test_a_callback_that_ends_by_it_is_told_and_no_longer_listed(
    store: AsyncEventStore, database: Database
) -> None:
    """Also when the function that is told raises."""
    told: list[Exception] = []

    def tell(error: Exception) -> None:
        told.append(error)
        raise RuntimeError("the handler's own mistake")

    async with AsyncEventStore(database.dsn, stall_warning=0.1, on_stall="error", error_handler=tell) as strict:
        callback = await strict.subscribe_to_all(lambda _: None)
        assert strict.active_subscriptions() == ["events_global"]
        with database.connect() as writer:
            writer.execute("BEGIN")
            writer.execute(INSERT)
            await store.store(Event("T", "a", "waits"))
            await eventually(lambda: not callback.is_active, "it has ended")
            writer.execute("COMMIT")
        await eventually(lambda: strict.stats()["subscriptions"] == 0, "it reads no more")
        assert strict.active_subscriptions() == []
        await eventually(lambda: any(isinstance(error, StoreStalledError) for error in told), "it is told")


async def test_an_error_instead(store: AsyncEventStore, database: Database) -> None:
    async with AsyncEventStore(database.dsn, stall_warning=0.1, on_stall="error") as strict:
        lives = [strict.subscribe(), strict.subscribe()]
        for live in lives:
            await live.__aenter__()
        with database.connect() as writer:
            writer.execute("BEGIN")
            writer.execute(INSERT)
            await store.store(Event("T", "a", "waits"))
            for live in lives:
                with pytest.raises(StoreStalledError, match=str(writer.info.backend_pid)) as stalled:
                    await live.next(20)
                assert stalled.value.seconds >= 0.1
                # The oldest; whoever looks at the sequence at this moment is listed, too.
                oldest = stalled.value.blockers[0]
                assert isinstance(oldest, Blocker)
                assert oldest.pid == writer.info.backend_pid
            writer.execute("COMMIT")
        for live in lives:  # the error has ended nothing, and nothing was skipped
            assert [(await live.next(20)).data for _ in range(2)] == ["late", "waits"]
            live.close()


async def test_an_outage_while_a_transaction_is_open(store: AsyncEventStore, database: Database) -> None:
    """Who holds readers up cannot be asked then; the subscription waits, as for everything else."""
    with Proxy(database) as proxy:
        async with (
            AsyncEventStore(patient(proxy.dsn), stall_warning=0.1, answer_timeout=ANSWER_S) as far,
            far.subscribe() as live,
        ):
            await store.store(Event("T", "a", "before"))
            assert (await live.next(20)).data == "before"
            with database.connect() as writer:
                writer.execute("BEGIN")
                writer.execute(INSERT)
                await store.store(Event("T", "a", "waits"))
                waiting = asyncio.create_task(live.next(60))
                await eventually(lambda: (far.stats()["gap_seconds"] or 0) > 0.1, "it is held up")
                proxy.refuse()
                proxy.reset()
                await eventually(lambda: waiting.done() or far.stats()["reader_outage"], "it notices the outage")
                await asyncio.sleep(ANSWER_S + 2)
                assert not waiting.done(), waiting
                proxy.accept()
                writer.execute("COMMIT")
            assert (await waiting).data == "late"


async def test_a_prepared_transaction_is_rolled_back(store: AsyncEventStore, database: Database) -> None:
    drop_notify_triggers(database)
    with database.connect() as writer:
        writer.execute("BEGIN")
        writer.execute(INSERT)
        writer.execute("PREPARE TRANSACTION 'it''s open'")
    (blocker,) = await store.blockers()
    assert blocker.prepared == "it's open"
    assert await store.end_blocker(blocker)
    assert not await store.end_blocker(blocker)
    assert await store.blockers() == []


async def test_two_phases_and_notifications_do_not_go_together(our_store: AsyncEventStore, database: Database) -> None:
    """S18: PostgreSQL prepares no transaction that notifies; without the trigger, readers wait for the second phase."""
    async with await psycopg.AsyncConnection.connect(database.dsn) as conn:
        await our_store.store_in(conn, Event("T", "a", "late"), expected=NO_STREAM)
        with pytest.raises(psycopg.errors.FeatureNotSupported, match="NOTIFY"):
            await conn.execute("PREPARE TRANSACTION 'two'")
        await conn.rollback()
        with database.connect() as admin:
            admin.execute("ALTER TABLE events DISABLE TRIGGER events_wake")
        await our_store.store_in(conn, Event("T", "a", "late"), expected=NO_STREAM)
        await conn.execute("PREPARE TRANSACTION 'two'")
        await conn.rollback()
        await our_store.store(Event("T", "b", "waits"))
        async with our_store.subscribe() as live:
            with pytest.raises(OperationTimeoutError):
                await live.next(0.5)
            with database.connect() as admin:
                admin.execute("COMMIT PREPARED 'two'")
            assert [(await live.next(60)).data for _ in range(2)] == ["late", "waits"]


async def test_a_number_that_belongs_to_somebody_else_now(store: AsyncEventStore, database: Database) -> None:
    with database.connect() as writer:
        writer.execute("BEGIN")
        writer.execute(INSERT)
        (blocker,) = await store.blockers()
        writer.execute("ROLLBACK")
        writer.execute("BEGIN")
        writer.execute("SELECT 1")
        assert not await store.end_blocker(blocker)
        writer.execute("COMMIT")


@pytest.mark.parametrize("is_coroutine", [False, True])
def test_from_threads(database: Database, is_coroutine: bool) -> None:
    stalls: list[Stall] = []

    async def note(stall: Stall) -> None:
        stalls.append(stall)

    on_stall = note if is_coroutine else stalls.append
    with EventStore(database.dsn, stall_warning=0.05, on_stall=on_stall) as store, store.subscribe() as live:
        with database.connect() as writer:
            writer.execute("BEGIN")
            writer.execute(INSERT)
            store.store(Event("T", "a", "waits"))
            while not stalls:
                with pytest.raises(TimeoutError):
                    live.next(0.1)
        assert [live.next(20).data for _ in range(2)] == ["late", "waits"]


def test_no_such_policy() -> None:
    with pytest.raises(OptionsError, match="on_stall"):
        AsyncEventStore("", on_stall="skip")  # type: ignore[arg-type]


async def test_the_warning_is_not_repeated_at_once(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    async with AsyncEventStore(database.dsn, stall_warning=0.3) as store, store.subscribe() as live:

        async def is_silent() -> bool:
            count = caplog.text.count("events after version")
            await store._look_for_stall()
            return caplog.text.count("events after version") == count

        with database.connect() as writer:
            writer.execute("BEGIN")
            writer.execute(INSERT)
            await store.store(Event("T", "a"))
            waiting = asyncio.create_task(live.next(60))
            await eventually(lambda: "events after version 0 wait" in caplog.text, "it is logged")
            # On a slow machine the next warning may be due already, but not at each look.
            await eventually(is_silent, "a look logs nothing")
        await waiting


async def take(live: AsyncSubscription, count: int) -> list[int]:
    """The versions of the next events, which must come."""
    return [(await live.next(60)).version for _ in range(count)]


async def test_who_starts_beside_an_open_transaction(store: AsyncEventStore, database: Database) -> None:
    """S15: what that transaction cannot come before is given out, and `load` passes holes that are long final."""
    await store.durable_subscriptions()  # on go-sync-kit's table the side tables are made on first use
    await store.store_batch(Event("T", "a", i) for i in range(3))
    with database.connect() as writer:
        writer.execute("SELECT nextval('events_version_seq')")
        await store.store_batch(Event("T", "a", i) for i in range(3))
        async with store.subscribe() as live:
            assert await take(live, 6) == [1, 2, 3, 5, 6, 7]
            # Nobody waits long for a mark that is left at the end.
            await eventually(lambda: database.value("SELECT max(version) FROM events_settled") == 7, "it is marked")
        writer.execute("BEGIN")
        writer.execute(INSERT)
        await store.store(Event("T", "a"))
        await store.close()
        async with AsyncEventStore(database.dsn) as fresh:
            page = await fresh.load()
            assert ([event.version for event in page], page.safe_since) == ([1, 2, 3, 5, 6, 7, 9], 7)
            async with fresh.subscribe() as live, fresh.subscribe(7) as late:
                assert await take(live, 6) == [1, 2, 3, 5, 6, 7]
                for each in (live, late):
                    with pytest.raises(OperationTimeoutError):
                        await each.next(0.5)
                writer.execute("COMMIT")
                assert await take(live, 2) == [8, 9]
                assert await take(late, 2) == [8, 9]


async def test_a_mark_of_another_history_counts_for_nothing(store: AsyncEventStore, database: Database) -> None:
    await store.durable_subscriptions()
    await store.store_batch(Event("T", "a") for _ in range(3))
    async with store.subscribe() as live:
        await take(live, 3)
        await eventually(lambda: database.value("SELECT max(version) FROM events_settled") == 3, "it is marked")
    await store.close()
    with database.connect() as writer:
        writer.execute("TRUNCATE events RESTART IDENTITY")
        writer.execute("SELECT nextval('events_version_seq')")
        writer.execute("BEGIN")
        writer.execute(INSERT)
        async with AsyncEventStore(database.dsn) as fresh, fresh.subscribe() as live:
            await eventually(lambda: fresh.is_listener_connected, "it listens")
            await fresh.store(Event("T", "a"))
            with pytest.raises(OperationTimeoutError):
                await live.next(0.5)
            assert (await fresh.load()).safe_since == 0
            writer.execute("COMMIT")
            assert await take(live, 2) == [2, 3]
            is_replaced = "SELECT count(*) = 1 FROM events_settled m JOIN events e USING (version, id)"
            await eventually(lambda: database.value(is_replaced), "the mark is replaced")


async def test_without_a_mark_the_history_is_skipped_afterwards(go_store: AsyncEventStore, database: Database) -> None:
    """Up to the first hole it is given out; then, when that transaction has ended, nobody reads through all of it."""
    with database.connect() as admin:
        admin.execute(
            "INSERT INTO events (id, aggregate_id, event_type)"
            " SELECT 'e' || i, 'a', 'T' FROM generate_series(1, 3) AS i"
        )
        admin.execute("SELECT nextval('events_version_seq')")
        admin.execute("ALTER TABLE events DISABLE TRIGGER USER")
        admin.execute(
            "INSERT INTO events (id, aggregate_id, event_type)"
            " SELECT 'f' || i, 'a', 'T' FROM generate_series(1, 30000) AS i"
        )
        admin.execute("ALTER TABLE events ENABLE TRIGGER USER")
    with database.connect() as writer:
        writer.execute("BEGIN")
        writer.execute(INSERT)
        async with go_store.subscribe() as live:
            assert await take(live, 3) == [1, 2, 3]
            reads = go_store.stats()["read"]
            writer.execute("COMMIT")
            versions = await take(live, 30001)
            assert versions == list(range(5, 30006))
            assert go_store.stats()["read"] - reads < 5000


async def test_waiting_reads_nothing_again(go_store: AsyncEventStore, database: Database) -> None:
    """What is beyond the gap is read once, and the locks at most 200 times a second, however often others commit."""
    async with AsyncEventStore(database.dsn, poll_interval=600.0) as store, store.subscribe() as live:
        await eventually(lambda: store.stats()["is_listening"], "it listens")
        with database.connect() as writer:
            writer.execute("BEGIN")
            writer.execute(INSERT)
            await go_store.store_batch(Event("T", "a", i) for i in range(500))
            await eventually(lambda: store.stats()["gap_seconds"] is not None, "the gap is seen")
            began, before = time.monotonic(), store.stats()
            for i in range(200):
                await go_store.store(Event("T", "a", i))
            await eventually(lambda: store.stats()["notifications"] > before["notifications"], "it hears of others")
            after, seconds = store.stats(), time.monotonic() - began
            assert after["reads"] - before["reads"] <= 2
            assert after["lock_looks"] - before["lock_looks"] <= 200 * seconds + 2
            writer.execute("COMMIT")
        assert await take(live, 701) == list(range(1, 702))


async def test_who_began_later_holds_up_nothing_before(store: AsyncEventStore, database: Database) -> None:
    """Also if the reader last saw nobody but the earlier one when the event was not there yet."""
    async with AsyncEventStore(database.dsn, poll_interval=0.05) as reader, reader.subscribe() as live:
        await eventually(lambda: reader.is_listener_connected, "it listens")
        with database.connect() as early, database.connect() as late:
            early.execute("BEGIN")
            early.execute(INSERT)
            looks = reader.stats()["lock_looks"]
            await eventually(lambda: reader.stats()["lock_looks"] > looks + 1, "the earlier one is seen")
            await store.store(Event("T", "a"))
            await eventually(lambda: reader.stats()["gap_seconds"] is not None, "the gap is seen")
            late.execute("BEGIN")
            late.execute(INSERT.replace("'e'", "'late'").encode())
            early.execute("ROLLBACK")
            assert await take(live, 1) == [2]
            late.execute("COMMIT")
            assert await take(live, 1) == [3]


async def test_whoever_gives_up_to_begin_changes_nothing(go_store: AsyncEventStore, database: Database) -> None:
    """What is known of the writers stays known, although a look at them was given up."""
    async with AsyncEventStore(database.dsn, max_open_conns=1) as reader, reader.subscribe() as live:
        await eventually(lambda: reader.is_listener_connected, "it listens")
        with database.connect() as early, database.connect() as late:
            early.execute("BEGIN")
            early.execute(INSERT)
            await go_store.store(Event("T", "a"))
            await eventually(lambda: reader.stats()["gap_seconds"] is not None, "the gap is seen")
            late.execute("BEGIN")
            late.execute(INSERT.replace("'e'", "'late'").encode())
            before = sessions(database)
            for _ in range(10):
                entering = [asyncio.ensure_future(reader.subscribe(END).__aenter__()) for _ in range(50)]
                await asyncio.sleep(0.02)
                for each in entering:
                    each.cancel()
                await asyncio.gather(*entering, return_exceptions=True)
                seen = reader.stats()["lock_looks"] + 1
                await eventually(partial(lambda seen: reader.stats()["lock_looks"] > seen, seen), "the reader looks")
            early.execute("ROLLBACK")
            if set(sessions(database)) <= set(before):  # otherwise it was slow to answer, and a connection was given up
                assert await take(live, 1) == [2]
            late.execute("COMMIT")


async def test_a_gap_that_is_filled_silently(go_store: AsyncEventStore, database: Database) -> None:
    """Without a notification, while another transaction stays open."""
    with database.connect() as admin:
        admin.execute("ALTER TABLE events DISABLE TRIGGER USER")
    async with AsyncEventStore(database.dsn) as store, store.subscribe() as live:
        with database.connect() as first, database.connect() as second:
            for writer, name in ((first, "first"), (second, "second")):
                writer.execute("BEGIN")
                writer.execute(INSERT.replace("'e'", f"'{name}'").encode())
            await go_store.store(Event("T", "a"))
            await eventually(lambda: store.stats()["gap_seconds"] is not None, "the gap is seen")
            first.execute("COMMIT")
            assert await take(live, 1) == [1]
            second.execute("ROLLBACK")
            assert await take(live, 1) == [3]


READERS = 20


def looks(server: OwnPostgres) -> int:
    """How often anybody has looked at the locks of writers."""
    return sum("virtualtransaction" in line for line in server.log_path.read_text(errors="replace").splitlines())


async def test_all_readers_together_look_200_times_a_second() -> None:
    """Counted by the server, and however often others commit. Stores that differ in their settings share nothing."""
    with OwnPostgres(log_statement="all") as server:
        dsn = patient(server.database.dsn)
        async with AsyncEventStore(dsn) as other, contextlib.AsyncExitStack() as stack:
            await other.store(Event("T", "a"))
            readers = [AsyncEventStore(dsn, poll_interval=600.0 + i, max_open_conns=1) for i in range(READERS)]
            lives = []
            for reader in readers:
                await stack.enter_async_context(reader)
                lives.append(await stack.enter_async_context(reader.subscribe()))
            assert await asyncio.gather(*(take(live, 1) for live in lives)) == [[1]] * READERS
            await eventually(lambda: all(reader.is_listener_connected for reader in readers), "all listen")
            with server.database.connect() as writer:
                writer.execute("BEGIN")
                writer.execute(INSERT)
                await other.store(Event("T", "a"))

                def has_each_looked(times: int, since: list[int]) -> bool:
                    now = [reader.stats()["lock_looks"] for reader in readers]
                    return all(each - before >= times for each, before in zip(now, since, strict=True))

                start = [reader.stats()["lock_looks"] for reader in readers]
                await eventually(lambda: has_each_looked(2, start), "each knows of the others")
                began, before = time.monotonic(), looks(server)
                for i in range(200):
                    await other.store(Event("T", "a", i))
                await eventually(lambda: has_each_looked(5, start), "each goes on looking")
                count, seconds = looks(server) - before, time.monotonic() - began
                # Besides, one of each may have been on its way.
                assert count <= 200 * seconds + 2 * READERS
                writer.execute("ROLLBACK")
            for live in lives:
                assert await take(live, 201) == list(range(3, 204))


READER = "SELECT pg_advisory_lock_shared(x'73696f2e6c6f6f6b'::bigint)"
"""What the listening session of a reader does, to be counted."""


async def test_readers_that_have_nothing_to_do_share_the_looks_too(database: Database) -> None:
    """Forty of them: each looks every 0.2 seconds at most, however often it polls."""
    async with AsyncEventStore(database.dsn, poll_interval=0.01) as store, store.subscribe():
        await eventually(lambda: store.is_listener_connected, "it listens")
        with contextlib.ExitStack() as stack:
            for _ in range(40):
                stack.enter_context(database.connect()).execute(READER)
            start = store.stats()["lock_looks"]
            await eventually(lambda: store.stats()["lock_looks"] >= start + 2, "it knows of them")
            began, before = time.monotonic(), store.stats()
            await eventually(lambda: store.stats()["reads"] >= before["reads"] + 100, "it polls")
            looked = store.stats()["lock_looks"] - before["lock_looks"]
            assert looked <= (time.monotonic() - began) / 0.2 + 1


async def test_a_thousand_readers_still_poll() -> None:
    """Each looks every 5 seconds at most, and yet reads without a notification what fills a gap."""
    count = 1000
    with OwnPostgres(max_prepared_transactions=str(count)) as server:
        database = server.database
        with database.connect() as admin:
            for number in range(count):
                admin.execute("BEGIN")
                admin.execute(READER.replace("advisory_lock", "advisory_xact_lock"))
                admin.execute(f"PREPARE TRANSACTION 'reader {number}'".encode())
        async with AsyncEventStore(patient(database.dsn), poll_interval=0.1) as store, store.subscribe() as live:
            await store.store(Event("T", "a"))
            assert await take(live, 1) == [1]
            with database.connect() as writer:
                writer.execute("ALTER TABLE events DISABLE TRIGGER USER")
                writer.execute("BEGIN")
                writer.execute(INSERT)
                await store.store(Event("T", "a"))
                looks = store.stats()["lock_looks"]
                await eventually(lambda: store.stats()["gap_seconds"] is not None, "it waits")
                await eventually(lambda: store.stats()["lock_looks"] > looks, "it knows of the others")
                began, looks = time.monotonic(), store.stats()["lock_looks"]
                writer.execute("COMMIT")
            assert await take(live, 2) == [2, 3]
            await asyncio.sleep(1)  # it polls, and nobody looks
            # The first one may be due at once.
            assert store.stats()["lock_looks"] - looks <= (time.monotonic() - began) / 5 + 1


async def test_those_who_ask_at_the_same_time_share_a_look() -> None:
    """Each needs one that begins after it has asked, and nobody needs one of its own."""
    with OwnPostgres(log_statement="all") as server, Proxy(server.database) as proxy:
        async with AsyncEventStore(patient(proxy.dsn)) as store:
            await store.store(Event("T", "a"))
            assert await store.latest_version() == 1
            before = looks(server)
            links = proxy.links
            for link in links:
                link.freeze("to_server")
            asking = [asyncio.create_task(store.latest_version()) for _ in range(500)]
            await nothing_arrives()
            for link in links:
                link.thaw()
            assert await asyncio.wait_for(asyncio.gather(*asking), 60) == [1] * 500
            assert looks(server) - before <= 10


@pytest.mark.parametrize("held", ["row", "table"])
async def test_nobody_waits_for_the_settled_mark(our_store: AsyncEventStore, database: Database, held: str) -> None:
    """Readers go on while somebody holds it, and write it again afterwards."""
    lock = {"row": "SELECT FROM events_settled FOR UPDATE", "table": "LOCK TABLE events_settled"}[held]
    mark = "SELECT coalesce(max(version), 0) FROM events_settled"
    async with our_store.subscribe() as live:
        stored = await our_store.store(Event("T", "a"))
        await live.next(20)
        await eventually(lambda: database.value(mark) == stored.version, "the mark is there")
        with database.connect() as admin:
            admin.execute("BEGIN")
            admin.execute(lock.encode())
            began = time.monotonic()
            while time.monotonic() < began + 3:  # at least once in a second it is to be written
                stored = await our_store.store(Event("T", "a"))
                assert (await live.next(60)).version == stored.version
            if held == "table":
                async with AsyncEventStore(database.dsn, poll_interval=0.5) as other, other.subscribe() as late:
                    assert (await late.next(60)).version == 1
            admin.execute("COMMIT")
        stored = await our_store.store(Event("T", "a"))
        await eventually(lambda: database.value(mark) == stored.version, "it is written again")


async def test_of_those_who_begin_at_the_end_one_looks() -> None:
    """However many subscriptions wait for what is open when they begin."""
    with OwnPostgres(log_statement="all") as server:
        async with AsyncEventStore(patient(server.database.dsn)) as store:
            await store.store(Event("T", "a"))
            with server.database.connect() as writer:
                writer.execute("BEGIN")
                writer.execute(INSERT)
                began, before = time.monotonic(), looks(server)
                lives = [store.subscribe(END) for _ in range(100)]
                entering = [asyncio.ensure_future(live.__aenter__()) for live in lives]
                await eventually(lambda: looks(server) >= before + 20, "one goes on looking")
                await asyncio.sleep(1)
                assert looks(server) - before <= 200 * (time.monotonic() - began) + 2
                writer.execute("COMMIT")
                await asyncio.gather(*entering)
            await store.store(Event("T", "a"))
            for live in lives:
                assert await take(live, 1) == [3]
                live.close()


async def test_whoever_looks_is_no_blocker(our_store: AsyncEventStore, database: Database) -> None:
    """A look at the sequence takes the same lock as a writer does, for a moment."""
    look = "SELECT pg_sequence_last_value('events_version_seq'), pg_sleep(0.7)"
    holders = (
        "SELECT array_agg(virtualtransaction ORDER BY pid) FROM pg_locks"
        " WHERE relation = 'events_version_seq'::regclass AND mode = 'RowExclusiveLock' AND granted"
    )
    with database.connect() as writer, database.connect() as looking, writer.transaction():
        await our_store.store_batch([Event("T", "a")])
        writer.execute("INSERT INTO events (id, aggregate_id, event_type) VALUES ('open', 'b', 'T')")

        async def is_told() -> bool:
            looks = asyncio.create_task(asyncio.to_thread(looking.execute, look))
            before: list[str] = []
            while not looks.done() and len(before) != 2:
                await asyncio.sleep(0)
                before = list(database.value(holders) or [])  # type: ignore[call-overload]
            pids = [blocker.pid for blocker in await our_store.blockers()]
            is_comparable = before == database.value(holders)
            await looks
            return is_comparable and pids == [writer.info.backend_pid]

        await eventually(is_told, "the writer alone is named")
