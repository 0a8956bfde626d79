"""What `doctor` looks at: each function asks PostgreSQL and yields findings, the most basic ones first."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any, Final

from socketio_postgres import _core
from socketio_postgres._bus.bus import Bus
from socketio_postgres._bus.drivers import literal
from socketio_postgres._bus.options import BusOptions
from socketio_postgres.cli.finding import Finding, fault, note, ok, warning
from socketio_postgres.cli.session import Session
from socketio_postgres.events import AsyncEventStore
from socketio_postgres.exceptions import (
    ConnectionLostError,
    DatabaseError,
    EventStoreError,
    SelfTestError,
    SocketIOPostgresError,
)

__all__ = ["cluster", "connection", "event_store", "pooling", "server"]

_OLDEST: Final = 130_000
"""The first version that the tests run on."""

_MENDED: Final = {14: 21, 15: 16, 16: 12, 17: 8, 18: 2}
"""The first minor release of each major one whose LISTEN cannot fail with "could not access status of transaction"."""

_QUEUE_WARNING: Final = 0.1
_QUEUE_FAULT: Final = 0.5

_STANDBY: Final = "Let listen_dsn and dsn lead to the primary: a standby knows neither LISTEN nor NOTIFY."

_REFUSALS: Final = {
    "25006": _STANDBY,
    "28P01": "Check the password: in the DSN, in PGPASSWORD, or in ~/.pgpass.",
    "28000": "Check pg_hba.conf and whether the role may log in (ALTER ROLE … LOGIN).",
    "3D000": "Create the database, or give another one in the DSN.",
    "42501": "Grant the right that the message names.",
    "53300": "Raise max_connections, or close other sessions.",
    "57P03": "The server is starting up or recovering; try again.",
}
"""What to do about refused connections, by SQLSTATE."""

_POOLER: Final = (
    "Give a DSN without the pooler, or one of a pool in session mode, as listen_dsn: a pooler in transaction mode lends"
    " the connection to others, and LISTEN is lost."
)

_CAUSES: Final = {
    "transaction_pooling": _POOLER,
    "other_database": "Let dsn and listen_dsn lead to the same database: notifications never leave theirs.",
    "standby": _STANDBY,
}
"""What to do about a failed self-test, by its likely cause."""

_FACTS: Final = """SELECT pg_catalog.json_build_object(
    'version', pg_catalog.current_setting('server_version_num')::int,
    'version_text', pg_catalog.current_setting('server_version'),
    'encoding', pg_catalog.current_setting('server_encoding'),
    'database', pg_catalog.current_database(), 'user', current_user)::pg_catalog.text"""

_PID: Final = "SELECT pg_catalog.pg_backend_pid()::pg_catalog.text"

_QUEUE: Final = """SELECT pg_catalog.pg_notification_queue_usage()::pg_catalog.text,
    (SELECT pg_catalog.format('%s (%s), %s since %s', pid, application_name, state, xact_start)
     FROM pg_catalog.pg_stat_activity WHERE datname = pg_catalog.current_database() AND xact_start IS NOT NULL
         AND pid <> pg_catalog.pg_backend_pid() ORDER BY xact_start LIMIT 1)"""

_TABLE: Final = """SELECT pg_catalog.json_build_object('exists', c.relation IS NOT NULL,
    'select', pg_catalog.has_table_privilege(c.relation, 'SELECT'),
    'insert', pg_catalog.has_table_privilege(c.relation, 'INSERT'),
    'delete', pg_catalog.has_table_privilege(c.relation, 'DELETE'),
    'sequence', CASE WHEN EXISTS (SELECT FROM pg_catalog.pg_attribute WHERE attrelid = c.relation AND attname = 'id')
        THEN pg_catalog.has_sequence_privilege(
            pg_catalog.pg_get_serial_sequence(c.relation::pg_catalog.regclass::pg_catalog.text, 'id'), 'USAGE')
        ELSE true END,
    'create', pg_catalog.has_schema_privilege(
        coalesce(pg_catalog.current_schema(), 'public'), 'CREATE'))::pg_catalog.text
    FROM (SELECT pg_catalog.to_regclass({table})::pg_catalog.oid AS relation) AS c"""


_OF_EVENTS: Final = ("version", "id", "aggregate_id", "event_type", "data", "metadata")
"""Columns by which an event table is told from another table of its name."""

_EVENT_COLUMNS: Final = (
    "SELECT CASE WHEN pg_catalog.to_regclass({table}) IS NOT NULL THEN (SELECT pg_catalog.count(*)::pg_catalog.text"
    " FROM pg_catalog.pg_attribute WHERE attrelid = pg_catalog.to_regclass({table}) AND NOT attisdropped"
    f" AND attname IN {_OF_EVENTS}) END"
)


def _refused(about: str, error: SocketIOPostgresError) -> Finding:
    sqlstate = error.sqlstate if isinstance(error, DatabaseError) else ""
    remedy = _REFUSALS.get(sqlstate, "Check host, port and network: psql must connect with the same DSN.")
    return fault(about, str(error), remedy)


async def connection(about: str, session: Session) -> Finding:
    """Whether a connection is possible at all."""
    try:
        await session.rows("SELECT 1")
    except SocketIOPostgresError as error:
        return _refused(about, error)
    return ok(about, session.description)


async def pooling(listen_dsn: str) -> AsyncGenerator[Finding, None]:
    """Whether a session keeps its connection, as LISTEN needs it to.

    A pooler in transaction mode gives the connection of a session that is between two transactions to whoever asks.
    While nobody else does, LISTEN seems to work.
    """
    async with Session(listen_dsn) as one, Session(listen_dsn) as other:
        ((before,),) = await one.rows(_PID)
        ((pid,),) = await other.rows(f"BEGIN; {_PID}")
        await other.rows("ROLLBACK")
        ((after,),) = await one.rows(_PID)
    if before == pid or before != after:
        text = "a pooler in transaction mode is between this process and PostgreSQL"
        yield fault("pooling", text, _POOLER)
    else:
        yield ok("pooling", "a session keeps its connection")


async def server(session: Session) -> AsyncGenerator[Finding, None]:
    """What kind of server it is, and how full its notification queue is."""
    ((text,),) = await session.rows(_FACTS)
    facts: dict[str, Any] = json.loads(text or "{}")
    major, minor = divmod(facts["version"], 10_000)
    name = f"PostgreSQL {facts['version_text']}"
    if facts["version"] < _OLDEST:
        yield fault("version", f"{name} is older than any that this package supports", "Use PostgreSQL 13 or newer.")
    elif minor < _MENDED.get(major, 0):
        yield warning(
            "version",
            f"{name}: LISTEN may fail with 'could not access status of transaction', and a notification may be lost",
            f"Update to {major}.{_MENDED[major]} or newer.",
        )
    else:
        yield ok("version", name)
    yield ok("role", f"{facts['user']!r}, in the database {facts['database']!r}")
    if facts["encoding"] == "UTF8":
        yield ok("encoding", "UTF8")
    else:
        yield warning(
            "encoding",
            f"the database's encoding is {facts['encoding']}: messages with characters that it lacks travel as"
            " attachments, and raw notifications and events with them are refused",
            "Use a database with the encoding UTF8.",
        )
    ((usage, oldest),) = await session.rows(_QUEUE)
    share = float(usage or 0)
    told = f"the notification queue is {share:.0%} full" + (f"; the oldest transaction is {oldest}" if oldest else "")
    remedy = (
        "End the session whose transaction is old: a listener in an open transaction keeps the queue from emptying."
    )
    if share >= _QUEUE_FAULT:
        yield fault("queue", f"{told}; when it is full, every commit that notifies fails", remedy)
    elif share >= _QUEUE_WARNING:
        yield warning("queue", told, remedy)
    else:
        yield ok("queue", f"the notification queue is {share:.1%} full")


async def cluster(
    dsn: str, keywords: dict[str, Any], namespaces: list[str], session: Session
) -> AsyncGenerator[Finding, None]:
    """Whether messages reach those who listen, and whether the attachment table can be used."""
    for namespace in namespaces:
        try:
            channel = _core.channel_name(keywords["channel"], namespace)
        except SocketIOPostgresError as error:
            yield fault("channel", str(error), "Shorten the channel prefix or the namespace: 63 bytes together.")
        else:
            yield ok("channel", channel)
    bus = Bus(BusOptions.of(dsn, {**keywords, "create_table": False}), uid=str, is_raw=True)
    try:
        try:
            core = bus.core
            await bus.call(lambda inbox, token: core.start_publisher(False, inbox, token))
            await bus.call(core.start_listener)
            await bus.call(core.self_test)
        except SelfTestError as error:
            yield fault("LISTEN", str(error), _CAUSES.get(error.likely_cause, "Check what dsn and listen_dsn lead to."))
        except SocketIOPostgresError as error:
            yield _refused("LISTEN", error)
        else:
            yield ok("LISTEN", "what is published comes back to the listening session")
        yield await _attachments(bus, keywords["table_name"], session)
    finally:
        await bus.close(1.0)


async def _attachments(bus: Bus, table_name: str, session: Session) -> Finding:
    about = "attachments"
    ((text,),) = await session.rows(_TABLE.format(table=literal(table_name)))
    table: dict[str, Any] = json.loads(text or "{}")
    if not table["exists"]:
        if table["create"]:
            return note(about, f"table {table_name} does not exist yet; the first attachment creates it")
        return fault(
            about,
            f"table {table_name} does not exist, and this role may not create it",
            "Let its owner run what `socketio-postgres sql` prints.",
        )
    missing = [right.upper() for right in ("select", "insert", "delete") if not table[right]]
    if missing or not table["sequence"]:
        rights = [f"{', '.join(missing)} on the table"] if missing else []
        rights += [] if table["sequence"] else ["USAGE on its sequence"]
        return fault(
            about,
            f"this role lacks {' and '.join(rights)} {table_name}",
            "Grant them; `socketio-postgres sql --role ROLE` prints the statements. A process that only emits needs"
            " INSERT and USAGE.",
        )
    try:
        await bus.call(bus.core.ensure_table)
    except SocketIOPostgresError as error:
        return fault(about, str(error), "Give another table_name, or mend the table as `socketio-postgres sql` has it.")
    return ok(about, f"table {table_name} has the right columns, and this role may use it")


async def event_store(
    dsn: str, listen_dsn: str | None, table_name: str | None, session: Session
) -> AsyncGenerator[Finding, None]:
    """Whether the event table is in order, and who holds its readers up."""
    about, name = "event store", table_name or "events"
    ((columns,),) = await session.rows(_EVENT_COLUMNS.format(table=literal(name)))
    if columns is None:
        if table_name is not None:
            yield note(about, f"table {name} does not exist yet; the first store creates it")
        return
    if table_name is None and int(columns) < len(_OF_EVENTS):
        yield note(about, f"there is a table {name}, but it is no event table", "Ignore this without a store.")
        return
    store = AsyncEventStore(dsn, listen_dsn=listen_dsn, table_name=name, create_table=False)
    try:
        try:
            await store.open()
        except (EventStoreError, DatabaseError, ConnectionLostError) as error:
            yield fault(about, str(error), "Mend what the message names.")
            return
        layout = store.layout()
        yield ok(about, f"table {layout['table_name']}")
        for each in await _sequence(layout["table_name"], layout["sequence"], session):
            yield each
        if not layout["has_aggregate_index"]:
            yield warning(
                "event index",
                "no index on (aggregate_id, version): expected versions are looked up by scanning an aggregate",
                f"CREATE INDEX CONCURRENTLY ON {layout['table_name']} (aggregate_id, version);",
            )
        if layout["notifies_go"] and not layout["is_guarded"]:
            yield note(
                "guard",
                "go-sync-kit's trigger is there, and no guard: expected versions are not exact for writers in Go",
                "Call `await store.enable_guard()` once if processes in Go write to aggregates that others check.",
            )
        blockers = await store.blockers()
        if blockers:
            yield warning(
                "open transactions",
                f"readers wait for {len(blockers)}: " + "; ".join(map(str, blockers)),
                "End them soon; idle_in_transaction_session_timeout does so by itself.",
            )
        else:
            yield ok("open transactions", "none has stored events")
    finally:
        await store.close()


async def _sequence(table: str, sequence: str, session: Session) -> list[Finding]:
    """Whether the sequence is behind the table, as after a restore of the data alone."""
    rows = await session.rows(
        f"SELECT CASE WHEN is_called THEN last_value ELSE 0 END::pg_catalog.text,"
        f" (SELECT coalesce(pg_catalog.max(version), 0) FROM {table})::pg_catalog.text FROM {sequence}"
    )
    last, highest = (int(value or 0) for value in rows[0])
    if last >= highest:
        return [ok("sequence", f"at {last}")]
    return [
        fault(
            "sequence",
            f"{sequence} is at {last}, behind the table's last version {highest}:"
            " new events would be refused or missed",
            f"SELECT pg_catalog.setval({literal(sequence)}, {highest});",
        )
    ]
