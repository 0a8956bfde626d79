"""`socketio-postgres events`: the event store from a shell."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

import click

from socketio_postgres.cli import durables
from socketio_postgres.cli.options import as_json
from socketio_postgres.cli.output import errors, events_are, from_json, lines, progress, to_json, until_reader_ends
from socketio_postgres.cli.store import async_store, fields_of, filter_options, filters_of, open_store, store_options
from socketio_postgres.cli.trim import trim
from socketio_postgres.events import END, START, Event, Filter, StoredEvent
from socketio_postgres.events.event import AfterVersion

__all__ = ["events"]

FIELDS = frozenset({"id", "aggregate_id", "event_type", "data", "metadata"})
"""What an imported event may have."""

DEEPEST = 100
"""Levels of data and metadata."""

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
    filters = filters_of(types, aggregate, aggregate_prefix)
    asyncio.run(_tail(start, filters, count, is_json=as_json, **options))


async def _tail(
    start: AfterVersion, filters: list[Filter], count: int | None, *, is_json: bool, **options: Any
) -> None:
    printed = 0
    async with until_reader_ends(), async_store(**options) as store, store.subscribe(start, filters=filters) as live:
        async for event in live:
            _print(event, is_json=is_json)
            printed += 1
            if printed == count:
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
@click.option("--since", type=click.IntRange(min=0), default=0, show_default=True, help="Only later versions.")
@filter_options
@store_options
def export_(
    file: Any, since: int, types: tuple[str, ...], aggregate: str | None, aggregate_prefix: str | None, **options: Any
) -> None:
    """Write stored events to FILE as JSON lines, which `import` reads.

    An export that ended early goes on with --since and the last version that it has written.
    """
    count = 0
    with open_store(**options) as store, progress() as bar:
        task = bar.add_task("events", total=None)
        for event in store.read(since, filters=filters_of(types, aggregate, aggregate_prefix)):
            file.write(to_json(fields_of(event)) + "\n")
            count += 1
            bar.update(task, completed=count)
    errors.print(f"{events_are(count)} exported")


@events.command("import")
@click.argument("file", type=click.File("rb"), default="-")
@click.option("--skip-existing", is_flag=True, help="Leave out events that are stored already; each needs its id.")
@store_options
def import_(file: BinaryIO, *, skip_existing: bool, **options: Any) -> None:
    """Store the JSON lines of FILE with COPY.

    A line has `event_type` and `aggregate_id`, and may have `data`, `metadata` and `id`. Versions are assigned anew.
    Every 10,000 events are a transaction. An import that ended early goes on with --skip-existing.
    """
    stored = read = 0

    def told(total: int) -> None:
        nonlocal stored
        stored = total

    with open_store(**options) as store:
        try:
            with progress(file) as bar:
                task = bar.add_task("events", total=None)

                def counted(given: Iterable[Event]) -> Iterator[Event]:
                    nonlocal read
                    for event in given:
                        read += 1
                        bar.update(task, completed=read)
                        yield event

                given = counted(_lines(file, needs_id=skip_existing))
                stored = store.import_events(given, skip_existing=skip_existing, progress=told)
        except BaseException:  # a bad line, an id that exists, or Ctrl-C
            errors.print(f"{events_are(stored)} stored; --skip-existing goes on after them")
            raise
    left_out = f", {read - stored} were stored already" if skip_existing else ""
    errors.print(f"{events_are(stored)} stored{left_out}")


def _print(event: StoredEvent[Any], *, is_json: bool) -> None:
    if is_json:
        click.echo(to_json(fields_of(event)))
        return
    at = "" if event.created_at is None else f"{event.created_at.astimezone():%Y-%m-%d %H:%M:%S} "
    lines.print(
        f"[bold]{event.version}[/] [dim]{at}[/][cyan]{lines.plain(event.event_type)}[/]"
        f" {lines.plain(event.aggregate_id)} {lines.plain(to_json(event.data))}"
    )


def _lines(stream: BinaryIO, *, needs_id: bool) -> Iterator[Event]:
    for number, raw in enumerate(stream, 1):
        if not raw.strip():
            continue
        try:
            line = from_json(raw)
        except ValueError as error:
            raise click.ClickException(f"line {number} is not JSON: {error}") from None
        problem = _problem(line, needs_id=needs_id)
        if problem is not None:
            raise click.ClickException(f"line {number} {problem}")
        yield Event(**{name: value for name, value in line.items() if name in FIELDS})


def _problem(line: Any, *, needs_id: bool) -> str | None:
    """Why a line is no event that PostgreSQL can store, or None."""
    if not isinstance(line, dict) or not line.keys() - IGNORED <= FIELDS:
        return f"is not an object with {', '.join(sorted(FIELDS))}"
    names = sorted({"aggregate_id", "event_type"} | ({"id"} if needs_id or "id" in line else set()))
    missing = [name for name in names if name not in line]
    if missing:
        return f"lacks {', '.join(missing)}"
    bad = [name for name in names if not isinstance(line[name], str) or not line[name]]
    if bad:
        return f"has no text as {', '.join(bad)}"
    if not isinstance(line.get("metadata"), (dict, type(None))):
        return "has metadata that are no object"
    reason = _unstorable(line)
    return f"holds {reason}" if reason else None


def _unstorable(value: Any, depth: int = -1) -> str | None:
    """What PostgreSQL or this package refuses in a value, or None. The line itself is no level."""
    reason = None
    if isinstance(value, str):
        if "\0" in value:
            reason = "a NUL character, which PostgreSQL cannot store"
        elif not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
            reason = "half a surrogate pair"
    elif isinstance(value, float) and math.isinf(value):
        reason = "a number that is too large"
    elif isinstance(value, (dict, list)):
        if depth >= DEEPEST:
            return f"more than {DEEPEST} levels"
        inner = [*value, *value.values()] if isinstance(value, dict) else value
        reason = next(filter(None, (_unstorable(each, depth + 1) for each in inner)), None)
    return reason
