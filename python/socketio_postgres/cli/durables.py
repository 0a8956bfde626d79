"""Commands about durable subscriptions: what they are at, and their parked events."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import subprocess
from collections.abc import Iterator, Sequence
from typing import Any

import click

from socketio_postgres import _core
from socketio_postgres._bus.drivers import literal
from socketio_postgres.cli.options import as_json
from socketio_postgres.cli.output import errors, lines, progress, to_json
from socketio_postgres.cli.session import ask
from socketio_postgres.cli.store import fields_of, open_store, store_options
from socketio_postgres.events import DurableState, DurableSubscription, EventStore, Filter, StoredEvent
from socketio_postgres.events.filter import conditions_of
from socketio_postgres.events.options import EventStoreOptions
from socketio_postgres.events.partition import partition_of

__all__ = ["commands", "side_table"]

_KEYS = {
    "types": "type",
    "type_prefixes": "type_prefix",
    "aggregates": "aggregate_id",
    "aggregate_prefixes": "aggregate_prefix",
}


def side_table(table_name: str, suffix: str) -> str:
    """The quoted name of a table beside the event table."""
    options = EventStoreOptions.of("", {"table_name": table_name})
    return _core.EventStore(options).table(suffix)


def _exist(dsn: str, table_name: str) -> bool:
    """Whether there was ever a durable subscription. Asking a store for them would create their tables."""
    name = side_table(table_name, "_subscriptions")
    ((found,),) = ask(dsn, f"SELECT pg_catalog.to_regclass({literal(name)})::pg_catalog.text")
    return found is not None


@contextlib.contextmanager
def _durables(dsn: str, listen_dsn: str | None, table_name: str) -> Iterator[EventStore]:
    """A store that has durable subscriptions."""
    with open_store(dsn, listen_dsn, table_name) as store:
        if not _exist(dsn, table_name):
            raise click.ClickException(f"there is no durable subscription of {table_name} yet")
        yield store


@click.command()
@as_json
@store_options
def subscriptions(*, as_json: bool, **options: Any) -> None:
    """List durable subscriptions: position, lag, owner, parked events."""
    with open_store(**options) as store:
        for each in store.durable_subscriptions() if _exist(options["dsn"], options["table_name"]) else []:
            if as_json:
                click.echo(to_json(dataclasses.asdict(each)))
                continue
            state = "paused" if each.is_paused else f"owned by {each.owner}" if each.is_owned else "nobody consumes it"
            lines.print(
                f"[bold]{lines.plain(each.name)}[/] at {each.position}, {each.lag} behind, {each.parked} parked,"
                f" {lines.plain(state)}"
            )


@click.command()
@click.argument("name")
@click.argument("position", type=click.IntRange(min=0))
@store_options
def rewind(name: str, position: int, **options: Any) -> None:
    """Let the durable subscription NAME go on after version POSITION."""
    with _durables(**options) as store:
        store.rewind_durable(name, position)


@click.command()
@click.argument("name")
@store_options
def pause(name: str, **options: Any) -> None:
    """Let nobody consume the durable subscription NAME until `resume`."""
    with _durables(**options) as store:
        store.pause_durable(name)


@click.command()
@click.argument("name")
@store_options
def resume(name: str, **options: Any) -> None:
    """End the pause of the durable subscription NAME."""
    with _durables(**options) as store:
        store.resume_durable(name)


@click.command()
@click.argument("name")
@click.confirmation_option(prompt="Delete its position and its parked events?")
@store_options
def delete(name: str, **options: Any) -> None:
    """Delete the durable subscription NAME."""
    with _durables(**options) as store:
        _state(store, name)
        store.delete_durable(name)


@click.command()
@click.argument("name")
@as_json
@store_options
def parked(name: str, *, as_json: bool, **options: Any) -> None:
    """List the events that the durable subscription NAME has set aside."""
    with _durables(**options) as store:
        for each in _durable(store, name, **options).parked():
            if as_json:
                click.echo(to_json(dataclasses.asdict(each)))
                continue
            reason = each.last_error or ("an earlier event of its aggregate failed" if not each.attempts else "")
            lines.print(
                f"[bold]{each.version}[/] {lines.plain(each.aggregate_id)} [dim]after {each.attempts} attempts[/]"
                f" {lines.plain(reason)}"
            )


@click.command()
@click.argument("name")
@click.argument("version", type=click.IntRange(min=1))
@click.option("--reason", metavar="TEXT", help="Kept with the event. Default: that this command parked it.")
@store_options
def park(name: str, version: int, reason: str | None, **options: Any) -> None:
    """Set an event aside that stops the durable subscription NAME, so that it goes on behind it.

    VERSION must be the next event of NAME, and no consumer may own NAME: stop its consumers first.
    """
    with _durables(**options) as store:
        state = _state(store, name)
        _check_free(state)
        durable = _durable(store, name, **options)
        # Reading after the end of the table would be an error that speaks of a restore.
        is_there = version <= store.latest_version(settled=False)
        page = store.load(version - 1, limit=1, filters=_filters(name, **options)) if is_there else []
        if not _is_to_come(page, version, state):
            raise click.ClickException(f"{name} has no event {version} to come")
        with durable:
            following = next(iter(durable))
            if following.version != version:
                raise click.ClickException(f"the next event of {name} is {following.version}, not {version}")
            durable.park(following, _Parked(reason or "by socketio-postgres events park"))
    errors.print(f"{lines.plain(name)} goes on after {version}")


@click.command()
@click.argument("name")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@store_options
def replay(name: str, command: tuple[str, ...], **options: Any) -> int:
    """Run COMMAND with each parked event of the durable subscription NAME, in order.

    COMMAND gets the event as one line of JSON on its standard input. Exit status 0 means that the event is handled and
    parked no longer; with any other, it stays parked, and so does what follows of its aggregate. No consumer may own
    NAME: stop its consumers first. Put `--` before a COMMAND with options.
    """
    with _durables(**options) as store:
        _check_free(_state(store, name))
        durable = _durable(store, name, **options)
        with durable, progress() as bar:
            task = bar.add_task("events", total=len(durable.parked()))

            def handle(event: StoredEvent[Any]) -> None:
                bar.advance(task)
                line = to_json(fields_of(event)) + "\n"
                ended = subprocess.run(command, input=line.encode(), check=False)
                if ended.returncode:
                    raise _Failed(f"{command[0]} ended with {ended.returncode}")

            count = durable.replay_parked(handle)
            left = len(durable.parked())
    errors.print(f"{count} events are handled, {left} are still parked")
    return int(left > 0)


commands = (subscriptions, parked, park, replay, rewind, pause, resume, delete)


class _Parked(Exception):  # noqa: N818 - its name is what the list of parked events shows
    """Why an event was parked by hand."""


class _Failed(Exception):  # noqa: N818 - as above
    """A command that ended with another status than 0."""


def _state(store: EventStore, name: str) -> DurableState:
    for each in store.durable_subscriptions():
        if each.name == name:
            return each
    raise click.ClickException(f"there is no durable subscription {name!r}")


def _check_free(state: DurableState) -> None:
    owners = sorted({each.owner or "" for each in state.partitions if each.is_owned})
    if owners:
        raise click.ClickException(f"{state.name} is owned by {', '.join(owners)}: stop its consumers first")
    if state.is_paused:
        raise click.ClickException(f"{state.name} is paused: `events resume` it first")


def _durable(store: EventStore, name: str, **options: Any) -> DurableSubscription:
    """The subscription as it was made, with its filters and partitions."""
    return store.durable(name, _filters(name, **options), partitions=len(_state(store, name).partitions))


def _filters(name: str, dsn: str, listen_dsn: str | None, table_name: str) -> list[Filter]:
    """The filters that a subscription was made with."""
    del listen_dsn
    table = side_table(table_name, "_subscriptions")
    rows = ask(dsn, f"SELECT filter FROM {table} WHERE name = {literal(name)} LIMIT 1")
    conditions = json.loads(rows[0][0] or "[]") if rows else []
    filters = []
    for kind, key, texts in conditions:
        if kind in _KEYS:
            filters.append(Filter(_KEYS[kind], texts))
        elif kind == "data":
            filters.append(Filter("data", json.loads(texts[0])))
        elif key == "tenant":
            filters.append(Filter("tenant", [json.loads(text) for text in texts]))
        else:
            filters.append(Filter("metadata", {key: json.loads(texts[0])}))
    if [list(each) for each in conditions_of(filters)] != conditions:
        raise click.ClickException(f"{name} has filters that this command does not know: {conditions}")
    return filters


def _is_to_come(page: Sequence[StoredEvent[Any]], version: int, state: DurableState) -> bool:
    """Whether a page with the events from a version on begins with one that a subscription has not handled yet."""
    if not page or page[0].version != version:
        return False
    number = partition_of(page[0].aggregate_id, len(state.partitions))
    return all(each.position < version for each in state.partitions if each.partition == number)
