"""Events of 1 MiB each are read with the memory of a few pages, however they are read and however many there are."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from socketio_postgres import END, AsyncEventStore, Event, OptionsError
from tests.events.test_scale import memory_bytes
from tests.fixtures.database import Database

MIB = 1024 * 1024
EVENTS = 400
"""Read in each way: more than `LIMIT_BYTES` by far, and soon done."""
LIVE_EVENTS = 1000
TEXT_BYTES = MIB - 12  # {"text": ""}
LIMIT_BYTES = 160 * MIB
"""Several pages of at most 16 MiB, as rows and as events, and what the allocator keeps."""

Read = Callable[[AsyncEventStore], Awaitable[int]]
"""Reads all events, and returns their number."""


def peak_bytes() -> int:
    """The most that this process has had in memory since `forget_peak`."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


def forget_peak() -> None:
    """The peak is what this process has in memory now."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def fill(database: Database, count: int, size: int) -> None:
    """Events that the server compresses and the network does not."""
    with database.connect() as admin:
        admin.execute(
            "INSERT INTO events (id, aggregate_id, event_type, data) SELECT gen_random_uuid(), 'a' || i % 7, 'T',"
            " jsonb_build_object('text', repeat('x', %s)) FROM generate_series(1, %s) AS i".replace("i % 7", "i %% 7"),
            (size, count),
        )


async def by_load(store: AsyncEventStore) -> int:
    count = 0
    page = await store.load(limit=EVENTS, max_bytes=4 * MIB)
    while page:
        assert sum(event.size_bytes for event in page) <= 4 * MIB
        assert page.safe_since == page[-1].version
        count += len(page)
        page = await store.load(page.safe_since, limit=EVENTS, max_bytes=4 * MIB)
    return count


async def by_read(store: AsyncEventStore) -> int:
    count = 0
    async for event in store.read():
        count += len(event.data["text"]) == TEXT_BYTES
    return count


async def by_read_backwards(store: AsyncEventStore) -> int:
    return len([event.version async for event in store.read(backwards=True)])


async def by_subscribing(store: AsyncEventStore) -> int:
    async with store.subscribe(0, prefetch=EVENTS) as live:
        for version in range(1, EVENTS + 1):
            assert (await live.next(60)).version == version
    return EVENTS


async def by_subscribing_with_a_filter(store: AsyncEventStore) -> int:
    async with store.subscribe(0, types="T", prefetch=EVENTS) as live:
        for version in range(1, EVENTS + 1):
            assert (await live.next(60)).version == version
    return EVENTS


async def by_durable(store: AsyncEventStore) -> int:
    async with store.durable("d", prefetch=EVENTS) as durable:
        async for event in durable:
            if event.version == EVENTS:
                break
    return EVENTS


async def by_batches(store: AsyncEventStore) -> int:
    count = 0
    async with store.durable("b", prefetch=EVENTS, partitions=2) as durable:
        async for batch in durable.batches(max_count=EVENTS, max_wait=60):
            assert sum(event.size_bytes for event in batch) <= 6 * MIB
            count += len(batch)
            if count == EVENTS:
                break
    return count


READS: dict[str, Read] = {
    "load": by_load,
    "read": by_read,
    "read backwards": by_read_backwards,
    "subscribe": by_subscribing,
    "subscribe with a filter": by_subscribing_with_a_filter,
    "durable": by_durable,
    "batches": by_batches,
}


@pytest.mark.parametrize("name", READS)
async def test_memory(our_store: AsyncEventStore, database: Database, name: str) -> None:
    await asyncio.to_thread(fill, database, EVENTS, TEXT_BYTES)
    before = memory_bytes()
    forget_peak()
    assert await READS[name](our_store) == EVENTS
    assert peak_bytes() - before < LIMIT_BYTES


@pytest.mark.timeout(600)  # a GiB goes through the server twice, beside whatever else runs
async def test_what_is_committed_at_once_comes_live_in_bounded_memory(
    our_store: AsyncEventStore, database: Database
) -> None:
    """The keeper reads ahead of all subscriptions, and keeps no more than its ring."""
    async with our_store.subscribe(END, prefetch=LIVE_EVENTS) as live:
        await our_store.store(Event("T", "a"))
        assert (await live.next(60)).version == 1
        before = memory_bytes()
        forget_peak()
        filling = asyncio.create_task(asyncio.to_thread(fill, database, LIVE_EVENTS, TEXT_BYTES))
        for version in range(2, LIVE_EVENTS + 2):
            assert (await live.next(120)).version == version
        await filling
        assert peak_bytes() - before < LIMIT_BYTES


async def test_an_event_larger_than_a_page(our_store: AsyncEventStore, database: Database) -> None:
    sizes = [10, 40 * MIB, 10, 40 * MIB, 40 * MIB, 10, 10]
    for size in sizes:
        await asyncio.to_thread(fill, database, 1, size)
    found = [len(event.data["text"]) async for event in our_store.read()]
    assert found == sizes
    async with our_store.subscribe(0) as live:
        assert [len((await live.next(60)).data["text"]) for _ in sizes] == sizes
    page = await our_store.load(1, max_bytes=1000)
    assert ([event.version for event in page], page.safe_since) == ([2], 2)
    page = await our_store.load(0, max_bytes=1000, backwards=True)
    assert page[0].version == 7


@pytest.mark.parametrize("max_bytes", [0, -1, True, 1.5, 2**63])
async def test_max_bytes_is_checked(our_store: AsyncEventStore, max_bytes: int) -> None:
    with pytest.raises(OptionsError, match="max_bytes"):
        await our_store.load(max_bytes=max_bytes)
    async with our_store.durable("d") as durable:
        with pytest.raises(OptionsError, match="max_bytes"):
            await anext(durable.batches(max_bytes=max_bytes))
