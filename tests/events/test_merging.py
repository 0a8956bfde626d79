"""Calls made at the same time are committed together, and each has the result that it would have had alone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from socketio_postgres import (
    ANY,
    EXISTS,
    NO_STREAM,
    AsyncEventStore,
    DatabaseError,
    DuplicateEventError,
    Event,
    StoreResult,
    WrongExpectedVersionError,
)
from socketio_postgres.events.event import ExpectedVersion
from tests.fixtures.database import Database
from tests.fixtures.waiting import eventually

REFUSE = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'refused'; END $$;
CREATE TRIGGER refuse BEFORE INSERT ON events FOR EACH ROW WHEN (NEW.event_type = 'refused') EXECUTE FUNCTION refuse()
"""
IN_FLIGHT = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"


@dataclass(frozen=True)
class Call:
    """One call of `store_batch`."""

    events: list[Event]
    expected: dict[str, ExpectedVersion]


@dataclass(frozen=True)
class Row:
    """An event as the table has it."""

    version: int
    aggregate_id: str
    event_type: str
    data: Any


AGGREGATES = st.sampled_from([f"a{i}" for i in range(4)])
EVENTS = st.builds(
    Event,
    event_type=st.sampled_from(["T"] * 19 + ["refused"]),
    aggregate_id=AGGREGATES,
    data=st.integers(0, 1),
    id=st.integers(0, 40).map(lambda number: f"e{number}"),
)
EXPECTATIONS: st.SearchStrategy[ExpectedVersion] = st.sampled_from([NO_STREAM, NO_STREAM, EXISTS, ANY, 1, 2, 3])


@st.composite
def calls_to_make(draw: st.DrawFn) -> list[Call]:
    """Calls that get in each other's way: the same few ids and aggregates, and mostly expectations of their own."""
    calls = []
    for events in draw(st.lists(st.lists(EVENTS, min_size=1, max_size=3), min_size=1, max_size=10)):
        aggregates = sorted({event.aggregate_id for event in events})
        checked = draw(st.sampled_from([aggregates, aggregates, [], ["a0"]]))
        calls.append(Call(events, {aggregate_id: draw(EXPECTATIONS) for aggregate_id in checked}))
    return calls


def holds(expected: ExpectedVersion, last: int) -> bool:
    """Whether an aggregate whose last event has this version is as expected."""
    if expected is ANY:
        return True
    if expected is NO_STREAM:
        return last == 0
    return last > 0 if expected is EXISTS else last == expected


async def store_merged(
    store: AsyncEventStore, database: Database, calls: Sequence[Call]
) -> list[list[StoreResult] | BaseException]:
    """Make all calls while the table is locked: they wait for the first one and go together after it."""
    with database.connect() as blocker:
        blocker.execute("BEGIN")
        blocker.execute("LOCK TABLE events IN SHARE MODE")
        first = asyncio.create_task(store.store(Event("T", "first")))
        await eventually(lambda: database.value(IN_FLIGHT) == 1, "the first call waits for the table")
        waiting = [asyncio.create_task(store.store_batch(call.events, expected=call.expected)) for call in calls]
        await eventually(lambda: store.stats()["store_waiting"] + locally_refused(waiting) == len(calls), "all wait")
        blocker.execute("ROLLBACK")
    await first
    return await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 60)


def locally_refused(waiting: list[asyncio.Task[list[StoreResult]]]) -> int:
    """How many ended before anything was sent."""
    return sum(task.done() for task in waiting)


def read_table(database: Database) -> dict[str, Row]:
    """All events by id."""
    with database.connect() as connection:
        rows = connection.execute("SELECT id, version, aggregate_id, event_type, data FROM events").fetchall()
    return {row[0]: Row(*row[1:]) for row in rows}


def check(call: Call, result: list[StoreResult] | BaseException, table: dict[str, Row], new: set[str]) -> None:
    """Whether a result is one that the call could have had alone, at some moment between the others.

    Args:
        call: What was asked for.
        result: What came of it.
        table: The table in the end.
        new: Ids that this call stored.
    """

    def last_before(aggregate_id: str, version: int) -> int:
        versions = [row.version for row in table.values() if row.aggregate_id == aggregate_id and row.version < version]
        return max(versions, default=0)

    def is_there(event: Event) -> bool:
        row = table.get(event.id)
        return row is not None and (row.aggregate_id, row.event_type, row.data) == (
            event.aggregate_id,
            event.event_type,
            event.data,
        )

    if isinstance(result, WrongExpectedVersionError):
        assert not holds(call.expected[result.aggregate_id], result.actual)
        history = {0} | {row.version for row in table.values() if row.aggregate_id == result.aggregate_id}
        assert result.actual in history, "the version it found must have been there"
        return
    if isinstance(result, DuplicateEventError):
        ids = [event.id for event in call.events]
        assert len(ids) > len(set(ids)) or any(event.id in table and not is_there(event) for event in call.events)
        return
    if isinstance(result, BaseException):
        assert isinstance(result, DatabaseError), result
        assert "refused" in str(result)
        assert any(event.event_type == "refused" for event in call.events)
        return
    assert [item.id for item in result] == [event.id for event in call.events]
    assert all(is_there(event) for event in call.events)
    assert [item.version for item in result] == [table[event.id].version for event in call.events]
    stored = [item.version for item in result if not item.is_duplicate]
    assert stored == sorted(stored)
    assert new == {item.id for item in result if not item.is_duplicate}
    if stored:
        for aggregate_id, expected in call.expected.items():
            assert holds(expected, last_before(aggregate_id, stored[0])), (aggregate_id, expected)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(before=st.lists(EVENTS.filter(lambda event: event.event_type == "T"), max_size=3, unique_by=lambda e: e.id),
       calls=calls_to_make())  # fmt: skip
# What one call expects of an aggregate that only the other one writes.
@example(before=[], calls=[Call([Event("T", "a0", id="e1")], {"a0": NO_STREAM}),
                           Call([Event("T", "a1", id="e0")], {"a0": NO_STREAM})])  # fmt: skip
def test_merged_calls_have_the_results_of_calls_alone(
    database: Database, before: list[Event], calls: list[Call]
) -> None:
    async def run() -> None:
        with database.connect() as admin:
            admin.execute("DROP TABLE IF EXISTS events, events_migrations; DROP FUNCTION IF EXISTS events_wake, refuse")
        async with AsyncEventStore(database.dsn) as store:
            with database.connect() as admin:
                admin.execute(REFUSE)
            await store.store_batch(before)
            results = await store_merged(store, database, calls)
        table = read_table(database)
        stored = [
            {item.id for item in result if not item.is_duplicate} if isinstance(result, list) else set()
            for result in results
        ]
        for call, result, new in zip(calls, results, stored, strict=True):
            check(call, result, table, new)
        ids = [event_id for new in stored for event_id in new]
        assert len(ids) == len(set(ids)), "nobody else stored it as well"
        others = {event.id for event in before} | {
            row_id for row_id, row in table.items() if row.aggregate_id == "first"
        }
        assert set(table) == set(ids) | others, "nothing of a call that failed is there"

    asyncio.run(run())


async def test_calls_that_wait_share_a_commit(store: AsyncEventStore, database: Database) -> None:
    """The property above would hold for calls that are never merged, too."""
    await store.store(Event("T", "a"))
    before = store.stats()
    calls = [Call([Event("T", f"b{i}", json.dumps(i))], {f"b{i}": NO_STREAM} if i % 2 else {}) for i in range(40)]
    results = await store_merged(store, database, calls)
    assert all(isinstance(result, list) for result in results)
    after = store.stats()
    assert after["store_groups"] - before["store_groups"] == 2, "the first one, and all the others"
    assert after["store_alone"] == before["store_alone"]


async def test_of_calls_that_wait_for_one_new_aggregate_one_succeeds(
    store: AsyncEventStore, database: Database
) -> None:
    calls = [Call([Event("T", "a", i)], {"a": NO_STREAM}) for i in range(5)]
    results = await store_merged(store, database, calls)
    assert sorted(isinstance(result, list) for result in results) == [False] * 4 + [True]
    assert all(isinstance(result, (list, WrongExpectedVersionError)) for result in results)
