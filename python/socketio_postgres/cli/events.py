"""`socketio-postgres events`: the event store from a shell."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO, TypeVar

import click

from socketio_postgres.cli.options import as_json, dsn_option, listen_dsn_option
from socketio_postgres.cli.output import errors, lines, progress, to_json
from socketio_postgres.events import END, START, Event, EventStore, Filter, StoredEvent
from socketio_postgres.events.event import AfterVersion

__all__ = ["events"]

Command = TypeVar("Command", bound=Callable[..., Any])

FIELDS = frozenset({"id", "aggregate_id", "event_type", "data", "metadata"})
"""What an imported event may have."""

IGNORED = frozenset({"version", "created_at"})
"""What an export has besides; the store assigns both anew."""


def store_options(command: Command) -> Command:
    """The options of every command here; `_store` makes a store of them."""
    table = click.option("--table-name", default="events", show_default=True, help="The event table.")
    return dsn_option(listen_dsn_option(table(command)))


def filter_options(command: Command) -> Command:
    """Which events are wanted; `_filters` makes filters of them."""
    kind = click.option("--type", "types", multiple=True, metavar="TYPE", help="Only this type; may be repeated.")
    aggregate = click.option("--aggregate", metavar="ID", help="Only this aggregate.")
    prefix = click.option("--aggregate-prefix", metavar="TEXT", help="Only aggregates whose id begins with this.")
    return kind(aggregate(prefix(command)))


def _filters(types: tuple[str, ...], aggregate: str | None, aggregate_prefix: str | None) -> list[Filter]:
    given = {"type": list(types) or None, "aggregate_id": aggregate, "aggregate_prefix": aggregate_prefix}
    return [Filter(kind, value) for kind, value in given.items() if value is not None]


def _store(dsn: str, listen_dsn: str | None, table_name: str) -> EventStore:
    """A store that creates nothing: a wrong name is an error here."""
    return EventStore(dsn, listen_dsn=listen_dsn, table_name=table_name, create_table=False)


@click.group()
def events() -> None:
    """Read and write the event store."""


@events.command()
@click.option("--after", type=int, help="Begin after this version; 0 begins with the first. Default: what comes now.")
@click.option("--count", type=click.IntRange(min=1), help="End after so many events.")
@filter_options
@as_json
@store_options
def tail(
    after: int | None,
    count: int | None,
    types: tuple[str, ...],
    aggregate: str | None,
    aggregate_prefix: str | None,
    *,
    as_json: bool,
    **options: Any,
) -> None:
    """Print events as they are committed."""
    start: AfterVersion = END if after is None else (after or START)
    with _store(**options) as store:
        subscription = store.subscribe(start, filters=_filters(types, aggregate, aggregate_prefix))
        with subscription:
            for number, event in enumerate(subscription, 1):
                _print(event, is_json=as_json)
                if number == count:
                    return


@events.command()
@click.option("--since", type=int, default=0, show_default=True, help="Only later versions.")
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True)
@filter_options
@as_json
@store_options
def load(
    since: int,
    limit: int,
    types: tuple[str, ...],
    aggregate: str | None,
    aggregate_prefix: str | None,
    *,
    as_json: bool,
    **options: Any,
) -> None:
    """Print stored events in the order of their versions."""
    with _store(**options) as store:
        page = store.load(since, limit=limit, filters=_filters(types, aggregate, aggregate_prefix))
        for event in page:
            _print(event, is_json=as_json)
        if not as_json:
            errors.print(f"[dim]{len(page)} events; continue with --since {page.safe_since}[/]")


@events.command("export")
@click.argument("file", type=click.File("w", encoding="utf-8"), default="-")
@filter_options
@store_options
def export_(
    file: Any, types: tuple[str, ...], aggregate: str | None, aggregate_prefix: str | None, **options: Any
) -> None:
    """Write stored events to FILE as JSON lines, which `import` reads."""
    count = 0
    with _store(**options) as store, progress() as bar:
        task = bar.add_task("events", total=None)
        for event in store.read(filters=_filters(types, aggregate, aggregate_prefix)):
            file.write(to_json(_fields(event)) + "\n")
            count += 1
            bar.update(task, completed=count)
    errors.print(f"{count} events are exported")


@events.command("import")
@click.argument("file", type=click.File("rb"), default="-")
@store_options
def import_(file: BinaryIO, **options: Any) -> None:
    """Store the JSON lines of FILE with COPY.

    A line has `event_type` and `aggregate_id`, and may have `data`, `metadata` and `id`. Versions are assigned anew.
    """
    with _store(**options) as store, progress() as bar:
        task = bar.add_task("events", total=None)

        def counted(given: Iterable[Event]) -> Iterator[Event]:
            for number, event in enumerate(given, 1):
                bar.update(task, completed=number)
                yield event

        count = store.import_events(counted(_lines(file)))
    errors.print(f"{count} events are stored")


@events.command()
@as_json
@store_options
def subscriptions(*, as_json: bool, **options: Any) -> None:
    """List durable subscriptions: position, lag, owner, parked events."""
    with _store(**options) as store:
        for each in store.durable_subscriptions():
            if as_json:
                click.echo(to_json(dataclasses.asdict(each)))
                continue
            state = "paused" if each.is_paused else f"owned by {each.owner}" if each.is_owned else "nobody consumes it"
            lines.print(
                f"[bold]{lines.plain(each.name)}[/] at {each.position}, {each.lag} behind, {each.parked} parked,"
                f" {lines.plain(state)}"
            )


@events.command()
@click.argument("name")
@click.argument("position", type=click.IntRange(min=0))
@store_options
def rewind(name: str, position: int, **options: Any) -> None:
    """Let the durable subscription NAME go on after version POSITION."""
    with _store(**options) as store:
        store.rewind_durable(name, position)


@events.command()
@click.argument("name")
@store_options
def pause(name: str, **options: Any) -> None:
    """Let nobody consume the durable subscription NAME until `resume`."""
    with _store(**options) as store:
        store.pause_durable(name)


@events.command()
@click.argument("name")
@store_options
def resume(name: str, **options: Any) -> None:
    """End the pause of the durable subscription NAME."""
    with _store(**options) as store:
        store.resume_durable(name)


@events.command()
@click.argument("name")
@click.confirmation_option(prompt="Delete its position and its parked events?")
@store_options
def delete(name: str, **options: Any) -> None:
    """Delete the durable subscription NAME."""
    with _store(**options) as store:
        store.delete_durable(name)


def _fields(event: StoredEvent[Any]) -> dict[str, Any]:
    return {
        "version": event.version,
        "id": event.id,
        "aggregate_id": event.aggregate_id,
        "event_type": event.event_type,
        "data": event.data,
        "metadata": event.metadata,
        "created_at": None if event.created_at is None else event.created_at.isoformat(),
    }


def _print(event: StoredEvent[Any], *, is_json: bool) -> None:
    if is_json:
        click.echo(to_json(_fields(event)))
        return
    at = "" if event.created_at is None else f"{event.created_at.astimezone():%Y-%m-%d %H:%M:%S} "
    lines.print(
        f"[bold]{event.version}[/] [dim]{at}[/][cyan]{lines.plain(event.event_type)}[/]"
        f" {lines.plain(event.aggregate_id)} {lines.plain(to_json(event.data))}"
    )


def _lines(stream: BinaryIO) -> Iterator[Event]:
    for number, raw in enumerate(stream, 1):
        if not raw.strip():
            continue
        try:
            line = json.loads(raw)
        except ValueError as error:
            raise click.ClickException(f"line {number} is not JSON: {error}") from None
        if not isinstance(line, dict) or not line.keys() - IGNORED <= FIELDS:
            raise click.ClickException(f"line {number} is not an object with {', '.join(sorted(FIELDS))}")
        missing = {"aggregate_id", "event_type"} - line.keys()
        if missing:
            raise click.ClickException(f"line {number} lacks {', '.join(sorted(missing))}")
        yield Event(**{name: value for name, value in line.items() if name in FIELDS})
