"""Options that the commands of the event store share, and the store that they open."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from socketio_postgres.cli.options import dsn_option, listen_dsn_option
from socketio_postgres.events import AsyncEventStore, EventStore, Filter, StoredEvent

__all__ = ["async_store", "fields_of", "filter_options", "filters_of", "open_store", "store_options"]

Command = TypeVar("Command", bound=Callable[..., Any])


def store_options(command: Command) -> Command:
    """The options of every command here; `open_store` makes a store of them."""
    table = click.option("--table-name", default="events", show_default=True, help="The event table.")
    return dsn_option(listen_dsn_option(table(command)))


def filter_options(command: Command) -> Command:
    """Which events are wanted; `filters_of` makes filters of them."""
    kind = click.option("--type", "types", multiple=True, metavar="TYPE", help="Only this type; may be repeated.")
    aggregate = click.option("--aggregate", metavar="ID", help="Only this aggregate.")
    prefix = click.option("--aggregate-prefix", metavar="TEXT", help="Only aggregates whose id begins with this.")
    return kind(aggregate(prefix(command)))


def filters_of(types: tuple[str, ...], aggregate: str | None, aggregate_prefix: str | None) -> list[Filter]:
    """The filters of `filter_options`."""
    given = {"type": list(types) or None, "aggregate_id": aggregate, "aggregate_prefix": aggregate_prefix}
    return [Filter(kind, value) for kind, value in given.items() if value is not None]


def open_store(dsn: str, listen_dsn: str | None, table_name: str) -> EventStore:
    """A store that creates no event table: a wrong name is an error here."""
    return EventStore(dsn, listen_dsn=listen_dsn, table_name=table_name, create_table=False)


def async_store(dsn: str, listen_dsn: str | None, table_name: str) -> AsyncEventStore:
    """The same for asyncio."""
    return AsyncEventStore(dsn, listen_dsn=listen_dsn, table_name=table_name, create_table=False)


def fields_of(event: StoredEvent[Any]) -> dict[str, Any]:
    """An event as a JSON line has it."""
    return {
        "version": event.version,
        "id": event.id,
        "aggregate_id": event.aggregate_id,
        "event_type": event.event_type,
        "data": event.data,
        "metadata": event.metadata,
        "created_at": None if event.created_at is None else event.created_at.isoformat(),
    }
