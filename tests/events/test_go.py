"""Together with go-sync-kit on its own table, against recordings of it.

A live Go process can take the recordings' place: tests/peers/go_event_store is the program that they were made with.
"""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import pytest

from socketio_postgres import (
    AggregateIdTooLongError,
    AsyncEventStore,
    Event,
    IncompatibleVersionError,
    NotificationPayload,
    WrongExpectedVersionError,
)
from tests.fixtures.database import Database
from tests.fixtures.go_event_store import HEARD, RECORDED, create_table
from tests.fixtures.waiting import TIMEOUT_S, eventually

GIVEN: list[dict[str, Any]] = [
    event for what, record in RECORDED.items() if what.startswith("Store") for event in record.get("given", [])
]
STORED = [what for what in RECORDED if what.startswith("Store") and RECORDED[what].get("given")]
INSERT = str(RECORDED["Store evt-1"]["statements"][1]["sql"])


def go_stores(database: Database, *events: dict[str, Any]) -> None:
    """Insert as Go does: its statement, a transaction for each, and JSON `null` where there is nothing."""
    sql = INSERT
    for number in range(5, 0, -1):
        sql = sql.replace(f"${number}", "%s")
    with database.connect() as connection:
        for event in events:
            values = [event["id"], event["aggregate_id"], event["event_type"]]
            connection.execute(sql.encode(), [*values, json.dumps(event["data"]), json.dumps(event["metadata"])])


def event_of(given: dict[str, Any]) -> Event:
    """The same event, to be stored by us."""
    return Event(**given)


def shape(notification: dict[str, str]) -> tuple[str, list[tuple[str, object]]]:
    """A notification without what differs from run to run."""
    fields = json.loads(notification["payload"])
    assert fields.pop("created_at")
    assert fields.pop("version") > 0
    return notification["channel"], list(fields.items())


async def test_no_ddl_on_its_table(go_store: AsyncEventStore, database: Database) -> None:
    layout = (
        "SELECT json_agg(c.relname::text || c.relkind::text ORDER BY c.relname)::text FROM pg_class c JOIN"
        " pg_namespace n ON n.oid = c.relnamespace WHERE nspname = 'public'"
    )
    before = database.value(layout)
    await go_store.store(Event("T", "a"))
    async with go_store.subscribe() as live:
        await live.next(TIMEOUT_S)
    assert database.value(layout) == before
    assert go_store.layout()["notifies_go"]
    assert not go_store.layout()["is_native"]


async def test_we_read_what_go_stores(go_store: AsyncEventStore, database: Database) -> None:
    go_stores(database, *GIVEN)
    answer = RECORDED["Load since 0"]["answer"]["result"]
    events = list(await go_store.load())[: len(answer)]
    for event, go in zip(events, answer, strict=True):
        assert (event.id, event.event_type, event.aggregate_id) == (go["id"], go["event_type"], go["aggregate_id"])
        assert event.data == go["data"]
        assert event.metadata == go["metadata"]
    by_aggregate = RECORDED["LoadByAggregate order-1"]["answer"]["result"]
    ours = [event.id for event in await go_store.load_by_aggregate("order-1")]
    assert ours[: len(by_aggregate)] == [go["id"] for go in by_aggregate]


@pytest.mark.parametrize("what", STORED)
async def test_we_store_what_go_reads_and_notify_as_go_does(
    go_store: AsyncEventStore, database: Database, what: str
) -> None:
    record = RECORDED[what]
    with database.connect() as listener:
        for channel in {notification["channel"] for notification in record["notifications"]}:
            quoted = channel.replace('"', '""')
            listener.execute(f'LISTEN "{quoted}"'.encode())
        await go_store.store_batch(event_of(given) for given in record["given"])
        heard = [
            {"channel": notification.channel, "payload": notification.payload}
            for notification in listener.notifies(timeout=TIMEOUT_S, stop_after=len(record["notifications"]))
        ]
    assert [shape(notification) for notification in heard] == [shape(each) for each in record["notifications"]]
    with database.connect() as connection:
        # Go's own statement finds the row, and what Go would make of it is what it stored itself.
        select = RECORDED["Load since 0"]["statements"][0]["sql"].replace("$1", "%s")
        rows = connection.execute(select.encode(), (0,)).fetchall()
    for row, given in zip(rows, record["given"], strict=True):
        assert row[1:] == (given["id"], given["aggregate_id"], given["event_type"], given["data"], given["metadata"])


async def test_we_hear_what_go_stores(go_store: AsyncEventStore, database: Database) -> None:
    payloads: list[NotificationPayload] = []
    await go_store.subscribe_to_all(payloads.append)
    async with go_store.subscribe() as live:
        await eventually(lambda: go_store.is_listener_connected, "it listens")
        go_stores(database, *GIVEN)
        assert [(await live.next(TIMEOUT_S)).id for _ in GIVEN] == [given["id"] for given in GIVEN]
    await eventually(lambda: len(payloads) == len(GIVEN), "the callback, too")
    go = HEARD["SubscribeToAll"][0]["payload"]
    ours = payloads[0]
    assert (ours.version, ours.id, ours.aggregate_id) == (go["version"], go["id"], go["aggregate_id"])
    assert (ours.event_type, ours.stream_name) == (go["event_type"], go["stream_name"])
    # A poll may have found the events before the listener was told of them.
    await eventually(lambda: go_store.stats()["notifications"] > 0, "the wake-up is Go's own notification")


async def test_what_go_refuses_with_a_server_error_is_typed(go_store: AsyncEventStore) -> None:
    assert "channel name too long" in RECORDED["Store with an aggregate id of 57 bytes"]["answer"]["error"]
    with pytest.raises(AggregateIdTooLongError):
        await go_store.store(Event("T", "x" * 57))
    assert "duplicate key" in RECORDED["Store with an id that exists"]["answer"]["error"]
    event = event_of(GIVEN[0])
    await go_store.store(event)
    assert (await go_store.store(event)).is_duplicate
    assert RECORDED["ParseVersion '-1'"]["answer"]["result"] == 2**64 - 1
    with pytest.raises(IncompatibleVersionError):
        go_store.parse_version("-1")


async def test_a_second_subscription_takes_nothing_from_the_first(go_store: AsyncEventStore) -> None:
    """D3, as recorded: in Go the second one fails and the first one's channel is gone."""
    assert "already open" in RECORDED["SubscribeToEventType after SubscribeToAll"]["answer"]["error"]
    heard: list[str] = []
    await go_store.subscribe_to_all(lambda _: heard.append("all"))
    await go_store.subscribe_to_event_type("T", lambda _: heard.append("type"))
    await go_store.store(Event("T", "a"))
    await eventually(lambda: sorted(heard) == ["all", "type"], "both heard it")


async def test_our_table_is_one_that_go_can_use(our_store: AsyncEventStore, database: Database) -> None:
    """Go's start-up runs on it as it is, and its notifications are there from then on."""
    create_table(database)
    with database.connect() as listener:
        listener.execute("LISTEN events_global")
        go_stores(database, GIVEN[0])
        await our_store.store(Event("T", "a"))
        assert len(list(listener.notifies(timeout=TIMEOUT_S, stop_after=2))) == 2
    assert next(event.id for event in await our_store.load()) == GIVEN[0]["id"]
    async with our_store.subscribe() as live:
        assert [(await live.next(TIMEOUT_S)).version for _ in range(2)] == [1, 2]


async def test_go_hears_of_our_table_without_a_start_of_its_own(our_store: AsyncEventStore, database: Database) -> None:
    """The notifications are Go's own, byte for byte but for time and version; its start later adds no others."""
    await our_store.enable_go_notifications()
    await our_store.enable_go_notifications()
    async with AsyncEventStore(database.dsn) as store:
        assert store.layout()["notifies_go"]
        with pytest.raises(AggregateIdTooLongError):
            await store.store(Event("T", "x" * 57))
        for what in STORED:
            await _notified_as_recorded(store, database, what)
        create_table(database)
        with database.connect() as admin:
            admin.execute("DELETE FROM events")
        for what in STORED:
            await _notified_as_recorded(store, database, what)
        await store.enable_go_notifications()


async def _notified_as_recorded(store: AsyncEventStore, database: Database, what: str) -> None:
    record = RECORDED[what]
    with database.connect() as listener:
        for channel in {notification["channel"] for notification in record["notifications"]}:
            quoted = channel.replace('"', '""')
            listener.execute(f'LISTEN "{quoted}"'.encode())
        await store.store_batch(event_of(given) for given in record["given"])
        listener.execute("NOTIFY events_global, 'end'")
        heard = [
            {"channel": notification.channel, "payload": notification.payload}
            for notification in listener.notifies(timeout=TIMEOUT_S, stop_after=len(record["notifications"]) + 1)
        ]
    assert heard.pop()["payload"] == "end"
    assert [shape(notification) for notification in heard] == [shape(each) for each in record["notifications"]]
    for ours, theirs in zip(heard, record["notifications"], strict=True):
        assert without_values(ours["payload"]) == without_values(theirs["payload"])


def without_values(payload: str) -> str:
    """The spelling of a notification, without the version and time in it."""
    return re.sub(r'"version" : \d+|"created_at" : "[^"]*"', "…", payload)


async def test_the_guard_makes_expectations_exact_for_go_too(go_store: AsyncEventStore, database: Database) -> None:
    """Go has drawn a version and not committed; ours waits for it instead of overtaking it."""
    await go_store.enable_guard()
    await go_store.enable_guard()
    first = await go_store.store(Event("T", "a"), expected=0)
    with database.connect() as go:
        go.execute("BEGIN")
        go.execute("INSERT INTO events (id, aggregate_id, event_type) VALUES ('go', 'a', 'T')")
        storing = asyncio.create_task(go_store.store(Event("T", "a"), expected=first.version))
        await eventually(lambda: go_store.stats()["store_alone"] > 0, "it waits for Go's transaction")
        assert not storing.done()
        go.execute("COMMIT")
        with pytest.raises(WrongExpectedVersionError) as overtaken:
            await asyncio.wait_for(storing, TIMEOUT_S)
    assert overtaken.value.actual > first.version
    # A version drawn before the lock was free is drawn again: an aggregate's versions follow its commits.
    with database.connect() as early, database.connect() as late:
        early.execute("BEGIN")
        version = early.execute("SELECT nextval('events_version_seq')").fetchone()
        late.execute("INSERT INTO events (id, aggregate_id, event_type) VALUES ('late', 'b', 'T')")
        early.execute(
            "INSERT INTO events (version, id, aggregate_id, event_type) VALUES (%s, 'early', 'b', 'T')", version
        )
        early.execute("COMMIT")
    assert [event.id for event in await go_store.load_by_aggregate("b")] == ["late", "early"]
