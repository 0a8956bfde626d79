"""The order model: random schedules of raw SQL writers, and readers that must see each committed event once, in order.

What a reader may never do is go past a version that a transaction still open can commit. Readers that are known to do
so run beside ours over the very same steps, to show that the schedules find them.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time

import pytest

from socketio_postgres import AsyncEventStore, AsyncSubscription
from tests.fixtures.database import Database
from tests.fixtures.event_schedule import NaiveReader, Schedule, Seen, XminReader, check, drop_notify_triggers
from tests.fixtures.waiting import eventually

STEPS = 300


class LoadReader:
    """Ours, page by page, going on at the page's `safe_since`."""

    def __init__(self, store: AsyncEventStore, limit: int, since: int) -> None:
        self.store = store
        self.limit = limit
        self.since = since

    async def poll(self) -> list[Seen]:
        """Events up to where it is safe."""
        page = await self.store.load(self.since, limit=self.limit)
        self.since = page.safe_since
        return [(event.version, event.id) for event in page if event.version <= self.since]


async def collect(subscription: AsyncSubscription, seen: list[Seen]) -> None:
    """Ours, live."""
    async for event in subscription:
        seen.append((event.version, event.id))  # noqa: PERF401 - watched while it grows


async def run(store: AsyncEventStore, database: Database, seed: int, *, has_two_phase: bool) -> dict[str, list[str]]:
    """Run one schedule under all readers; returns what is wrong with each."""
    schedule = Schedule(database, seed, has_two_phase=has_two_phase)
    begin = await store.latest_version()
    paging, live = LoadReader(store, limit=7, since=begin), store.subscribe(begin)
    losers = {"naive": NaiveReader(database, begin), "xmin": XminReader(database, begin)}
    seen: dict[str, list[Seen]] = {name: [] for name in ("load", "subscribe", *losers)}
    collecting = asyncio.create_task(collect(live, seen["subscribe"]))
    try:
        for _ in range(STEPS):
            await asyncio.to_thread(schedule.step)
            for name, loser in losers.items():
                seen[name] += await asyncio.to_thread(loser.poll)
            seen["load"] += await paging.poll()
        await asyncio.to_thread(schedule.finish)
        while events := await paging.poll():
            seen["load"] += events
        await eventually(lambda: len(seen["subscribe"]) >= len(schedule.committed), "all delivered live")
        for name, loser in losers.items():
            seen[name] += loser.poll()
    finally:
        live.close()
        await collecting
        schedule.close()
        for loser in losers.values():
            loser.connection.close()
    assert len(schedule.committed) > STEPS / 2
    return {name: check(events, schedule.committed) for name, events in seen.items()}


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
    seen: dict[str, list[Seen]] = {"one": [], "two": [], "naive": []}
    subscriptions = {"one": store.subscribe(), "two": other.subscribe()}
    collecting = [asyncio.create_task(collect(live, seen[name])) for name, live in subscriptions.items()]
    writers = [asyncio.create_task(asyncio.to_thread(write, database, number, stop, committed)) for number in range(4)]
    try:
        deadline = time.monotonic() + 3
        while time.monotonic() < deadline:
            seen["naive"] += await asyncio.to_thread(naive.poll)
        stop.set()
        await asyncio.gather(*writers)
        await eventually(lambda: min(len(seen["one"]), len(seen["two"])) >= len(committed), "all delivered")
    finally:
        stop.set()
        for live in subscriptions.values():
            live.close()
        naive.connection.close()
        await asyncio.gather(*collecting, return_exceptions=True)
        await store.close()
        await other.close()
    assert check(seen["one"], committed) == []
    assert check(seen["two"], committed) == []
    assert check(seen["naive"], committed), "this much concurrency must find a reader that reads by version alone"
