"""Random schedules of writers, locks and broken links, and whether what was answered is what is in the table."""

from __future__ import annotations

import asyncio
import contextlib
import random
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from socketio_postgres import (
    AggregateLockedError,
    AsyncEventStore,
    CommitInDoubtError,
    ConnectionLostError,
    DatabaseError,
    DuplicateEventError,
    Event,
    OperationTimeoutError,
    StoreResult,
    WrongExpectedVersionError,
)
from tests.fixtures.database import Database
from tests.fixtures.proxy import Proxy
from tests.fixtures.waiting import eventually

AGGREGATES = [f"a{number}" for number in range(5)]
CALLS = 25
WRITERS = 6
DISTURBANCES = 40
LIMIT_S = 90
STORE = "the stores"
BUSY = "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s AND state <> 'idle'"
EXPECTED = (
    AggregateLockedError,
    ConnectionLostError,
    DuplicateEventError,
    OperationTimeoutError,
    WrongExpectedVersionError,
)


@dataclass
class Call:
    """What was asked for, and what came of it."""

    kind: str
    events: list[Event]
    expected: dict[str, int]
    result: list[StoreResult] | BaseException | None = None


@dataclass
class Row:
    """An event as the table has it."""

    version: int
    aggregate_id: str
    data: Any


@dataclass
class Schedule:
    """Writers that do one thing after the other, chosen at random, and what stands in their way."""

    database: Database
    chance: random.Random
    calls: list[Call] = field(default_factory=list)
    number: int = 0

    def events(self, count: int, aggregates: list[str] = AGGREGATES) -> list[Event]:
        """New events, in any order of aggregates."""
        self.number += count
        numbers = range(self.number - count, self.number)
        return [Event("T", self.chance.choice(aggregates), number, id=f"e{number}") for number in numbers]

    async def write(self, store: AsyncEventStore) -> None:
        """Make calls."""
        kinds = [self.one, self.one, self.batch, self.conditional, self.conditional, self.again, self.twice]
        kinds.append(self.imported)
        for _ in range(CALLS):
            if self.chance.random() < 0.1:
                await self.in_transaction(store)
            else:
                await self.chance.choice(kinds)(store)

    async def answer(self, call: Call, work: Any) -> None:
        """Note what comes of a call."""
        self.calls.append(call)
        try:
            call.result = await asyncio.wait_for(work, LIMIT_S)
        except EXPECTED as error:
            call.result = error

    async def one(self, store: AsyncEventStore) -> None:
        """One event."""
        events = self.events(1)
        await self.answer(Call("one", events, {}), store.store_batch(events))

    async def batch(self, store: AsyncEventStore) -> None:
        """Some events."""
        events = self.events(self.chance.randint(2, 6))
        await self.answer(Call("batch", events, {}), store.store_batch(events))

    async def conditional(self, store: AsyncEventStore) -> None:
        """Events that expect what was read."""
        aggregates = self.chance.sample(AGGREGATES, self.chance.randint(1, 2))
        expected = {}
        for aggregate_id in aggregates:
            try:
                page = await store.load_by_aggregate(aggregate_id, limit=1, backwards=True)
            except (DatabaseError, OperationTimeoutError):
                return
            expected[aggregate_id] = page[0].version if page else 0
        events = self.events(len(aggregates), aggregates)
        await self.answer(Call("conditional", events, expected), store.store_batch(events, expected=expected))

    async def again(self, store: AsyncEventStore) -> None:
        """An event that is there, or another one with its id."""
        done = [call for call in self.calls if isinstance(call.result, list) and call.result]
        if not done:
            return
        event = self.chance.choice(self.chance.choice(done).events)
        if self.chance.random() < 0.3:
            event = Event("T", event.aggregate_id, "other", id=event.id)
        await self.answer(Call("again", [event], {}), store.store_batch([event]))

    async def twice(self, store: AsyncEventStore) -> None:
        """The same events in two calls at once."""
        events = self.events(self.chance.randint(1, 3))
        calls = [self.answer(Call("twice", events, {}), store.store_batch(events)) for _ in range(2)]
        await asyncio.gather(*calls)

    async def imported(self, store: AsyncEventStore) -> None:
        """Events by COPY, of which the results are not known one by one."""
        events = self.events(4)
        call = Call("import", events, {})

        async def work() -> list[StoreResult]:
            await store.import_events(events, skip_existing=True)
            return []

        await self.answer(call, work())

    async def in_transaction(self, store: AsyncEventStore) -> None:
        """Events of a transaction that stays open for a while, and is committed or not."""
        events = self.events(self.chance.randint(1, 3))
        call = Call("in transaction", events, {})
        async with await psycopg.AsyncConnection.connect(self.database.dsn) as user:
            with contextlib.suppress(ConnectionLostError, OperationTimeoutError):
                await store.open()
                results = await store.store_batch_in(user, events)
                await asyncio.sleep(self.chance.random() * 0.3)
                if self.chance.random() < 0.5:
                    await user.commit()
                    call.result = results
            self.calls.append(call)
            await user.rollback()

    async def disturb(self, proxy: Proxy, oid: int) -> None:
        """Break links, end sessions and hold locks; not for ever, or a slow machine would get nothing else done."""
        for _ in range(DISTURBANCES):
            await asyncio.sleep(self.chance.random() * 0.5)
            kind = self.chance.choice(["swallow", "reset", "terminate", "lock"])
            if kind == "swallow" and proxy.links:
                self.chance.choice(proxy.links).swallow()
            elif kind == "reset" and proxy.links:
                self.chance.choice(proxy.links).reset()
            elif kind == "terminate":
                with self.database.connect() as admin:
                    admin.execute(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                        " WHERE application_name = %s ORDER BY random() LIMIT 1",
                        (STORE,),
                    )
            else:
                async with await psycopg.AsyncConnection.connect(self.database.dsn) as holder:
                    lock = "SELECT pg_advisory_xact_lock(%s::oid::int, hashtext(%s) & 1023)"
                    await holder.execute(lock, (oid, self.chance.choice(AGGREGATES)))
                    await asyncio.sleep(self.chance.random() * 0.3)

    def check(self) -> None:
        """Compare the answers with the table."""
        with self.database.connect() as connection:
            rows = connection.execute("SELECT id, version, aggregate_id, data FROM events").fetchall()
        table = {row[0]: Row(*row[1:]) for row in rows}
        asked = {event.id for call in self.calls for event in call.events}
        assert set(table) <= asked, "nothing comes from nowhere"
        new: list[str] = []
        for call in self.calls:
            check_call(call, table)
            if isinstance(call.result, list):
                new += [result.id for result in call.result if not result.is_duplicate]
        assert len(new) == len(set(new)), "nothing is stored twice"


def check_call(call: Call, table: dict[str, Row]) -> None:
    """Whether a call has a result that it may have."""
    is_there = {event.id in table for event in call.events}
    assert len(is_there) == 1, f"all or none: {call}"
    if isinstance(call.result, list):
        assert is_there == {True}, f"lost: {call}"
        check_stored(call, call.result, table)
    elif isinstance(call.result, DuplicateEventError):
        assert any(table[event.id].data != event.data for event in call.events), f"no reason: {call}"
    elif call.kind not in {"again", "twice"} and not isinstance(call.result, CommitInDoubtError):
        assert is_there == {False}, f"told to have failed: {call}"
    if isinstance(call.result, WrongExpectedVersionError):
        error = call.result
        assert error.actual != call.expected[error.aggregate_id]
        versions = {row.version for row in table.values() if row.aggregate_id == error.aggregate_id}
        assert error.actual in versions | {0}, f"never was: {call}"


def check_stored(call: Call, results: list[StoreResult], table: dict[str, Row]) -> None:
    """Whether a call that was stored has the right positions, and nobody came before it."""
    assert all(table[event.id].data == event.data for event in call.events)
    versions = [result.version for result in results]
    assert versions == [table[result.id].version for result in results]
    new = [result.version for result in results if not result.is_duplicate]
    assert new == sorted(new)
    for aggregate_id, expected in call.expected.items() if versions else ():
        others = (row for row in table.values() if row.aggregate_id == aggregate_id)
        before = max((row.version for row in others if row.version < versions[0]), default=0)
        assert before == expected, f"overtaken: {call}"


@pytest.mark.parametrize("is_guarded", [False, True], ids=["", "guarded"])
@pytest.mark.parametrize("seed", range(3))
async def test_a_history(database: Database, seed: int, *, is_guarded: bool) -> None:
    schedule = Schedule(database, random.Random(seed))  # noqa: S311 - no secret
    with Proxy(database) as proxy:
        dsn = make_conninfo(proxy.dsn, application_name=STORE)
        async with (
            AsyncEventStore(dsn, answer_timeout=2) as one,
            AsyncEventStore(dsn, answer_timeout=2, max_open_conns=2, batch_size=20) as two,
        ):
            if is_guarded:
                await one.enable_guard()
            await one.open()
            await two.open()
            writers = [asyncio.create_task(schedule.write(store)) for store in (one, two) for _ in range(WRITERS)]
            disturbing = asyncio.create_task(schedule.disturb(proxy, one.layout()["oid"]))
            try:
                await asyncio.gather(*writers)
            finally:
                disturbing.cancel()
                await asyncio.wait([disturbing])
            if not disturbing.cancelled():
                disturbing.result()
            # What was given up may still be under way on the server.
            await eventually(lambda: database.value(BUSY, STORE) == 0, "all have ended")
            assert not any(store.stats()["store_waiting"] for store in (one, two))
    schedule.check()
    kinds = {call.kind for call in schedule.calls if isinstance(call.result, list)}
    assert kinds == {"one", "batch", "conditional", "again", "twice", "import", "in transaction"}
