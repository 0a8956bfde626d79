"""Storing events on a connection of the user's own, in their transaction."""

from __future__ import annotations

import datetime as dt
import json
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

from socketio_postgres._bus.async_statements import rows_on
from socketio_postgres._bus.drivers import sqlstate_of
from socketio_postgres.events.event import StoreResult
from socketio_postgres.events.growth import Growth
from socketio_postgres.exceptions import (
    DuplicateEventError,
    OptionsError,
    SchemaMismatchError,
    WrongExpectedVersionError,
)

__all__ = ["store_in"]

_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.timezone.utc)
EXPECTED_EXISTS: Final = -1
_UNIQUE_VIOLATION: Final = "23505"

_MARK: Final = "socketio_postgres.store_in"
"""A setting of the transaction: where the next statement does not find it, no transaction is open."""

# One parameter, a JSON text, carries all events: every library and driver can send it.
_GIVEN: Final = """pg_catalog.json_to_recordset(CAST(CAST(%s AS pg_catalog.text) AS pg_catalog.json))
    AS e(n int, id pg_catalog.text, aggregate_id pg_catalog.text, event_type pg_catalog.text, data pg_catalog.text,
        metadata pg_catalog.text)"""

_TURN: Final = "SELECT CAST(pg_catalog.pg_advisory_xact_lock({lock_class}, {turn_key}) AS pg_catalog.text)"

# In the order of the keys, so that two writers never wait for one another in a circle. Under the guard every lock is
# exclusive: its trigger asks for that, and two writers with shared ones would wait for each other. What counts is
# which triggers there are now, and not which there were when the store was opened.
_LOCK: Final = f"""
SELECT pg_catalog.set_config('{_MARK}', CAST(%s AS pg_catalog.text), true),
    pg_catalog.current_setting('transaction_isolation'),
    CAST(CAST(pg_catalog.to_regclass(CAST(%s AS pg_catalog.text)) AS pg_catalog.oid) AS bigint),
    (SELECT pg_catalog.count(CASE
            WHEN is_guarded OR {{is_conditional}} THEN
                CAST(pg_catalog.pg_advisory_xact_lock({{lock_class}}, key) AS pg_catalog.text)
            ELSE CAST(pg_catalog.pg_advisory_xact_lock_shared({{lock_class}}, key) AS pg_catalog.text) END)
        FROM (SELECT DISTINCT pg_catalog.hashtext(a) & {{lock_mask}} AS key
            FROM pg_catalog.json_array_elements_text(CAST(CAST(%s AS pg_catalog.text) AS pg_catalog.json)) AS a
            ORDER BY key) AS keys),
    notifies_go, is_guarded, is_serial
FROM (SELECT coalesce(pg_catalog.bool_or(p.proname = 'notify_event_inserted'), false) AS notifies_go,
        coalesce(pg_catalog.bool_or(t.tgname = c.relname || '_guard'), false) AS is_guarded,
        coalesce(pg_catalog.bool_or(t.tgname = c.relname || '_serial'), false) AS is_serial
    FROM pg_catalog.pg_trigger t JOIN pg_catalog.pg_proc p ON p.oid = t.tgfoid
        JOIN pg_catalog.pg_class c ON c.oid = t.tgrelid
    WHERE t.tgrelid = {{oid}} AND t.tgenabled IN ('O', 'A')
    OFFSET 0) AS now
"""

# OFFSET forbids PostgreSQL to compare the events with the whole table, which seems to be best while the table is small:
# the library may keep that plan while the table grows.
_LOOK: Final = f"""{{mark}}
SELECT 'known', e.n, t.version, CAST(extract(epoch FROM t.created_at) * 1000000 AS bigint),
    CASE WHEN t.aggregate_id = e.aggregate_id AND t.event_type = e.event_type
        AND coalesce(t.data, 'null') = coalesce(CAST(e.data AS pg_catalog.jsonb), 'null')
        AND coalesce(t.metadata, 'null') = coalesce(CAST(e.metadata AS pg_catalog.jsonb), 'null')
        THEN 'same' ELSE 'other' END
FROM {_GIVEN}, LATERAL (SELECT id, aggregate_id, event_type, data, metadata, version, created_at
    FROM {{table}} t WHERE t.id = e.id OFFSET 0) AS t
UNION ALL
SELECT 'last', 0, coalesce((SELECT {{last}} FROM {{table}} t WHERE t.aggregate_id = a), 0), NULL, a
FROM pg_catalog.json_array_elements_text(CAST(CAST(%s AS pg_catalog.text) AS pg_catalog.json)) AS a
UNION ALL
SELECT 'mark', 0, 0, NULL, pg_catalog.current_setting('{_MARK}', true)
"""

_INSERT: Final = f"""
INSERT INTO {{table}} (id, aggregate_id, event_type, data, metadata)
SELECT id, aggregate_id, event_type, CAST(data AS pg_catalog.jsonb), CAST(metadata AS pg_catalog.jsonb)
FROM {_GIVEN} ORDER BY n
RETURNING id, version, CAST(extract(epoch FROM created_at) * 1000000 AS bigint)
"""


async def store_in(
    conn: Any,
    layout: Mapping[str, Any],
    events: Sequence[tuple[str, str, str, str | None, str | None]],
    checks: Mapping[str, int],
    growth: Growth,
    look_again: Callable[[], Awaitable[None]],
) -> list[StoreResult]:
    """Store events in the transaction that is open on a connection; see `AsyncEventStore.store_batch_in`.

    Args:
        conn: A connection of psycopg, asyncpg, SQLAlchemy or Django.
        layout: What was found out about the table.
        events: Id, aggregate id, type, data and metadata of each.
        checks: What is expected of aggregates: a version, 0 for no events, -1 for any number of them.
        growth: What the table's earlier calls have seen.
        look_again: Called when the table has other triggers than `layout` says. Raises when the events exceed a limit
            of theirs; nothing is inserted then, and the transaction can go on.
    """
    table = str(layout["table_name"])
    mark = uuid.uuid4().hex
    aggregates = json.dumps(sorted({event[1] for event in events} | set(checks)))
    if layout["is_serial"]:
        await rows_on(conn, _TURN.format(**layout), [])
    statement = _LOCK.format(is_conditional="true" if checks else "false", **layout)
    ((_, isolation, oid, _, *now),) = await rows_on(conn, statement, [mark, table, aggregates])
    if oid != layout["oid"]:
        raise SchemaMismatchError(
            f"table {table} is another one on this connection, or none: it leads to another database, or has another"
            " search_path; give table_name with its schema",
            table_name=table,
            reason="it is another one on this connection",
        )
    if checks and isolation not in {"read committed", "read uncommitted"}:
        raise _bad_conn(f"an expected version needs the isolation level READ COMMITTED, not {isolation.upper()}")
    if now != [layout[key] for key in ("notifies_go", "is_guarded", "is_serial")]:
        await look_again()
    names = ("n", "id", "aggregate_id", "event_type", "data", "metadata")
    given: list[dict[str, Any]] = [dict(zip(names, (n, *event), strict=True)) for n, event in enumerate(events)]
    last = "pg_catalog.max(t.version)" if layout["has_aggregate_index"] else "pg_catalog.max(t.version + 0)"
    statement = _LOOK.format(table=table, last=last, mark=growth.mark)
    found = await rows_on(conn, statement, [json.dumps(given), json.dumps(sorted(checks))])
    positions = _known(found, given, mark)
    missing = [event for event in given if event["id"] not in positions]
    if missing:
        _check(found, checks)
        stored = await _insert(conn, table, missing)
        growth.has_seen(max(result.version for result in stored.values()))
        positions.update(stored)
    return [positions[event["id"]] for event in given]


def _known(found: list[tuple[Any, ...]], given: list[dict[str, Any]], mark: str) -> dict[str, StoreResult]:
    """Where events are that were stored before."""
    if not any(kind == "mark" and text == mark for kind, _, _, _, text in found):
        raise _bad_conn("open a transaction on it first")
    positions = {}
    for _, n, version, created_at, text in (row for row in found if row[0] == "known"):
        event_id = given[n]["id"]
        if text != "same":
            raise DuplicateEventError(
                f"event id {event_id!r} is taken by the event of version {version}, which is another one",
                event_id=event_id,
                version=version,
            )
        positions[event_id] = StoreResult(version, event_id, _time(created_at), is_duplicate=True)
    return positions


def _check(found: list[tuple[Any, ...]], checks: Mapping[str, int]) -> None:
    """Whether aggregates are as expected."""
    for _, _, actual, _, aggregate_id in (row for row in found if row[0] == "last"):
        expected = checks[aggregate_id]
        if actual == 0 if expected == EXPECTED_EXISTS else actual != expected:
            raise WrongExpectedVersionError(
                f"aggregate {aggregate_id!r} is at version {actual}, expected was {expected}"
                " (0: no events, -1: at least one); nothing was stored",
                aggregate_id=aggregate_id,
                expected=expected,
                actual=actual,
            )


async def _insert(conn: Any, table: str, missing: list[dict[str, Any]]) -> dict[str, StoreResult]:
    try:
        rows = await rows_on(conn, _INSERT.format(table=table), [json.dumps(missing)])
    except Exception as error:
        if sqlstate_of(error) != _UNIQUE_VIOLATION:
            raise
        if "(version)=" in str(error):  # in the detail, whatever the language of the messages
            raise SchemaMismatchError(
                f"the sequence of {table} is behind the table, so it assigns versions that exist; roll back, and open a"
                " new store: its error has the statement to run",
                table_name=table,
                reason="its sequence is behind the table",
            ) from error
        raise DuplicateEventError(
            "another transaction has stored an event with the same id meanwhile; roll back and try again"
        ) from error
    return {event_id: StoreResult(version, event_id, _time(at), is_duplicate=False) for event_id, version, at in rows}


def _time(micros: int | None) -> dt.datetime | None:
    return None if micros is None else _EPOCH + dt.timedelta(microseconds=micros)


def _bad_conn(reason: str) -> OptionsError:
    return OptionsError(f"invalid conn: {reason}", option="conn", value="", reason=reason)
