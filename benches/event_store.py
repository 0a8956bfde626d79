"""The event store beside `eventsourcing` in its lock mode and beside Go's statements, on one server that flushes.

    python -m benches.event_store            # about ten minutes; saves results for the report
    python -m benches.event_store --large    # the same with a table of 10 million events; keep 10 GB free
    python -m benches.event_store --check    # each job once and small, nothing is saved

`eventsourcing` in its lock mode is the correct one; its faster mode can lose events. go-sync-kit is present by the
statements that its store was recorded to send, run by pgbench, which costs the client next to nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import concurrent.futures
import contextlib
import functools
import itertools
import json
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import psycopg
from eventsourcing import persistence, postgres
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from benches.results import Row, Section, Table, Target, save
from socketio_postgres import END, AsyncEventStore, Event, EventBatch, EventStore, Filter
from socketio_postgres.demo.embedded import EmbeddedPostgres
from tests.fixtures.database import Database
from tests.fixtures.go_event_store import RECORDED, create_table
from tests.fixtures.waiting import eventually

SETTINGS = {"fsync": "on", "full_page_writes": "on", "synchronous_commit": "on", "max_connections": "200"}
DATA = {"customer": "c-4711", "items": [{"sku": f"SKU-{i}", "count": i, "price": 12.5 * i} for i in range(5)]}
STATE = json.dumps(DATA).encode()
TASKS = 32
BATCH = 1000
PAGE = 1000

LISTENERS = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND query LIKE 'LISTEN %%' AND state = 'idle' AND query_start >= %s
"""
"""Sessions that listen, and have begun to since a time: an older one may be in a pool."""

_numbers = itertools.count(1)


@dataclass(frozen=True)
class Scale:
    """How much of everything."""

    repetitions: int
    singles: int
    """Events stored one after the other."""
    concurrent: int
    """Events stored by each of the tasks."""
    batches: int
    imported: int
    read: int
    live: int
    """Events whose way to a handler is timed."""
    subscriptions: int
    projected: int
    """Events that a projection applies."""
    growth: tuple[int, int]
    """Rows of a small and of a large table."""


FULL = Scale(5, 400, 100, 10, 50_000, 100_000, 500, 1000, 5000, (100_000, 1_000_000))
LARGE = replace(FULL, growth=(100_000, 10_000_000))
CHECK = Scale(1, 5, 2, 1, 100, 2000, 10, 20, 50, (2000, 20_000))

Turn = Callable[[], float]
"""Does the job once, checks what came of it, and gives the measured value."""


def alternate(scale: Scale, turns: dict[str, Turn]) -> dict[str, list[float]]:
    """Values by name: everybody once unmeasured, then in turn, each time beginning with another."""
    names = list(turns)
    for name in names:
        turns[name]()
    values: dict[str, list[float]] = {name: [] for name in names}
    for repetition in range(scale.repetitions):
        first = repetition % len(names)
        for name in names[first:] + names[:first]:
            values[name].append(turns[name]())
    for name in names:
        shown = ", ".join(f"{value:,.4g}" for value in values[name])
        sys.stderr.write(f"  {name}: {shown}\n")
    return values


def rows(values: dict[str, list[float]], notes: dict[str, str] | None = None) -> list[Row]:
    """As the report takes them; ours are those that say so."""
    return [Row(who, found, who.startswith("ours"), (notes or {}).get(who, "")) for who, found in values.items()]


def seconds(work: Callable[[], object]) -> float:
    """How long it takes."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def ours(count: int) -> list[Event]:
    """Events of ours, of as many aggregates."""
    return [Event("OrderPlaced", str(uuid.uuid4()), DATA) for _ in range(count)]


def theirs(count: int) -> list[Any]:
    """Events of `eventsourcing`, the same."""
    return [persistence.StoredEvent(uuid.uuid4(), 1, "Order.Placed", STATE) for _ in range(count)]


def ask(recorder: Any, statement: str, *args: object) -> Any:
    """The one value that a statement gives in a recorder's database."""
    with recorder.datastore.get_connection() as conn:
        [value] = conn.execute(statement, args).fetchone().values()
    return value


def wait_for_listener(recorder: Any, since: object) -> None:
    """Wait for the LISTEN of a subscription that has begun since a time: it does not tell, but PostgreSQL does."""
    while ask(recorder, LISTENERS, since) == 0:
        time.sleep(0.01)


class Stage:
    """One server, and on it a database for each contestant."""

    def __init__(self, server: EmbeddedPostgres, scale: Scale) -> None:
        self.scale = scale
        self.version = server.version
        self._server = server
        self._pgbench = server.bin_dir / "pgbench"
        self._open = contextlib.ExitStack()
        self._databases: list[str] = []

    def clear(self) -> None:
        """Close what the contestants opened, and leave no tables to vacuum and no pages to write behind.

        Or the server would be at it while the next job is measured.
        """
        self._open.close()
        self._administer(*(f"DROP DATABASE {name} WITH (FORCE)" for name in self._databases), "CHECKPOINT")
        self._databases.clear()

    def _administer(self, *statements: str) -> None:
        with psycopg.connect(self._server.dsn("postgres"), autocommit=True) as admin:
            for statement in statements:
                admin.execute(statement.encode())

    def database(self, *, go: bool = False) -> Database:
        """An empty database, with go-sync-kit's table in it if asked for."""
        name, dsn = f"bench_{next(_numbers)}", self._server.dsn("postgres")
        self._administer(f"CREATE DATABASE {name}")
        self._databases.append(name)
        database = Database(make_conninfo(dsn, dbname=name))
        if go:
            create_table(database)
        return database

    def store(self, *, go: bool = False) -> EventStore:
        """A store of ours, on a table of its own or on Go's."""
        return self._open.enter_context(EventStore(self.database(go=go).dsn))

    def recorder(self) -> Any:
        """A recorder of `eventsourcing`, which locks its table."""
        part = conninfo_to_dict(self.database().dsn)
        datastore = postgres.PostgresDatastore(
            dbname=part["dbname"],
            host=part["host"],
            port=str(part["port"]),
            user=part["user"],
            password="unused",  # noqa: S106 - the server asks for none
            pool_size=8,
            max_overflow=TASKS,
        )
        self._open.callback(datastore.close)
        recorder = postgres.PostgresApplicationRecorder(datastore, events_table_name="stored_events")
        recorder.create_table()
        return recorder

    def go(self, clients: int, transactions: int, batch: int = 1) -> Turn:
        """Transactions per second of the statements that Go's `Store`, or `StoreBatch`, sends."""
        database = self.database(go=True)
        begin, insert, commit = (item["sql"] for item in RECORDED["Store evt-1"]["statements"][-3:])
        values = (
            "gen_random_uuid()::text",
            "gen_random_uuid()::text",
            "'OrderPlaced'",
            f"'{json.dumps(DATA)}'",
            "NULL",
        )
        literal = re.sub(r"\$(\d)", lambda match: values[int(match[1]) - 1], insert)
        script = ";\n".join([begin, *[literal] * batch, commit]) + ";\n"

        def run() -> float:
            with tempfile.NamedTemporaryFile("w", suffix=".sql") as file:
                file.write(script)
                file.flush()
                # "simple": the literal stands where Go binds; "prepared" would prepare each line of a batch anew.
                mode = "prepared" if batch == 1 else "simple"
                command = [self._pgbench, "-n", "-M", mode, "-c", str(clients), "-j", "1", "-t", str(transactions)]
                done = subprocess.run(
                    [*command, "-f", file.name, database.dsn], capture_output=True, text=True, check=True, timeout=300
                )
            found = re.search(r"tps = ([\d.]+)", done.stdout)
            assert found is not None, done.stdout
            return float(found[1])

        return run


@contextlib.contextmanager
def open_stage(scale: Scale) -> Iterator[Stage]:
    """A server that flushes every commit."""
    with EmbeddedPostgres(settings=SETTINGS) as server:
        stage = Stage(server, scale)
        try:
            yield stage
        finally:
            stage.clear()


def single(stage: Stage) -> list[Table]:
    """One event after the other."""
    count = stage.scale.singles

    def of_ours(store: EventStore) -> float:
        events = ours(count)

        def work() -> None:
            for event in events:
                store.store(event)

        return seconds(work) / count * 1000

    def of_theirs(recorder: Any) -> float:
        events = theirs(count)

        def work() -> None:
            for event in events:
                recorder.insert_events([event])

        return seconds(work) / count * 1000

    go = stage.go(1, count)
    turns = {
        "ours: store()": functools.partial(of_ours, stage.store()),
        "ours: store(), Go's table": functools.partial(of_ours, stage.store(go=True)),
        "eventsourcing: insert_events()": functools.partial(of_theirs, stage.recorder()),
        "Go's statements": lambda: 1000 / go(),
    }
    target = Target("ours: store()", "eventsourcing: insert_events()", 2)
    return [
        Table(
            "store_single", "One event after the other, committed", "ms/event", rows(alternate(stage.scale, turns)),
            is_more_better=False, targets=[target],
            notes=["One client. Go's statements by pgbench, without Go's own time."],
        )
    ]  # fmt: skip


def at_once(stage: Stage) -> list[Table]:
    """32 at the same time, each one event after the other."""
    each = stage.scale.concurrent
    database = stage.database(go=True)

    def of_ours() -> float:
        async def run() -> float:
            async with AsyncEventStore(database.dsn) as store:

                async def task(events: list[Event]) -> None:
                    for event in events:
                        await store.store(event)

                given = [ours(each) for _ in range(TASKS)]
                begin = time.perf_counter()
                await asyncio.gather(*(task(events) for events in given))
                return TASKS * each / (time.perf_counter() - begin)

        return asyncio.run(run())

    def of_theirs(recorder: Any) -> float:
        def task(events: list[Any]) -> None:
            for event in events:
                recorder.insert_events([event])

        given = [theirs(each) for _ in range(TASKS)]
        with concurrent.futures.ThreadPoolExecutor(TASKS) as pool:
            return TASKS * each / seconds(lambda: list(pool.map(task, given)))

    turns: dict[str, Turn] = {
        "ours: 32 tasks, Go's table": of_ours,
        "eventsourcing: 32 threads": functools.partial(of_theirs, stage.recorder()),
        "Go's statements: 32 connections": stage.go(TASKS, each),
        "Go's statements: 8 connections": stage.go(8, each * 4),
    }
    targets = [Target("ours: 32 tasks, Go's table", "eventsourcing: 32 threads", 12)]
    found = rows(alternate(stage.scale, turns))
    return [Table("store_concurrent", "By 32 writers at once, committed", "events/s", found, targets=targets)]


def batches(stage: Stage) -> list[Table]:
    """1,000 events in a transaction, and COPY."""
    count = stage.scale.batches

    def of_ours(store: EventStore) -> float:
        given = [ours(BATCH) for _ in range(count)]
        return count * BATCH / seconds(lambda: [store.store_batch(events) for events in given])

    def of_theirs(recorder: Any) -> float:
        given = [theirs(BATCH) for _ in range(count)]
        return count * BATCH / seconds(lambda: [recorder.insert_events(events) for events in given])

    def by_copy(store: EventStore) -> float:
        events = ours(stage.scale.imported)
        return len(events) / seconds(lambda: store.import_events(events))

    go = stage.go(1, count, BATCH)
    turns = {
        "ours: store_batch()": functools.partial(of_ours, stage.store()),
        "ours: store_batch(), Go's table": functools.partial(of_ours, stage.store(go=True)),
        "eventsourcing: insert_events()": functools.partial(of_theirs, stage.recorder()),
        "Go's statements": lambda: BATCH * go(),
        "ours: import_events(), by COPY": functools.partial(by_copy, stage.store()),
    }
    targets = [
        Target("ours: store_batch()", "eventsourcing: insert_events()", 2.2),
        Target("ours: import_events(), by COPY", None, limit=150_000),
    ]
    found = rows(alternate(stage.scale, turns))
    return [Table("store_batch", "In transactions of 1,000 events", "events/s", found, targets=targets)]


def reading(stage: Stage) -> list[Table]:
    """All events, page by page, into Python objects."""
    count = stage.scale.read
    store, recorder = stage.store(), stage.recorder()
    store.import_events(ours(count))
    for _ in range(count // BATCH):
        recorder.insert_events(theirs(BATCH))

    def of_ours(look: Callable[[Any], object]) -> float:
        found = 0

        def work() -> None:
            nonlocal found
            for event in store.read():
                found += look(event) is not None

        took = seconds(work)
        assert found == count
        return count / took

    def of_theirs(look: Callable[[Any], object]) -> float:
        found = 0

        def work() -> None:
            nonlocal found
            start = 1
            while page := recorder.select_notifications(start, PAGE):
                for event in page:
                    found += look(event) is not None
                start = page[-1].id + 1

        took = seconds(work)
        assert found == count
        return count / took

    turns = {
        "ours: read(), undecoded": functools.partial(of_ours, lambda event: event.version),
        "ours: read(), data as dicts": functools.partial(of_ours, lambda event: event.data),
        "eventsourcing: select_notifications(), bytes": functools.partial(of_theirs, lambda event: event.state),
        "eventsourcing: the same and json.loads()": functools.partial(of_theirs, lambda event: json.loads(event.state)),
    }
    rival = "eventsourcing: select_notifications(), bytes"
    targets = [Target("ours: read(), undecoded", rival, 2), Target("ours: read(), data as dicts", rival, 1)]
    notes = ["Pages of 1,000. The second target compares with an alternative that decodes nothing."]
    found = rows(alternate(stage.scale, turns))
    return [Table("store_read", "Reading all events", "events/s", found, targets=targets, notes=notes)]


def live(stage: Stage) -> list[Table]:
    """From the end of the writer's call to the handler, while one event follows the other."""
    count = stage.scale.live
    pause = 0.002
    medians: dict[str, list[float]] = {}

    def times(who: str, iterate: Callable[[], Iterator[str]], write: Callable[[int], str]) -> float:
        stored: dict[str, float] = {}
        handled: dict[str, float] = {}
        iterator = iterate()

        def handle() -> None:
            for event_id in itertools.islice(iterator, count):
                handled[event_id] = time.perf_counter()

        handler = threading.Thread(target=handle)
        handler.start()
        for number in range(count):
            event_id = write(number)
            stored[event_id] = time.perf_counter()
            time.sleep(pause)
        handler.join(60)
        assert set(handled) == set(stored)
        # the handler may be faster than the news of the commit
        waits = sorted(max(handled[event_id] - stored[event_id], 0.0) * 1000 for event_id in stored)
        medians.setdefault(who, []).append(statistics.median(waits))
        return waits[int(len(waits) * 0.99)]

    def of_ours(writer: EventStore, reader: EventStore) -> float:
        with reader.subscribe(END) as subscription:
            while not reader.is_listener_connected:
                time.sleep(0.01)

            def write(number: int) -> str:
                return writer.store(Event("T", f"a{number}", DATA)).id

            return times("ours: subscribe()", lambda: (event.id for event in subscription), write)

    def of_theirs(recorder: Any) -> float:
        began = ask(recorder, "SELECT clock_timestamp()")
        with recorder.subscribe(gt=recorder.max_notification_id()) as subscription:
            wait_for_listener(recorder, began)

            def write(number: int) -> str:
                del number
                event = theirs(1)[0]
                recorder.insert_events([event])
                return str(event.originator_id)

            return times(
                "eventsourcing: subscribe()", lambda: (str(event.originator_id) for event in subscription), write
            )

    database = stage.database()
    writer, reader = EventStore(database.dsn), EventStore(database.dsn)
    with writer, reader:
        turns = {
            "ours: subscribe()": functools.partial(of_ours, writer, reader),
            "eventsourcing: subscribe()": functools.partial(of_theirs, stage.recorder()),
        }
        found = alternate(stage.scale, turns)
    rest = {who: values[1:] for who, values in medians.items()}
    target = Target("ours: subscribe()", "eventsourcing: subscribe()", 2.5)
    notes = ["Writer and handler are threads of one process; each event is followed by a pause of 2 ms."]
    return [
        Table("store_live_p99", "From commit to handler, 99 of 100 within", "ms", rows(found), is_more_better=False,
              targets=[target], notes=notes),
        Table("store_live_p50", "From commit to handler, median", "ms", rows(rest), is_more_better=False, notes=notes),
    ]  # fmt: skip


def fan_out(stage: Stage) -> list[Table]:
    """A thousand subscriptions of one store."""
    count, events = stage.scale.subscriptions, 20
    database = stage.database()
    per_event: list[float] = []

    async def run() -> float:
        async with AsyncEventStore(database.dsn) as store:
            subscriptions = [store.subscribe(END) for _ in range(count)]
            for subscription in subscriptions:
                await subscription.__aenter__()
            await eventually(lambda: store.is_listener_connected, "it listens")
            before = store.stats()
            begin = time.perf_counter()
            for number in range(events):
                await store.store(Event("T", "a", number))
                found = await asyncio.gather(*(subscription.next(60) for subscription in subscriptions))
                assert {event.data for event in found} == {number}
            took = time.perf_counter() - begin
            after = store.stats()
            assert after["pages"] == before["pages"]
            per_event.append((after["reads"] - before["reads"]) / events)
            for subscription in subscriptions:
                subscription.close()
            return took / events * 1000

    found = alternate(stage.scale, {f"ours: {count} subscriptions": lambda: asyncio.run(run())})
    who = f"ours: {count} subscriptions"
    return [
        Table("store_fan_out_reads", "Reads of the table for each event", "reads/event",
              [Row(who, per_event[1:], is_ours=True)], is_more_better=False, targets=[Target(who, None, limit=1.1)],
              notes=["One listening connection and one reader serve all subscriptions."]),
        Table("store_fan_out", "Until every subscription has the event", "ms/event", rows(found), is_more_better=False),
    ]  # fmt: skip


CREATE_TOTALS = "CREATE TABLE totals (aggregate_id text PRIMARY KEY, total bigint)"
ADD = "INSERT INTO totals VALUES (%s, 1) ON CONFLICT (aggregate_id) DO UPDATE SET total = totals.total + 1"
ADD_ALL = (
    "INSERT INTO totals SELECT id, count(*) FROM unnest(%s::text[]) AS id GROUP BY id"
    " ON CONFLICT (aggregate_id) DO UPDATE SET total = totals.total + excluded.total"
)


def add_each(cursor: psycopg.Cursor, batch: EventBatch) -> None:
    """A statement for each event."""
    cursor.executemany(ADD, [(event.aggregate_id,) for event in batch])


def add_all(cursor: psycopg.Cursor, batch: EventBatch) -> None:
    """A statement for all events."""
    cursor.execute(ADD_ALL, ([event.aggregate_id for event in batch],))


def projections(stage: Stage) -> list[Table]:
    """A table of totals in the same database, in batches and with a commit for each event."""
    count = stage.scale.projected
    database = stage.database()
    numbers = itertools.count()
    with EventStore(database.dsn) as store, database.connect() as admin:
        admin.execute(CREATE_TOTALS)
        store.import_events(Event("T", f"a{i % 100}", DATA) for i in range(count))

    def of_batches(max_count: int, add: Callable[[psycopg.Cursor, EventBatch], None]) -> float:
        with EventStore(database.dsn) as store, psycopg.connect(database.dsn) as conn:
            conn.execute("TRUNCATE totals")
            conn.commit()
            begin = time.perf_counter()
            handled = 0
            with store.durable(f"totals{next(numbers)}") as durable:
                for batch in durable.batches(max_count):
                    with conn.transaction():
                        with conn.cursor() as cursor:
                            add(cursor, batch)
                        batch.ack_in(conn)
                    handled += len(batch)
                    if handled == count:
                        took = time.perf_counter() - begin  # without leaving, which waits for the renewing thread
                        break
            assert conn.execute("SELECT sum(total) FROM totals").fetchone() == (count,)
        return count / took

    turns: dict[str, Turn] = {
        "ours: batches of 500, a statement for each batch": functools.partial(of_batches, 500, add_all),
        "ours: batches of 500, a statement for each event": functools.partial(of_batches, 500, add_each),
        "one commit for each event": functools.partial(of_batches, 1, add_each),
    }
    note = (
        "With batches a projection can apply many events by one statement. Where it sends a statement for each event,"
        " these take most of the time."
    )
    target = Target("ours: batches of 500, a statement for each batch", "one commit for each event", 20)
    return [
        Table("store_projections", "Applying events to a table of the same database, exactly once", "events/s",
              rows(alternate(stage.scale, turns)), targets=[target],
              notes=[note])
    ]  # fmt: skip


def aggregates(stage: Stage) -> list[Table]:
    """The 20 events of an aggregate, among many others."""
    length, count, loads = 20, stage.scale.read // 20, stage.scale.singles
    store, recorder = stage.store(), stage.recorder()
    ids = [uuid.uuid4() for _ in range(count)]
    store.import_events(Event("OrderPlaced", str(each), DATA) for _ in range(length) for each in ids)
    for first in range(0, count, 50):
        some = ids[first : first + 50]
        recorder.insert_events(
            [
                persistence.StoredEvent(each, number, "Order.Placed", STATE)
                for number in range(1, length + 1)
                for each in some
            ]
        )
    asked = [ids[i * 7 % count] for i in range(loads)]

    def timed(load: Callable[[uuid.UUID], Any]) -> float:
        assert len(load(asked[0])) == length
        return seconds(lambda: [load(each) for each in asked]) / loads * 1000

    theirs_name = "eventsourcing: select_events()"
    turns: dict[str, Turn] = {
        "ours: load_by_aggregate()": lambda: timed(lambda each: store.load_by_aggregate(str(each))),
        theirs_name: lambda: timed(recorder.select_events),
    }
    found = rows(alternate(stage.scale, turns))
    targets = [Target("ours: load_by_aggregate()", theirs_name, 3)]
    return [
        Table("store_aggregate", f"The {length} events of an aggregate among {count * length:,}", "ms/call", found,
              is_more_better=False, targets=targets)
    ]  # fmt: skip


def grown(database: Database, count: int) -> None:
    """Many events by one statement; every thousandth part of them belongs to one category."""
    with EventStore(database.dsn) as store:
        store.open()
    with database.connect() as admin:
        admin.execute("ALTER TABLE events DISABLE TRIGGER USER")
        admin.execute(
            "INSERT INTO events (id, aggregate_id, event_type, data) SELECT gen_random_uuid(),"
            " CASE WHEN i %% %s = 0 THEN 'rare-' ELSE 'order-' END || i, 'T', %s FROM generate_series(1, %s) AS i",
            (max(count // 1000, 1), json.dumps(DATA), count),
        )
        admin.execute("ALTER TABLE events ENABLE TRIGGER USER")
        admin.execute("VACUUM ANALYZE events")


def growing(stage: Stage) -> list[Table]:
    """A page in the middle of a small and of a large table, and a category of 1,000 in the large one."""
    tables = {count: stage.database() for count in stage.scale.growth}
    for count, database in tables.items():
        grown(database, count)

    def page(count: int) -> float:
        with EventStore(tables[count].dsn) as store:
            assert len(store.load(count // 2, limit=PAGE)) == PAGE
            return seconds(lambda: [store.load(count // 2 + i, limit=PAGE) for i in range(10)]) / 10 * 1000

    names = {count: f"ours: a page of {PAGE:,} of {count:,} events" for count in tables}
    turns: dict[str, Turn] = {name: functools.partial(page, count) for count, name in names.items()}
    found = rows(alternate(stage.scale, turns))
    small, large = names.values()
    result = [
        Table("store_growth", "A page as the table grows", "ms/page", found, is_more_better=False,
              targets=[Target(large, small, 1 / 1.3)])
    ]  # fmt: skip

    most = max(tables)
    database = tables[most]

    def catch_up() -> float:
        with EventStore(database.dsn) as store:
            begin, seen = time.perf_counter(), 0
            with store.subscribe(0, [Filter("aggregate_prefix", "rare-")]) as live:
                while seen < 1000:
                    assert live.next(60).aggregate_id.startswith("rare-")
                    seen += 1
            return (time.perf_counter() - begin) * 1000

    # Without an index the time grows with the table, and with one it hardly does.
    factor = 100 if most >= LARGE.growth[1] else 10
    without = alternate(stage.scale, {"ours: without an index": catch_up})
    with EventStore(database.dsn) as store:
        store.add_index("category")
    with database.connect() as admin:
        admin.execute("ANALYZE events")
    indexed = alternate(stage.scale, {"ours: with add_index()": catch_up})
    result.append(
        Table("store_category", f"Catching up with a category of 1,000 among {most:,} events", "ms",
              rows({**indexed, **without}), is_more_better=False,
              targets=[Target("ours: with add_index()", "ours: without an index", factor)])
    )  # fmt: skip
    return result


def index_costs(stage: Stage) -> list[Table]:
    """What an index costs a writer."""
    count = stage.scale.batches
    kinds: dict[str, dict[str, Any]] = {
        "ours: no further index": {},
        "ours: by type": {"kind": "type"},
        "ours: by category": {"kind": "category"},
        "ours: by partition": {"kind": "partition", "partitions": 8},
    }

    def of(store: EventStore) -> float:
        given = [ours(BATCH) for _ in range(count)]
        results = []
        took = seconds(lambda: results.extend(store.store_batch(events) for events in given))
        assert sum(map(len, results)) == count * BATCH
        return count * BATCH / took

    turns: dict[str, Turn] = {}
    for name, arguments in kinds.items():
        store = stage.store()
        if arguments:
            store.add_index(**arguments)
        turns[name] = functools.partial(of, store)
    found = rows(alternate(stage.scale, turns))
    notes = ["Batches of 1,000 events of as many aggregates, on a table that this package has made."]
    return [Table("store_index_costs", "What an index costs a writer", "events/s", found, notes=notes)]


JOBS: dict[str, Callable[[Stage], list[Table]]] = {
    "single": single,
    "at-once": at_once,
    "batches": batches,
    "reading": reading,
    "live": live,
    "fan-out": fan_out,
    "projections": projections,
    "aggregates": aggregates,
    "growing": growing,
    "index-costs": index_costs,
}


def measure(scale: Scale, names: list[str]) -> Section:
    """Run jobs one after the other."""
    tables: list[Table] = []
    with open_stage(scale) as stage:
        for name in names:
            sys.stderr.write(f"{name}\n")
            tables += JOBS[name](stage)
            stage.clear()
        locale = str(stage.database().value("SELECT datcollate FROM pg_database WHERE datname = current_database()"))
        settings = {
            "PostgreSQL": stage.version,
            "locale": locale,
            "repetitions": str(scale.repetitions),
            **SETTINGS,
        }
    return Section(
        name="event_store",
        title="Event store",
        order=20,
        command="python -m benches.event_store",
        settings=settings,
        tables=tables,
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benches.event_store", description=__doc__)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--check", action="store_true", help="each job once and small, nothing is saved")
    size.add_argument("--large", action="store_true", help="with a table of 10 million events; keep 10 GB of disk free")
    parser.add_argument("--only", nargs="+", choices=JOBS, default=list(JOBS), metavar="NAME")
    arguments = parser.parse_args()
    scale = CHECK if arguments.check else LARGE if arguments.large else FULL
    section = measure(scale, arguments.only)
    if not arguments.check and arguments.only == list(JOBS):
        sys.stderr.write(f"saved {save(section)}\n")


if __name__ == "__main__":
    main()
