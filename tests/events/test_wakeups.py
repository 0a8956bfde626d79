"""An event wakes the subscriptions that want it, and no others: counted, not timed."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from socketio_postgres import END, AsyncEventStore, Event, Filter
from tests.fixtures.waiting import eventually

SUBSCRIPTIONS = 10_000
TIMEOUT_S = 300
"""Nothing here depends on speed; so many subscriptions take a while to begin on a busy machine."""


async def entered(lives: list[Any]) -> None:
    """Begin all subscriptions, some at a time."""
    for start in range(0, len(lives), 500):
        await asyncio.gather(*(live.__aenter__() for live in lives[start : start + 500]))


async def test_an_event_wakes_those_that_want_it(our_store: AsyncEventStore) -> None:
    store = our_store
    every = SUBSCRIPTIONS // 4
    filters = [
        *([Filter("aggregate_id", f"order-{i}")] for i in range(every)),
        *([Filter("type", f"Type{i}")] for i in range(every)),
        *([Filter("aggregate_prefix", f"category{i}-")] for i in range(every)),
        *([Filter("type_prefix", f"Module{i}."), Filter("tenant", "t")] for i in range(every)),
    ]
    lives = [store.subscribe(END, wanted) for wanted in filters]
    for live in lives:
        live._patience = 3600.0  # none asks again by itself, and may do so just when its event comes
    await entered(lives)
    waiting = [asyncio.ensure_future(live.next(TIMEOUT_S)) for live in lives]
    all_events = store.subscribe(END)
    await all_events.__aenter__()
    await eventually(lambda: store.is_listener_connected, "it listens")
    before = store.stats()["subscription_wakeups"]
    events = [
        Event("Unknown", "unknown"),
        Event("Type7", "order-3", metadata={"tenant": "t"}),
        Event("Module9.Done", "category5-x", metadata={"tenant": "t"}),
        Event("Module10.Done", "category", metadata={"tenant": "another"}),
    ]
    for event in events:
        stored = await store.store(event)
        assert (await all_events.next(TIMEOUT_S)).version == stored.version
    wanted = {3, every + 7, 2 * every + 5, 3 * every + 9}
    found = [await waiting[number] for number in sorted(wanted)]
    assert [event.aggregate_id for event in found] == ["order-3", "order-3", "category5-x", "category5-x"]
    woken = store.stats()["subscription_wakeups"] - before
    # One that has asked too late to be woken finds its event by itself.
    assert 0 < woken <= len(wanted) + len(events)
    assert {number for number, task in enumerate(waiting) if task.done()} == wanted
    for live in [*lives, all_events]:
        live.close()
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_whoever_slept_through_events_goes_on_after_them(our_store: AsyncEventStore) -> None:
    """The events in between were not for it, and are not read again: not even when they are no longer in memory."""
    store = our_store
    async with (
        store.subscribe(END, [Filter("aggregate_id", "wanted")]) as live,
        store.subscribe(END, [Filter("tenant", "wanted")]) as by_metadata,
        store.subscribe(END) as everything,
    ):
        await eventually(lambda: store.is_listener_connected, "it listens")
        await store.store(Event("T", "wanted", 0, metadata={"tenant": "wanted"}))
        assert (await live.next(60)).data == (await by_metadata.next(60)).data == (await everything.next(60)).data == 0
        waiting = asyncio.gather(live.next(TIMEOUT_S), by_metadata.next(TIMEOUT_S))
        await asyncio.sleep(0)
        count = 0
        for _ in range(15):
            await store.store_batch(Event("T", "other", i) for i in range(1000))
            for _ in range(1000):
                await everything.next(60)
                count += 1
        before = store.stats()
        last = await store.store(Event("T", "wanted", 1, metadata={"tenant": "wanted"}))
        assert [event.data for event in await waiting] == [1, 1]
        assert live.position == by_metadata.position == last.version == count + 2
        assert store.stats()["pages"] == before["pages"]


async def test_control_items_are_told_to_those_that_ask(our_store: AsyncEventStore) -> None:
    """Who iterates `items` is woken by each event, because it is told how far it has come."""
    found: Counter[str] = Counter()
    async with our_store.subscribe(0, [Filter("aggregate_id", "wanted")]) as live:
        items = live.items()
        for name in ("other", "wanted", "other", "wanted"):
            stored = await our_store.store(Event("T", name))
            while live.position is None or live.position < stored.version:
                found[type(await asyncio.wait_for(anext(items), 60)).__name__] += 1
    assert found["StoredEvent"] == 2
    assert found["Checkpoint"] + found["CaughtUp"] >= 2
