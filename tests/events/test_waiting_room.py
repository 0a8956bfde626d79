"""Calls whose lock or id is held elsewhere: they wait without a connection, in order, and hinder nobody."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable

import psycopg
import pytest

from socketio_postgres import (
    EXISTS,
    NO_STREAM,
    AggregateIdTooLongError,
    AggregateLockedError,
    AsyncEventStore,
    BufferFullError,
    Event,
    PayloadTooLargeError,
)
from socketio_postgres.events.event import ExpectedVersion
from tests.fixtures.database import Database, patient
from tests.fixtures.postgres import OwnPostgres
from tests.fixtures.waiting import eventually, nothing_arrives

WAITERS = 1000
LIMIT_S = 60
PATIENT_S = 300.0
"""Limits that are longer than a test waits, so that they end nothing that waits where it must not."""
TURN_S = 1.0
"""Within so long a call that need not wait has its turn, or is told that it had to wait."""


async def test_waiters_cost_the_others_nothing(table: str, database: Database) -> None:
    """A thousand of them, on two connections; and once the lock falls, all succeed."""
    del table
    async with (
        AsyncEventStore(database.dsn, max_open_conns=2, lock_wait=PATIENT_S, answer_timeout=PATIENT_S) as store,
        await psycopg.AsyncConnection.connect(database.dsn) as user,
    ):
        first = await store.store(Event("T", "hot"))
        await store.store_in(user, Event("T", "hot", "user's"), expected=first.version)
        calls = [
            asyncio.create_task(store.store(Event("T", "hot", number), expected=EXISTS)) for number in range(WAITERS)
        ]
        await eventually(lambda: store.stats()["store_alone"] > 0, "they wait")
        for number in range(20):
            await asyncio.wait_for(store.store(Event("T", f"free{number}"), expected=0), LIMIT_S)
            assert len(await asyncio.wait_for(store.load_by_aggregate("hot"), LIMIT_S)) == 1
        assert not any(call.done() for call in calls)
        await user.commit()
        await asyncio.wait_for(asyncio.gather(*calls), LIMIT_S)
        events = await store.load_by_aggregate("hot")
    assert [event.data for event in events] == [None, "user's", *range(WAITERS)], "first come, first served"


@pytest.mark.parametrize("expected", [None, 0], ids=["unconditional", "conditional"])
async def test_an_id_that_another_transaction_holds(table: str, database: Database, expected: int | None) -> None:
    """Only the call with this id waits, and then gets the true reason."""
    del table
    given = {} if expected is None else {"expected": expected}
    async with (
        AsyncEventStore(database.dsn, lock_wait=PATIENT_S, answer_timeout=PATIENT_S) as store,
        await psycopg.AsyncConnection.connect(database.dsn) as user,
    ):
        await store.store_in(user, Event("T", "a", 1, id="e1"))
        same = asyncio.create_task(store.store(Event("T", "a", 1, id="e1")))
        taken = asyncio.create_task(store.store(Event("T", "b", 2, id="e1"), **given))
        await eventually(lambda: store.stats()["store_alone"] > 0, "they have stepped aside")
        for number in range(10):
            await asyncio.wait_for(store.store(Event("T", "c", id=f"c{number}")), LIMIT_S)
        merged = [store.store(Event("T", f"d{number}", id=f"d{number}"), **given) for number in range(100)]
        await asyncio.wait_for(asyncio.gather(*merged), LIMIT_S)
        assert not same.done()
        assert not taken.done()
        await user.commit()
        assert (await asyncio.wait_for(same, LIMIT_S)).is_duplicate
        with pytest.raises(Exception, match="taken by the event of version"):
            await asyncio.wait_for(taken, LIMIT_S)


async def test_whoever_waits_too_long_is_told_for_whom(store: AsyncEventStore, database: Database) -> None:
    async with (
        AsyncEventStore(database.dsn, lock_wait=0.5) as hasty,
        await psycopg.AsyncConnection.connect(database.dsn, application_name="the holder") as user,
    ):
        await store.store_in(user, Event("T", "a", id="e1"), expected=NO_STREAM)
        calls = [
            hasty.store(Event("T", "a")),
            hasty.store_batch([Event("T", "b"), Event("T", "a")], expected={"b": NO_STREAM}),
            hasty.import_events([Event("T", "c"), Event("T", "a")]),
            hasty.store(Event("T", "other", id="e1")),
        ]
        locked = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), LIMIT_S)
        *named, by_id = locked
        for error in named:
            assert isinstance(error, AggregateLockedError)
            assert (error.aggregate_id, error.pid) == ("a", user.info.backend_pid)
            assert (error.application_name, error.state) == ("the holder", "idle in transaction")
            assert error.seconds is not None
            assert error.seconds >= 0.4
            assert "the holder" in str(error)
        assert isinstance(by_id, AggregateLockedError)
        assert (by_id.aggregate_id, by_id.pid) == ("other", None), "its lock is free"
        await eventually(lambda: hasty.stats()["store_waiting"] == 0, "nobody waits any more")
        await user.rollback()
    assert len(await store.load()) == 0


async def test_all_who_have_waited_too_long_share_a_look_at_the_locks() -> None:
    """Each is told who holds an aggregate of its own."""
    with OwnPostgres(log_statement="all") as server:
        dsn = patient(server.database.dsn)
        async with (
            AsyncEventStore(dsn, lock_wait=0.5) as store,
            await psycopg.AsyncConnection.connect(dsn) as user,
            await psycopg.AsyncConnection.connect(dsn) as other,
        ):
            held = [Event("T", f"a{number}") for number in range(100)]
            await store.store_batch_in(user, held, expected={event.aggregate_id: 0 for event in held})
            await store.store_in(other, Event("T", "b"), expected=NO_STREAM)
            calls = [[Event("T", event.aggregate_id)] for event in held]
            calls += [[Event("T", "b"), Event("T", "b")] for _ in range(100)]
            storing = [store.store_batch(events) for events in calls]
            errors = await asyncio.wait_for(asyncio.gather(*storing, return_exceptions=True), LIMIT_S)
            pids = [user.info.backend_pid] * 100 + [other.info.backend_pid] * 100
        for error, events, pid in zip(errors, calls, pids, strict=True):
            assert isinstance(error, AggregateLockedError)
            assert (error.aggregate_id, error.pid) == (events[-1].aggregate_id, pid)
        asked = sum("s.xact_start" in line for line in server.log_path.read_text(errors="replace").splitlines())
        assert asked <= 20, "all but a few of the 200 have waited equally long"


@pytest.mark.parametrize("shares", [True, False], ids=["one aggregate", "many aggregates"])
async def test_arrivals_do_not_make_those_who_wait_look_more_often(*, shares: bool) -> None:
    """A look is at each newcomer that does not line up behind others; besides, there is one every 25 to 50 ms."""
    with OwnPostgres(log_statement="all") as server:
        dsn = patient(server.database.dsn)

        def looks() -> list[str]:
            """The locks that each attempt of the waiting room asked for."""
            lines = server.log_path.read_text(errors="replace").splitlines()
            return [line for line in lines if "parameters" in line.lower() and "waits" in line]

        async with AsyncEventStore(dsn) as store, await psycopg.AsyncConnection.connect(dsn) as user:
            held = [Event("T", f"hot{number}") for number in range(1 if shares else 300)]
            await store.store_batch_in(user, [Event("T", "waits"), *held], expected={"waits": 0})
            calls = [asyncio.create_task(store.store(Event("T", "waits"), expected=EXISTS))]
            await eventually(lambda: store.stats()["store_alone"] > 0, "it waits")
            began, before = time.monotonic(), len(looks())
            for number in range(300):
                event = Event("T", "waits" if shares else f"hot{number}")
                calls.append(asyncio.create_task(store.store(event, expected=EXISTS)))
                await asyncio.sleep(0.005)
            count, seconds = len(looks()) - before, time.monotonic() - began
            assert count <= seconds / 0.025 + 20
            await user.commit()
            await asyncio.wait_for(asyncio.gather(*calls), LIMIT_S)


async def test_a_bounded_number_of_calls_waits(database: Database) -> None:
    """The others wait outside, or are refused."""
    async with (
        AsyncEventStore(database.dsn, buffer_count=10, on_full="raise") as strict,
        AsyncEventStore(database.dsn, buffer_count=10) as patient,
        await psycopg.AsyncConnection.connect(database.dsn) as user,
    ):
        await strict.store_in(user, Event("T", "a"), expected=NO_STREAM)
        calls = [asyncio.create_task(each.store(Event("T", "a"))) for _ in range(40) for each in (strict, patient)]
        await eventually(lambda: patient.stats()["store_waiting"] == 10, "ten wait")
        await eventually(lambda: sum(call.done() for call in calls) >= 30, "the others are refused")
        refused = [call for call in calls if call.done()]
        assert len(refused) == 30
        for call in refused:
            with pytest.raises(BufferFullError):
                await call
        await user.commit()
        results = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), LIMIT_S)
        assert sum(not isinstance(result, BaseException) for result in results) == 50
        assert len(await patient.load()) == 51


async def test_whoever_waits_outside_is_let_in_first(database: Database) -> None:
    """Also before those who come in the moment in which there is room."""
    async with AsyncEventStore(database.dsn, buffer_count=2) as store:
        await store.store(Event("T", "a"))
        calls = []
        for number in range(600):
            calls.append(asyncio.create_task(store.store(Event("T", "a", number))))
            await asyncio.sleep(0.001 if number % 10 == 0 else 0)
        results = await asyncio.wait_for(asyncio.gather(*calls), LIMIT_S)
        versions = [result.version for result in results]
        assert versions == sorted(versions)


async def test_whoever_goes_away_keeps_nobody_out(database: Database) -> None:
    async with (
        AsyncEventStore(database.dsn, buffer_count=2) as store,
        await psycopg.AsyncConnection.connect(database.dsn) as user,
    ):
        await store.store_in(user, Event("T", "a"), expected=NO_STREAM)
        inside = [asyncio.create_task(store.store(Event("T", "a"))) for _ in range(2)]
        await eventually(lambda: store.stats()["store_waiting"] == 2, "it is full")
        outside = [asyncio.create_task(store.store(Event("T", "b", number))) for number in range(20)]
        await asyncio.sleep(0.1)
        for gone in outside[::2]:
            gone.cancel()
        await user.commit()
        results = await asyncio.wait_for(asyncio.gather(*inside, *outside[1::2]), LIMIT_S)
        assert [result.version for result in results] == sorted(result.version for result in results)
        assert [event.data for event in await store.load_by_aggregate("b")] == list(range(1, 20, 2))


def test_whoever_was_refused_keeps_nobody_out(database: Database) -> None:
    """`on_full="raise"`: while somebody has not noticed the refusal yet, there may be room for others again."""

    async def run() -> None:
        async with AsyncEventStore(database.dsn, buffer_count=1, on_full="raise") as store:
            await store.open()
            with database.connect() as holder:
                holder.execute("BEGIN")
                lock = "SELECT pg_advisory_xact_lock(%s::oid::int, hashtext('a') & 1023)"
                holder.execute(lock, (store.layout()["oid"],))
                inside, refused = (asyncio.create_task(store.store(Event("T", "a"))) for _ in range(2))
                await asyncio.sleep(0)
                holder.execute("COMMIT")
            while store.stats()["stored"] < 1:
                time.sleep(0.01)  # noqa: ASYNC251 - the event loop is to learn nothing meanwhile
            await asyncio.create_task(store.store(Event("T", "a")))
            await inside
            with pytest.raises(BufferFullError):
                await refused

    asyncio.run(run())


async def test_calls_of_one_aggregate_keep_their_order_behind_an_id(table: str, database: Database) -> None:
    """Also if the first of them waits for longer, and others are let go first."""
    del table
    async with (
        AsyncEventStore(database.dsn) as store,
        await psycopg.AsyncConnection.connect(database.dsn) as user,
    ):
        await store.store_in(user, Event("T", "other", id="e1"))
        first = asyncio.create_task(store.store(Event("T", "a", 1, id="e1")))
        await eventually(lambda: store.stats()["store_alone"] >= 1, "it waits for the id")
        second = asyncio.create_task(store.store(Event("T", "a", 2)))
        await eventually(lambda: store.stats()["store_alone"] >= 2, "the next one lines up")
        await asyncio.wait_for(store.store(Event("T", "b")), LIMIT_S)
        await nothing_arrives()
        assert not second.done()
        await user.rollback()
        await asyncio.wait_for(asyncio.gather(first, second), LIMIT_S)
        assert [event.data for event in await store.load_by_aggregate("a")] == [1, 2]


async def test_whoever_queues_for_its_locks_overtakes_nobody(table: str, database: Database) -> None:
    """A call with several aggregates waits in PostgreSQL's queue now and then, which another one's lock may end."""
    del table
    waits = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    async with (
        AsyncEventStore(database.dsn) as store,
        await psycopg.AsyncConnection.connect(database.dsn) as user,
    ):
        for number in range(3):
            held, free = f"held{number}", f"free{number}"
            await store.store_in(user, Event("T", held, 0), expected=NO_STREAM)
            first = asyncio.create_task(store.store(Event("T", held, 1)))
            await eventually(lambda: store.stats()["store_waiting"] == 1, "it waits")
            second = asyncio.create_task(store.store_batch([Event("T", held, 2), Event("T", free)]))
            with contextlib.suppress(AssertionError):
                await eventually(lambda: database.value(waits), "the second one queues up", timeout=3)
            await user.commit()
            await asyncio.wait_for(asyncio.gather(first, second), LIMIT_S)
            assert [event.data for event in await store.load_by_aggregate(held)] == [0, 1, 2]


async def test_whoever_queues_for_many_locks_does_so_for_a_moment(
    our_store: AsyncEventStore, database: Database
) -> None:
    """All others of the waiting room wait meanwhile: also if each of its locks falls soon, one after the other."""
    await our_store.open()
    oid, aggregates = our_store.layout()["oid"], [f"a{number}" for number in range(100)]
    queued = "SELECT query_start FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'advisory'"
    async with AsyncEventStore(database.dsn, lock_wait=PATIENT_S, answer_timeout=PATIENT_S) as store:
        with database.connect() as holder:
            distinct = "SELECT DISTINCT hashtext(a) & 1023 FROM unnest(%s::text[]) AS a ORDER BY 1"
            keys = [key for (key,) in holder.execute(distinct, (aggregates,))]
            for key in keys:
                holder.execute("SELECT pg_advisory_lock(%s::oid::int, %s)", (oid, key))
            storing = asyncio.create_task(store.store_batch(Event("T", each) for each in aggregates))
            began = await eventually(lambda: holder.execute(queued).fetchall(), "it queues up")
            for key in keys:
                await asyncio.sleep(0.08)
                holder.execute("SELECT pg_advisory_unlock(%s::oid::int, %s)", (oid, key))
                began += holder.execute(queued).fetchall()
            await asyncio.wait_for(storing, LIMIT_S)
    assert len(set(began)) > 1, "no statement queued for all the time"


@pytest.mark.parametrize("expected", [None, NO_STREAM], ids=["unconditional", "conditional"])
async def test_whoever_need_not_wait_has_time_enough(database: Database, expected: ExpectedVersion | None) -> None:
    """However short `lock_wait` is: a call that was left out for another reason has its turn."""
    given = {} if expected is None else {"expected": expected}
    quick = 0
    async with AsyncEventStore(database.dsn, lock_wait=0.001) as hasty:
        for number in range(10):
            event = Event("T", f"a{number}", number, id=f"e{number}")
            first = await hasty.store(event, **given)
            began = time.monotonic()
            again = await asyncio.gather(*(hasty.store(event, **given) for _ in range(3)), return_exceptions=True)
            is_quick = time.monotonic() - began < TURN_S
            quick += is_quick
            for each in again:
                if not isinstance(each, BaseException):
                    assert (each.version, each.is_duplicate) == (first.version, True)
                elif is_quick or not isinstance(each, AggregateLockedError):
                    raise each
    assert quick, "the machine has let one have its turn in time"


OTHER_SESSIONS = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    " AND backend_type = 'client backend'"
)
AGGREGATES = [f"a{number}" for number in range(8)]


async def store_one(store: AsyncEventStore) -> int:
    """One event."""
    await store.store(Event("T", AGGREGATES[0]))
    return 1


async def store_forwards(store: AsyncEventStore) -> int:
    """An event of each aggregate."""
    return len(await store.store_batch(Event("T", each) for each in AGGREGATES))


async def store_backwards(store: AsyncEventStore) -> int:
    """The same in the other order."""
    return len(await store.store_batch(Event("T", each) for each in AGGREGATES[::-1]))


async def import_all(store: AsyncEventStore) -> int:
    """The same by COPY."""
    return await store.import_events(Event("T", each) for each in AGGREGATES[::-1])


async def repeat(kind: Callable[[AsyncEventStore], Awaitable[int]], store: AsyncEventStore, stop: asyncio.Event) -> int:
    """Store events over and over, at least once; returns how many."""
    count = await kind(store)
    while not stop.is_set():
        count += await kind(store)
    return count


async def store_in_transactions(store: AsyncEventStore, database: Database, stop: asyncio.Event) -> int:
    """Store events in transactions of the user's, at least once; returns how many."""
    count = 0
    async with await psycopg.AsyncConnection.connect(database.dsn) as user:
        while not count or not stop.is_set():
            count += len(await store.store_batch_in(user, [Event("T", each) for each in AGGREGATES]))
            await user.commit()
    return count


@pytest.mark.parametrize("enabled", ["before", "meanwhile"])
async def test_our_own_writers_do_not_deadlock_under_the_guard(table: str, database: Database, enabled: str) -> None:
    """One event or many, in any order, imported or in the user's transaction."""
    del table
    async with AsyncEventStore(database.dsn) as one:
        if enabled == "before":
            await one.enable_guard()
        async with AsyncEventStore(database.dsn) as two:
            stop = asyncio.Event()
            kinds = [store_one, store_forwards, store_backwards, import_all]
            work = [asyncio.create_task(repeat(kind, store, stop)) for store in (one, two) for kind in kinds]
            if enabled == "meanwhile":
                await one.enable_guard()
                assert one.layout()["is_guarded"]
            work += [asyncio.create_task(store_in_transactions(store, database, stop)) for store in (one, two)]
            stored = one.stats()["stored"]
            await eventually(lambda: one.stats()["stored"] > stored + 200 or any(task.done() for task in work), "work")
            stop.set()
            counts = await asyncio.wait_for(asyncio.gather(*work), LIMIT_S)
            assert all(counts)
            assert database.value("SELECT count(*) FROM events") == sum(counts)
    if enabled == "before":
        # A session tells of its deadlocks at its end, at the latest.
        await eventually(lambda: database.value(OTHER_SESSIONS) == 0, "all sessions have ended")
        assert database.value("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()") == 0


async def test_a_conflict_shows_the_guard_that_was_enabled_elsewhere(
    our_store: AsyncEventStore, database: Database
) -> None:
    async with (
        AsyncEventStore(database.dsn, lock_wait=PATIENT_S) as early,
        await psycopg.AsyncConnection.connect(database.dsn) as user,
    ):
        await our_store.enable_guard()
        assert not early.layout()["is_guarded"]
        await our_store.store_in(user, Event("T", "a", id="e1"))
        same = asyncio.create_task(early.store(Event("T", "b", id="e1")))
        await eventually(lambda: early.layout()["is_guarded"], "it has looked at the table")
        await user.rollback()
        assert not (await asyncio.wait_for(same, LIMIT_S)).is_duplicate


async def test_what_is_enabled_elsewhere_is_heeded(our_store: AsyncEventStore, database: Database) -> None:
    """Limits of go-sync-kit's trigger, in particular: typed, and without spoiling the user's transaction."""
    await our_store.open()
    async with AsyncEventStore(database.dsn) as other:
        await other.enable_guard()
        await other.enable_go_notifications()
        assert other.layout()["is_guarded"]
        assert other.layout()["notifies_go"]
    long = [Event("T", "a" * 57), Event("T" * 7900, "b")]
    async with await psycopg.AsyncConnection.connect(database.dsn) as user:
        with pytest.raises(AggregateIdTooLongError):
            await our_store.store_in(user, long[0])
        with pytest.raises(PayloadTooLargeError):
            await our_store.store_in(user, long[1])
        await our_store.store_in(user, Event("T", "a" * 56))
    assert our_store.layout()["is_guarded"]
    for together in (False, True):
        # As it was when the store was opened.
        async with AsyncEventStore(database.dsn, table_name="others") as store:
            await store.open()
            async with AsyncEventStore(database.dsn, table_name="others") as other:
                await other.enable_go_notifications()
            if together:
                calls = [store.store(event) for event in [*long, Event("T", "short")]]
                results = await asyncio.gather(*calls, return_exceptions=True)
                assert [type(result).__name__ for result in results[:2]] == [
                    "AggregateIdTooLongError",
                    "PayloadTooLargeError",
                ]
                assert not isinstance(results[2], BaseException)
            else:
                with pytest.raises(AggregateIdTooLongError):
                    await store.store(long[0])
                with pytest.raises(PayloadTooLargeError):
                    await store.import_events(long[1:])
            assert store.layout()["notifies_go"]
        with database.connect() as admin:
            admin.execute("DROP TABLE others, others_migrations; DROP FUNCTION others_wake")
    assert len(await our_store.load()) == 1


async def test_a_mixed_load_is_merged(table: str, database: Database) -> None:
    """Calls that expect something among calls that do not, and several of one aggregate."""
    del table
    async with AsyncEventStore(database.dsn) as store:
        await store.store(Event("T", "hot"))
        before = store.stats()["store_groups"]
        with database.connect() as blocker:
            blocker.execute("BEGIN")
            blocker.execute("LOCK TABLE events IN SHARE MODE")
            first = asyncio.create_task(store.store(Event("T", "first")))
            blocked = (
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
            )
            await eventually(lambda: database.value(blocked) == 1, "the first call waits for the table")
            calls = []
            for number in range(300):
                kind = number % 3
                aggregate = "hot" if number % 30 == 0 else f"a{number}"
                calls.append(
                    store.store(Event("T", aggregate, number), expected=EXISTS if aggregate == "hot" else 0)
                    if kind == 0
                    else store.store(Event("T", aggregate, number))
                )
            waiting = [asyncio.create_task(call) for call in calls]
            await eventually(lambda: store.stats()["store_waiting"] == len(calls), "all wait")
            blocker.execute("ROLLBACK")
        await asyncio.gather(first, *waiting)
        assert store.stats()["store_groups"] - before <= 1 + 10, (
            "one more for each call that expects something of `hot`"
        )
        hot = [event.data for event in await store.load_by_aggregate("hot")]
    assert hot == [None, *range(0, 300, 30)], "in the order of the calls"
