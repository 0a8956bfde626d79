"""`socketio-postgres events trim`: old events are deleted for ever.

The store has no method for this, because an application never changes events. It is a task of an operator, so it is
plain SQL, for a role that may DELETE, in chunks that hold no lock for long. Some events always stay, because readers
find their place by them: see `_KEPT`.
"""

from __future__ import annotations

import asyncio
from typing import Any

import click

from socketio_postgres._bus.drivers import literal
from socketio_postgres.cli.durables import side_table
from socketio_postgres.cli.output import errors, progress
from socketio_postgres.cli.session import Session, ask
from socketio_postgres.cli.store import open_store, store_options

__all__ = ["trim"]

CHUNK = 1000
"""Events that one statement, which is one transaction, deletes."""

_KEPT = {
    "_subscriptions": "position",  # entering a durable subscription checks the id of the event at its position
    "_parked": "version",  # they are still to be handled
    "_settled": "version",  # without this event, readers that start know nothing of what is final
}
"""Events that stay: the column that names them, by the suffix of the side table."""


@click.command()
@click.argument("version", type=click.IntRange(min=1))
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--force", is_flag=True, help="Also if a durable subscription has not handled all of them yet.")
@store_options
def trim(version: int, dsn: str, table_name: str, *, yes: bool, force: bool, **options: Any) -> None:
    """Delete the events up to VERSION for ever.

    Refused while a durable subscription is behind VERSION. Parked events, the newest event, and those at which durable
    subscriptions are stay.
    """
    with open_store(dsn, table_name=table_name, **options) as store:
        newest = store.latest_version()
        table = store.layout()["table_name"]
    if version >= newest:
        raise click.ClickException(f"the newest event, {newest}, must stay: readers know the table by it")
    sides = _sides(dsn, table_name)
    if not force:
        _check_nobody_is_behind(dsn, sides, version)
    doomed = _doomed(table, sides, version)
    ((text,),) = ask(dsn, f"SELECT pg_catalog.count(*)::pg_catalog.text FROM {table} WHERE {doomed}")
    count = int(text or 0)
    if not yes:
        click.confirm(f"Delete {count} events up to version {version} of {table} for ever?", abort=True, err=True)
    deleted = asyncio.run(_trim(dsn, table, sides, version, count, is_forced=force))
    errors.print(f"{deleted} events are deleted")
    if not force:
        _check_nobody_is_behind(dsn, sides, version)  # one that fell behind meanwhile is why some are left


def _sides(dsn: str, table_name: str) -> dict[str, str]:
    """The side tables that exist, by suffix."""
    names = {suffix: side_table(table_name, suffix) for suffix in _KEPT}
    columns = ", ".join(f"pg_catalog.to_regclass({literal(name)})::pg_catalog.text" for name in names.values())
    (found,) = ask(dsn, f"SELECT {columns}")
    return {suffix: name for (suffix, name), oid in zip(names.items(), found, strict=True) if oid is not None}


def _check_nobody_is_behind(dsn: str, sides: dict[str, str], version: int) -> None:
    if "_subscriptions" not in sides:
        return
    rows = ask(
        dsn,
        f"SELECT name, pg_catalog.min(position)::pg_catalog.text FROM {sides['_subscriptions']}"
        f" WHERE position < {version} GROUP BY name ORDER BY name",
    )
    if rows:
        told = ", ".join(f"{name} is at {position}" for name, position in rows)
        raise click.ClickException(f"durable subscriptions are behind {version}: {told}. --force deletes all the same")


def _doomed(table: str, sides: dict[str, str], version: int) -> str:
    """The condition of the events that go."""
    kept = (
        f" AND NOT EXISTS (SELECT FROM {name} k WHERE k.{_KEPT[suffix]} = {table}.version)"
        for suffix, name in sides.items()
    )
    return f"version <= {version}" + "".join(kept)


async def _trim(dsn: str, table: str, sides: dict[str, str], version: int, count: int, *, is_forced: bool) -> int:
    """Delete chunk by chunk, until nothing is left or a subscription falls behind."""
    behind = ""
    if "_subscriptions" in sides and not is_forced:
        behind = f" AND NOT EXISTS (SELECT FROM {sides['_subscriptions']} s WHERE s.position < {version})"
    doomed = _doomed(table, sides, version)
    deleted = after = 0
    async with Session(dsn) as session:
        with progress() as bar:
            task = bar.add_task("events", total=count)
            while True:
                ((last, gone),) = await session.rows(
                    f"WITH chunk AS (SELECT version FROM {table} WHERE {doomed} AND version > {after}"
                    f" ORDER BY version LIMIT {CHUNK}), gone AS (DELETE FROM {table}"
                    f" WHERE version IN (SELECT version FROM chunk){behind} RETURNING version)"
                    " SELECT (SELECT pg_catalog.max(version) FROM chunk)::pg_catalog.text,"
                    " (SELECT pg_catalog.count(*) FROM gone)::pg_catalog.text"
                )
                if last is None:
                    return deleted
                after = int(last)
                deleted += int(gone or 0)
                bar.update(task, completed=deleted)
