"""The order model: random schedules of raw SQL writers, and readers that must see each committed event once, in order.

What a reader may never do is go past a version that a transaction still open can commit. Readers that are known to do
so run beside ours over the very same steps, to show that the schedules find them.
"""

from __future__ import annotations

import asyncio
import functools
import json
import random
import threading
import time
from dataclasses import dataclass

import pytest

from socketio_postgres import AsyncEventStore, AsyncSubscription, Event
from tests.fixtures.database import Database, patient
from tests.fixtures.event_schedule import NaiveReader, Schedule, Seen, XminReader, check, drop_notify_triggers
from tests.fixtures.pgbouncer import PgBouncer, pgbouncer_program
from tests.fixtures.postgres import OwnPostgres
from tests.fixtures.waiting import eventually

__all__ = ["pgbouncer_program"]

STEPS = 300


class LoadReader:
    """Ours, page by page, going on at the page's `safe_since`."""

    def __init__(self, store: AsyncEventStore, limit: int, since: int, types: str | None = None) -> None:
        self.store = store
        self.limit = limit
        self.since = since
        self.types = types

    async def poll(self) -> list[Seen]:
        """Events up to where it is safe."""
        page = await self.store.load(self.since, types=self.types, limit=self.limit)
        self.since = page.safe_since
        return [(event.version, event.id) for event in page if event.version <= self.since]


async def collect(subscription: AsyncSubscription, seen: list[Seen]) -> None:
    """Ours, live."""
    async for event in subscription:
        seen.append((event.version, event.id))  # noqa: PERF401 - watched while it grows


@dataclass
class Collected:
    """A subscription of ours, what it has given out, and the task that takes it."""

    store: AsyncEventStore
    subscription: AsyncSubscription
    seen: list[Seen]
    task: asyncio.Task[None]

    @classmethod
    def begin(cls, store: AsyncEventStore, after: int = 0) -> Collected:
        """Subscribe, and take whatever comes."""
        subscription, seen = store.subscribe(after), list[Seen]()
        return cls(store, subscription, seen, asyncio.create_task(collect(subscription, seen)))

    def has_all(self, committed: set[str]) -> bool:
        """Whether everything was given out.

        Raises:
            AssertionError: Not yet; what is missing, and how its store sees the world.
        """
        if self.task.done():
            self.task.result()  # it failed: nothing more will come
        if len(self.seen) >= len(committed):
            return True
        missing = sorted(committed - {event_id for _, event_id in self.seen})
        last = self.seen[-1] if self.seen else None
        stats = json.dumps(self.store.stats(), default=str)
        raise AssertionError(
            f"has {len(self.seen)} of {len(committed)}, last {last}, position {self.subscription.position}, is without"
            f" {len(missing)}: {missing[:10]}; stats {stats}"
        )

    async def end(self) -> None:
        """Close it; a failure of the task is raised by `has_all`."""
        self.subscription.close()
        await asyncio.gather(self.task, return_exceptions=True)


async def run(store: AsyncEventStore, database: Database, seed: int, *, has_two_phase: bool) -> dict[str, list[str]]:
    """Run one schedule under all readers; returns what is wrong with each."""
    schedule = Schedule(database, seed, has_two_phase=has_two_phase)
    begin = await store.latest_version()
    paging, live = LoadReader(store, limit=7, since=begin), Collected.begin(store, begin)
    filtered = LoadReader(store, limit=5, since=begin, types="T")
    losers = {"naive": NaiveReader(database, begin), "xmin": XminReader(database, begin)}
    seen: dict[str, list[Seen]] = {name: [] for name in ("load", "load filtered", *losers)}
    try:
        for _ in range(STEPS):
            await asyncio.to_thread(schedule.step)
            for name, loser in losers.items():
                seen[name] += await asyncio.to_thread(loser.poll)
            seen["load"] += await paging.poll()
            seen["load filtered"] += await filtered.poll()
        await asyncio.to_thread(schedule.finish)
        while events := await paging.poll():
            seen["load"] += events
        while events := await filtered.poll():
            seen["load filtered"] += events
        await eventually(lambda: live.has_all(schedule.committed), "all delivered live")
        for name, loser in losers.items():
            seen[name] += loser.poll()
    finally:
        await live.end()
        schedule.close()
        for loser in losers.values():
            loser.connection.close()
    assert len(schedule.committed) > STEPS / 2
    seen["subscribe"] = live.seen
    return {name: check(events, schedule.committed) for name, events in seen.items()}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("has_two_phase", [False, True], ids=["", "two-phase"])
async def test_every_committed_event_once_in_order(
    store: AsyncEventStore, database: Database, has_two_phase: bool
) -> None:
    if has_two_phase:
        drop_notify_triggers(database)
        store = AsyncEventStore(database.dsn, poll_interval=0.003)  # nothing wakes it up
    problems: dict[str, list[str]] = {}
    for seed in range(6):
        for name, found in (await run(store, database, seed, has_two_phase=has_two_phase)).items():
            problems.setdefault(name, []).extend(found)
    await store.close()
    assert problems["load"] == []
    assert problems["load filtered"] == []
    assert problems["subscribe"] == []
    assert problems["naive"], "the schedules must find a reader that reads by version alone"
    assert problems["xmin"], "the schedules must find a reader that trusts xmin"


def write(database: Database, number: int, stop: threading.Event, committed: set[str]) -> None:
    """One writer: transactions of a few events with pauses between them, every fifth rolled back."""
    chance = random.Random(number)  # noqa: S311 - a schedule, not a secret
    count = 0
    with database.connect() as connection:
        while not stop.is_set():
            ids = [f"w{number}-{count + i}" for i in range(chance.randint(1, 3))]
            count += len(ids)
            connection.execute("BEGIN")
            for event_id in ids:
                connection.execute(
                    "INSERT INTO events (id, aggregate_id, event_type) VALUES (%s, %s, 'T')", (event_id, f"a{number}")
                )
                time.sleep(chance.uniform(0, 0.004))
            if chance.random() < 0.2:
                connection.execute("ROLLBACK")
            else:
                connection.execute("COMMIT")
                committed.update(ids)


async def test_under_real_concurrency(store: AsyncEventStore, database: Database) -> None:
    """Four writers at once, and two readers of ours beside one that reads by version alone."""
    committed: set[str] = set()
    stop = threading.Event()
    other = AsyncEventStore(database.dsn)
    naive = NaiveReader(database, 0)
    seen: list[Seen] = []
    readers = [Collected.begin(store), Collected.begin(other)]
    writers = [asyncio.create_task(asyncio.to_thread(write, database, number, stop, committed)) for number in range(4)]
    try:
        deadline = time.monotonic() + 3

        async def has_lost() -> bool:
            seen.extend(await asyncio.to_thread(naive.poll))
            passed = "SELECT count(*) FROM events WHERE version <= %s"
            return time.monotonic() > deadline and len(seen) < int(str(database.value(passed, naive.since)))

        await eventually(has_lost, "this much concurrency finds a reader that reads by version alone", poll=0)
        stop.set()
        await asyncio.gather(*writers)
        for reader in readers:
            await eventually(functools.partial(reader.has_all, committed), "all delivered")
    finally:
        stop.set()
        naive.connection.close()
        for reader in readers:
            await reader.end()
        await store.close()
        await other.close()
    for reader in readers:
        assert check(reader.seen, committed) == []


HAMMER_S = 4.0
"""How long sessions draw and look. Reading the sequence's row alone is wrong about once a second."""

HAMMER = """
DO $$
DECLARE
    before bigint; drawn bigint; until timestamptz := clock_timestamp() + make_interval(secs => {seconds});
BEGIN
    WHILE clock_timestamp() < until LOOP
        EXECUTE {look} INTO before;
        drawn := nextval('events_version_seq');
        IF drawn <= before THEN INSERT INTO too_high VALUES (before, drawn); END IF;
    END LOOP;
END $$
"""


async def last_version_statement(store: AsyncEventStore, database: Database) -> str:
    """The statement by which a reader learns the last version drawn: caught while it waits for the sequence."""
    with database.connect() as blocker, database.connect() as spy:
        blocker.execute("BEGIN")
        blocker.execute("ALTER SEQUENCE events_version_seq RENAME TO held")
        loading = asyncio.create_task(store.load(1))  # from the beginning it need not ask
        waiting = "SELECT query FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        row = await eventually(lambda: spy.execute(waiting).fetchone(), "the reader waits")
        blocker.execute("ROLLBACK")
        await loading
    assert row is not None
    return str(row[0])


async def test_the_last_version_is_never_ahead_of_what_was_drawn(
    our_store: AsyncEventStore, database: Database
) -> None:
    """Every 32nd `nextval` shows a row that is ahead for a moment: who trusts it settles versions not yet drawn."""
    await our_store.store(Event("T", "a"))
    look = await last_version_statement(our_store, database)
    assert "events_version_seq" in look
    with database.connect() as admin:
        admin.execute("CREATE TABLE too_high (before bigint, drawn bigint)")
    hammer = HAMMER.format(seconds=HAMMER_S, look=database.value("SELECT quote_literal(%s)", look)).encode()

    def draw() -> None:
        with database.connect() as connection:
            connection.execute(hammer)

    await asyncio.gather(*(asyncio.to_thread(draw) for _ in range(4)))
    assert database.value("SELECT count(*) FROM too_high") == 0


async def test_a_statement_that_went_stale_takes_those_after_it_along(pgbouncer_program: str) -> None:
    """What is read first says how far what is read last is final: run again later than that, it would say too much.

    Behind a pooler that knows no prepared statements, another client ends the one that reads the last version.
    """
    with OwnPostgres(log_statement="all") as server:
        with PgBouncer(pgbouncer_program, server.database, "transaction", pool_size=1) as pooler:
            async with AsyncEventStore(patient(pooler.dsn), listen_dsn=server.database.dsn) as store:
                await store.store(Event("T", "a"))
                assert await store.latest_version() == 1  # prepares
                with Database(pooler.dsn).connect() as other:
                    other.prepare_threshold = None
                    prepared = "SELECT name FROM pg_prepared_statements WHERE strpos(statement, 'is_called') > 0"
                    names = [row[0] for row in other.execute(prepared)]
                    assert names
                    for name in names:
                        other.execute(f"DEALLOCATE {name}".encode())
                assert await store.latest_version() == 1
        log = server.log_path.read_text()
    after = log[log.rindex("DEALLOCATE") :]
    assert after.rindex("is_called") < after.rindex("pg_locks"), "the last version, and only then who may hold one"
