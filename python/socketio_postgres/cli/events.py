"""`socketio-postgres events`: the event store from a shell."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

import click

from socketio_postgres.cli import durables
from socketio_postgres.cli.options import as_json
from socketio_postgres.cli.output import errors, from_json, lines, progress, to_json
from socketio_postgres.cli.store import fields_of, filter_options, filters_of, open_store, store_options
from socketio_postgres.cli.trim import trim
from socketio_postgres.events import END, START, Event, StoredEvent
from socketio_postgres.events.event import AfterVersion

__all__ = ["events"]

FIELDS = frozenset({"id", "aggregate_id", "event_type", "data", "metadata"})
"""What an imported event may have."""

IGNORED = frozenset({"version", "created_at"})
"""What an export has besides; the store assigns both anew."""


@click.group()
def events() -> None:
    """Read and write the event store."""


for command in (*durables.commands, trim):
    events.add_command(command)


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
    with open_store(**options) as store:
        subscription = store.subscribe(start, filters=filters_of(types, aggregate, aggregate_prefix))
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
    with open_store(**options) as store:
        page = store.load(since, limit=limit, filters=filters_of(types, aggregate, aggregate_prefix))
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
    with open_store(**options) as store, progress() as bar:
        task = bar.add_task("events", total=None)
        for event in store.read(filters=filters_of(types, aggregate, aggregate_prefix)):
            file.write(to_json(fields_of(event)) + "\n")
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
    with open_store(**options) as store, progress() as bar:
        task = bar.add_task("events", total=None)

        def counted(given: Iterable[Event]) -> Iterator[Event]:
            for number, event in enumerate(given, 1):
                bar.update(task, completed=number)
                yield event

        count = store.import_events(counted(_lines(file)))
    errors.print(f"{count} events are stored")


def _print(event: StoredEvent[Any], *, is_json: bool) -> None:
    if is_json:
        click.echo(to_json(fields_of(event)))
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
            line = from_json(raw)
        except ValueError as error:
            raise click.ClickException(f"line {number} is not JSON: {error}") from None
        if not isinstance(line, dict) or not line.keys() - IGNORED <= FIELDS:
            raise click.ClickException(f"line {number} is not an object with {', '.join(sorted(FIELDS))}")
        missing = {"aggregate_id", "event_type"} - line.keys()
        if missing:
            raise click.ClickException(f"line {number} lacks {', '.join(sorted(missing))}")
        yield Event(**{name: value for name, value in line.items() if name in FIELDS})
