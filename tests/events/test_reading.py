"""Pages, filters and versions."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from socketio_postgres import (
    AsyncEventStore,
    Event,
    EventNotFoundError,
    Filter,
    FilterError,
    IncompatibleVersionError,
    OperationTimeoutError,
    SchemaMismatchError,
    StoredEvent,
    StoreRewoundError,
)
from tests.fixtures.database import Database, patient
from tests.fixtures.postgres import OwnPostgres
from tests.fixtures.waiting import TIMEOUT_S, eventually


async def test_pages(store: AsyncEventStore) -> None:
    await store.store_batch(Event("T", f"a{i % 2}", i) for i in range(10))
    page = await store.load(3, limit=4)
    assert [event.version for event in page] == [4, 5, 6, 7]
    assert page.safe_since == 7
    assert page[0].version == 4
    assert [event.version for event in page[1:]] == [5, 6, 7]
    assert [event.version for event in await store.load(backwards=True, limit=3)] == [10, 9, 8]
    assert [event.data for event in await store.load_by_aggregate("a1", since=4)] == [5, 7, 9]
    assert [event.data for event in await store.load_by_aggregate("a1", limit=1, backwards=True)] == [9]
    assert [event.data for event in await store.load_by_aggregate("a1", filters=[Filter("data", 7)])] == [7]
    assert len(await store.load_by_aggregate("a1", types="other")) == 0
    empty = await store.load(10)
    assert (len(empty), empty.safe_since) == (0, 10)


async def test_read_streams_in_pages(database: Database) -> None:
    async with AsyncEventStore(database.dsn, batch_size=7) as store:
        await store.store_batch(Event(f"T{i % 3}", "a", i) for i in range(50))
        assert [event.data async for event in store.read()] == list(range(50))
        assert [event.data async for event in store.read(backwards=True)] == list(range(50))[::-1]
        assert [event.data async for event in store.read(10, types="T1")] == [i for i in range(50) if i % 3 == 1][3:]


async def test_safe_since_does_not_pass_an_open_transaction(store: AsyncEventStore, database: Database) -> None:
    with database.connect() as writer:
        await store.store(Event("T", "a", id="e1"))
        writer.execute("BEGIN")
        writer.execute("INSERT INTO events (id, aggregate_id, event_type) VALUES ('e2', 'a', 'T')")
        await store.store(Event("T", "a", id="e3"))
        page = await store.load()
        assert [event.id for event in page] == ["e1", "e3"], "one's own writes are seen"
        assert page.safe_since == 1
        with pytest.raises(OperationTimeoutError):
            await store.latest_version(timeout=0.1)
        assert await store.latest_version(settled=False) == 3
        blocker = (await store.blockers())[0]  # the oldest: the question that was given up may still look
        assert (blocker.pid, blocker.state) == (writer.info.backend_pid, "idle in transaction")
        assert "INSERT INTO events" in (blocker.query or "")
        assert blocker.transaction_start is not None
        writer.execute("COMMIT")
        assert [event.id for event in await store.load(page.safe_since)] == ["e2", "e3"]
        assert await store.latest_version() == 3


async def test_a_prepared_transaction_is_named(database: Database) -> None:
    async with AsyncEventStore(database.dsn) as store:
        with database.connect() as writer:
            writer.execute("DROP TRIGGER events_wake ON events")
            writer.execute("BEGIN")
            writer.execute("INSERT INTO events (id, aggregate_id, event_type) VALUES ('e', 'a', 'T')")
            writer.execute("PREPARE TRANSACTION 'two phases'")
            (blocker,) = await store.blockers()
            assert (blocker.prepared, blocker.pid, blocker.state) == ("two phases", None, "prepared")
            writer.execute("ROLLBACK PREPARED 'two phases'")
            assert await store.blockers() == []


async def test_commands_do_not_read_the_locks() -> None:
    """Reading them is expensive on a busy server, and whoever loads an aggregate does not go on from its page."""
    with OwnPostgres(log_statement="all") as server:
        database = server.database

        def looks() -> int:
            return server.log_path.read_text().count("pg_locks")

        async with AsyncEventStore(patient(database.dsn)) as store:
            await store.store_batch(Event("T", f"a{i % 5}", i, id=f"e{i}") for i in range(20))
            before = looks()
            assert [event.version for event in await store.load_by_aggregate("a1")] == [2, 7, 12, 17]
            assert (await store.load_by_aggregate("a1", limit=1, backwards=True))[0].version == 17
            assert (await store.get("e7")).version == 8
            page = await store.load()
            assert (len(page), page.safe_since) == (20, 20)
            assert (await store.load(20)).safe_since == 20
            assert looks() == before
            with database.connect() as writer:
                writer.execute("SELECT nextval('events_version_seq')")
            await store.store(Event("T", "a1"))
            assert (await store.load_by_aggregate("a1")).safe_since == 0, "nothing is known, and it does not look"
            assert looks() == before
            assert (await store.load()).safe_since == 22
            assert looks() == before + 1, "there is a hole"
            assert (await store.load(15)).safe_since == 22
            assert (await store.load(types="T")).safe_since == 22
            assert (await store.load_by_aggregate("a1")).safe_since == 22
            assert looks() == before + 1, "it is known as final"
            await store.store(Event("T", "a1"))
            assert (await store.load(22)).safe_since == 23
            assert looks() == before + 1, "there is no hole"
            assert (await store.load_by_aggregate("a1", limit=10)).safe_since == 23
            assert looks() == before + 2, "whoever pages goes on from there"


async def test_what_a_filtered_page_knows(store: AsyncEventStore, database: Database) -> None:
    """Events above what is known are read again after the look, and come once."""
    with database.connect() as writer:
        await store.store_batch(Event("T", "a", i) for i in range(5))
        assert (await store.load(types="T")).safe_since == 5
        writer.execute("BEGIN")
        writer.execute("INSERT INTO events (id, aggregate_id, event_type) VALUES ('late', 'a', 'T')")
        await store.store_batch(Event("T", "a", i) for i in range(2))
        page = await store.load(2, types="T", limit=4)
        assert ([event.version for event in page], page.safe_since) == ([3, 4, 5, 7], 5)
        writer.execute("COMMIT")
        page = await store.load(2, types="T", limit=4)
        assert ([event.version for event in page], page.safe_since) == ([3, 4, 5, 6], 6)
        page = await store.load(types="T")
        assert ([event.version for event in page], page.safe_since) == (list(range(1, 9)), 8)


async def test_get(store: AsyncEventStore) -> None:
    await store.store_batch([Event("T", "a", 1, id="e1"), Event("T", "a", 2, id="e2")])
    assert (await store.get("e2")).data == 2
    with pytest.raises(EventNotFoundError) as missing:
        await store.get("e3")
    assert missing.value.event_id == "e3"


@pytest.mark.parametrize("wrong", [-1, 1.0, "1", None, True, 2**63])
async def test_what_is_no_version(store: AsyncEventStore, wrong: Any) -> None:
    with pytest.raises(IncompatibleVersionError):
        await store.load(wrong)
    with pytest.raises(IncompatibleVersionError):
        store.subscribe(wrong)


def test_parse_version() -> None:
    parse = AsyncEventStore.parse_version
    assert [parse(text) for text in ("", "0", "42", "9223372036854775807")] == [0, 0, 42, 2**63 - 1]
    for wrong in ("-1", "x", "9223372036854775808", "1.0", " 1", "+1", "\u0661", "1" * 5000):
        with pytest.raises(IncompatibleVersionError):
            parse(wrong)


async def test_a_table_that_went_back_is_noticed(store: AsyncEventStore, database: Database) -> None:
    await store.store_batch(Event("T", "a", i) for i in range(10))
    subscription = store.subscribe(10)
    waiting = asyncio.create_task(anext(subscription))
    await eventually(lambda: store.stats()["is_listening"], "it listens")
    with database.connect() as admin:
        admin.execute("DELETE FROM events WHERE version > 4")
        admin.execute("SELECT setval('events_version_seq', 4)")
    with pytest.raises(StoreRewoundError) as rewound:
        await store.load(10)
    assert (rewound.value.position, rewound.value.last_version) == (10, 4)
    with pytest.raises(StoreRewoundError):
        await asyncio.wait_for(waiting, TIMEOUT_S)
    with pytest.raises(StoreRewoundError):
        await asyncio.wait_for(anext(store.subscribe(7)), TIMEOUT_S)


@pytest.mark.parametrize(
    ("ddl", "says"),
    [
        ("CREATE TABLE events (id text)", "version"),
        ("CREATE VIEW events AS SELECT 1", "ordinary table"),
        (
            (
                "CREATE TABLE events (version bigint PRIMARY KEY, id text UNIQUE, aggregate_id text, event_type text,"
                " data jsonb, metadata jsonb, created_at timestamptz)"
            ),
            "sequence",
        ),
        (
            (
                "CREATE TABLE events (version bigserial PRIMARY KEY, id text UNIQUE, aggregate_id text,"
                " event_type text,"
                " data json, metadata jsonb, created_at timestamptz)"
            ),
            "data is json instead of jsonb",
        ),
        (
            (
                "CREATE TABLE events (version bigserial PRIMARY KEY, id text, aggregate_id text, event_type text,"
                " data jsonb, metadata jsonb, created_at timestamptz)"
            ),
            "id is not unique",
        ),
        (
            (
                "CREATE TABLE events (version bigserial PRIMARY KEY, id text UNIQUE, aggregate_id text,"
                " event_type text,"
                " data jsonb, metadata jsonb, created_at timestamptz); ALTER SEQUENCE events_version_seq CACHE 10"
            ),
            "CACHE 1",
        ),
    ],
)
async def test_tables_that_are_not_for_events(database: Database, ddl: str, says: str) -> None:
    with database.connect() as admin:
        admin.execute(ddl.encode())
    with pytest.raises(SchemaMismatchError, match=says):
        await AsyncEventStore(database.dsn).load()


async def test_a_missing_table_that_may_not_be_made(database: Database) -> None:
    with pytest.raises(SchemaMismatchError, match="create_table is off"):
        await AsyncEventStore(database.dsn, create_table=False).open()
    assert database.value("SELECT to_regclass('events') IS NULL") is True


async def test_other_names(database: Database) -> None:
    with database.connect() as admin:
        admin.execute('CREATE SCHEMA "My Shop"')
    async with AsyncEventStore(database.dsn, table_name='"My Shop"."Order\'s Events"') as store:
        await store.store(Event("T", "a", 1))
        async with store.subscribe() as live:
            assert (await live.next(timeout=TIMEOUT_S)).data == 1
            await store.store(Event("T", "a", 2))
            assert (await live.next(timeout=TIMEOUT_S)).data == 2
    assert database.value("SELECT to_regclass('events') IS NULL") is True


async def test_many_start_at_once(database: Database) -> None:
    """D24: migrations run one at a time, and nothing is done twice."""
    stores = [AsyncEventStore(database.dsn) for _ in range(8)]
    await asyncio.gather(*(store.open() for store in stores))
    assert database.value("SELECT count(*) FROM events_migrations") == 2
    await asyncio.gather(*(store.close() for store in stores))


async def test_no_strong_lock_when_up_to_date(store: AsyncEventStore, database: Database) -> None:
    """D23: with a reader's transaction open, another start neither waits nor makes others wait."""
    del store
    with database.connect() as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM events")
        late = AsyncEventStore(database.dsn)
        await asyncio.wait_for(late.load(), 20)
        await late.close()
        assert database.value("SELECT count(*) FROM events") == 0


WRONG_FILTERS: list[tuple[Any, Any]] = [
    ("typ", "x"),
    ("type", 5),
    ("type", b"x"),
    ("type", ["a", 1]),
    ("type", "a\0"),
    ("metadata", "x"),
    ("metadata", {1: 2}),
    ("metadata", {"a": {1}}),
    ("data", float("nan")),
    ("data", "a\0"),
    ("tenant", 1),
    ("type", "a\0"),
    ("stream", "\ud800"),
    ("tenant", "\udfff"),
]


@pytest.mark.parametrize(("key", "value"), WRONG_FILTERS)
def test_wrong_filters(key: Any, value: Any) -> None:
    with pytest.raises(FilterError):
        Filter(key, value)


@pytest.mark.parametrize("event_id", ["", "none", "a\0", "\ud800", "x" * 10_000])
async def test_an_event_that_cannot_be_there(store: AsyncEventStore, event_id: str) -> None:
    with pytest.raises(EventNotFoundError) as caught:
        await store.get(event_id)
    assert caught.value.event_id == event_id


async def test_an_event_that_is_deleted_while_it_is_looked_for(
    store: AsyncEventStore, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.store_batch(Event("T", "a", id=f"e{number}") for number in range(2))
    load = store._load

    async def delete_and_load(*args: Any, **options: Any) -> Any:
        with database.connect() as admin:
            admin.execute("DELETE FROM events WHERE id = 'e0'")
        return await load(*args, **options)

    monkeypatch.setattr(store, "_load", delete_and_load)
    with pytest.raises(EventNotFoundError):
        await store.get("e0")
    assert (await store.get("e1")).version == 2


def nested(depth: int) -> Any:
    """A document of so many levels."""
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


async def test_documents_that_nest_deep_match_live_as_in_sql(store: AsyncEventStore, database: Database) -> None:
    """S17: the core parses 100 levels; beyond, the server decides."""
    filters = [[Filter("data", {"a": 1})], [Filter("metadata", {"a": 1})], [Filter("data", {"a": 2})]]
    lives = [store.subscribe(filters=each) for each in filters]
    for live in lives:
        await live.__aenter__()
    await eventually(lambda: store.stats()["is_listening"], "it listens")
    with database.connect() as writer:
        for depth in (3, 99, 150, 1000):
            text = '{"a": 1, "deep": ' + "[" * depth + "]" * depth + "}"
            writer.execute(
                "INSERT INTO events (id, aggregate_id, event_type, data, metadata) VALUES (%s, 'a', 'T', %s, %s)",
                (f"e{depth}", text, text),
            )
    end = await store.latest_version()
    for live, each in zip(lives, filters, strict=True):
        seen = []
        while live.position != end:
            if (event := await live.next_or_idle(0.1)) is not None:
                seen.append(event.version)
        assert seen == [event.version for event in await store.load(filters=each)]
        assert len(seen) == (0 if each is filters[2] else 4)
        live.close()


@pytest.mark.parametrize(("depth", "is_allowed"), [(100, True), (101, False), (500, False)])
async def test_a_filter_that_nests_too_deep(store: AsyncEventStore, depth: int, is_allowed: bool) -> None:
    if is_allowed:
        assert len(await store.load(filters=[Filter("data", nested(depth))])) == 0
    else:
        with pytest.raises(FilterError, match="100 levels"):
            Filter("data", nested(depth))


async def test_only_filters_are_filters(store: AsyncEventStore) -> None:
    with pytest.raises(FilterError):
        await store.load(filters=[("type", "x")])  # type: ignore[list-item]


async def test_more_conditions_than_a_statement_can_have(store: AsyncEventStore) -> None:
    """Each needs parameters. The driver cannot send so many, which looked like a lost connection."""
    many = [Filter("metadata", {str(number): number for number in range(40_000)})]
    with pytest.raises(FilterError, match="40000 conditions"):
        await asyncio.wait_for(store.load(filters=many), TIMEOUT_S)
    with pytest.raises(FilterError, match="40000 conditions"):
        store.subscribe(filters=many)
    few = [Filter("metadata", {str(number): number for number in range(1000)})]
    assert len(await store.load(filters=few)) == 0


# ---------------------------------------------------------------- filters: the server and we agree

NUMBERS = st.one_of(
    st.integers(-3, 3), st.sampled_from([0.0, -0.0, 1.0, 1e2, 100, 2**63, float(2**63), 2**64 + 1, 0.1, 1e-7])
)
TEXTS = st.sampled_from(["", "a", "A", "ab", "ä", "%", "a_", "\\", '"', "\u2028", "😀", "1"])
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=6,
)
EVENTS = st.builds(
    Event,
    event_type=TEXTS.filter(bool),
    aggregate_id=TEXTS.filter(bool),
    data=JSON,
    metadata=st.none() | st.dictionaries(TEXTS, JSON, max_size=3),
)
FILTERS = st.lists(
    st.one_of(
        st.builds(Filter, st.sampled_from(["type", "type_prefix", "stream", "stream_prefix", "tenant"]), TEXTS),
        st.builds(Filter, st.sampled_from(["type", "type_prefix", "stream_prefix"]), st.lists(TEXTS, max_size=3)),
        st.builds(Filter, st.just("metadata"), st.dictionaries(TEXTS, JSON, max_size=2)),
        st.builds(Filter, st.just("data"), JSON),
    ),
    max_size=2,
)


def renoted(value: Any) -> Any:
    """The same document with its numbers written in another way."""
    if isinstance(value, dict):
        return {key: renoted(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [renoted(inner) for inner in value]
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53:
        return float(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def parts(value: Any) -> list[Any]:
    """Documents that a document may contain."""
    found = [value]
    if isinstance(value, dict):
        found += [{key: inner} for key, inner in value.items()]
        found += [{key: part} for key, inner in value.items() for part in parts(inner)[1:]]
    if isinstance(value, list):
        found += [[inner] for inner in value] + value
    return found


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(events=st.lists(EVENTS, min_size=1, max_size=12), filters=st.lists(FILTERS, max_size=4), data=st.data())
def test_filters_mean_the_same_in_sql_and_live(
    database: Database, events: list[Event], filters: list[list[Filter]], data: st.DataObject
) -> None:
    # Of random documents hardly any contains another: some filters are made of what is there.
    for event in data.draw(st.lists(st.sampled_from(events), max_size=4)):
        filters.append([Filter("data", renoted(data.draw(st.sampled_from(parts(event.data)))))])
        if event.metadata:
            filters.append(
                [Filter("metadata", dict(data.draw(st.sampled_from(sorted(event.metadata.items()))) for _ in "1"))]
            )

    async def run() -> None:
        async with AsyncEventStore(database.dsn) as store:
            begin = await store.latest_version()
            live = [store.subscribe(begin, each) for each in filters]
            for subscription in live:
                await subscription.__aenter__()
            # The keeper has begun to read, so what is stored now comes to all by way of it.
            await eventually(lambda: not live or store.stats()["reads"] > 0, "it listens, and reads")
            await store.store_batch(events)
            end = await store.latest_version()
            for each, subscription in zip(filters, live, strict=True):
                by_sql = [event.version for event in await store.load(begin, each)]
                by_us: list[int] = []
                async for item in subscription.items():
                    if isinstance(item, StoredEvent):
                        by_us.append(item.version)
                    if (subscription.position or 0) >= end:
                        break
                assert by_us == by_sql, (each, [json.dumps(event.data) for event in events])
                subscription.close()
            assert store.stats()["pages"] == 0, "the live path was the one that was tested"

    asyncio.run(run())
