"""`socketio-postgres emit`: events from a shell or a script to the clients of the cluster."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import click

from socketio_postgres.cli.options import bus_keywords, bus_options, namespaces_of
from socketio_postgres.cli.output import errors, events_are, from_json, progress
from socketio_postgres.emitter import Emitter
from socketio_postgres.exceptions import SocketIOPostgresError

__all__ = ["emit"]

FIELDS = {"event", "args", "to", "except", "namespace"}
"""What a line of standard input may have."""

LAST_LIMIT = 5.0
"""Seconds for what was emitted before a bad line or Ctrl-C."""


@click.command()
@click.argument("event")
@click.argument("args", nargs=-1, metavar="[JSON]...")
@click.option("--to", "-t", "to", multiple=True, metavar="ROOM", help="Only to this room; may be repeated.")
@click.option("--except", "-x", "except_", multiple=True, metavar="ROOM", help="Not to this room; may be repeated.")
@click.option("--namespace", "-n", default="/", show_default=True)
@click.option(
    "--binary",
    "-b",
    multiple=True,
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False),
    help="Append the content of a file, as binary; may be repeated.",
)
@click.option("--volatile", is_flag=True, help="Clients that are not ready may miss it.")
@bus_options
def emit(
    event: str,
    args: tuple[str, ...],
    to: tuple[str, ...],
    except_: tuple[str, ...],
    namespace: str,
    binary: tuple[str, ...],
    *,
    volatile: bool,
    dsn: str,
    **options: Any,
) -> None:
    """Emit EVENT with JSON arguments to the clients of all servers.

    With EVENT `-`, each line of standard input is one event: `["event", 1]`, or
    `{"event": "e", "args": [1], "to": ["room"], "except": [], "namespace": "/"}`. The options apply to lines that do
    not say otherwise. The first bad line ends the command; what is before it is committed.

    Ends when everything is committed.

      socketio-postgres emit --to room1 hello '"world"' '{"a": 1}'
    """
    is_stream = event == "-"
    if is_stream:
        if args or binary:
            raise click.UsageError("with - the arguments come from standard input")
        given = _lines(sys.stdin.buffer)
    else:
        values = [_value(text) for text in args]
        given = iter([(0, {"event": event, "args": [*values, *(Path(name).read_bytes() for name in binary)]})])
    (usual,) = namespaces_of([namespace])
    count = 0
    with Emitter(dsn, **bus_keywords(**options)) as io:
        try:
            with progress(sys.stdin.buffer if is_stream else None) as bar:
                task = bar.add_task("events", total=None)
                for number, line in given:
                    try:
                        chain = io.of(line.get("namespace", usual)).except_(line.get("except", except_))
                        if to or "to" in line:  # an empty list of rooms means nobody
                            chain = chain.to(line.get("to", to))
                        (chain.volatile if volatile else chain).emit(line["event"], *line.get("args", ()))
                    except SocketIOPostgresError as error:
                        if is_stream:
                            raise click.ClickException(f"line {number}: {error}") from error
                        raise
                    count += 1
                    bar.update(task, completed=count)
        except BaseException:  # a bad line, or Ctrl-C: whoever goes on must know where
            io.flush(timeout=LAST_LIMIT)
            if is_stream:
                _tell(max(count, io.stats()["published"]))  # Ctrl-C may come between an event and its count
            raise
        io.flush()
    if is_stream:
        _tell(count)


def _tell(count: int) -> None:
    errors.print(f"{events_are(count)} committed")


def _value(text: str) -> Any:
    try:
        return from_json(text)
    except ValueError:
        raise click.BadParameter(
            f"{text!r} is not JSON; text needs double quotes of its own: {json.dumps(text)!r}", param_hint="JSON"
        ) from None


def _lines(stream: BinaryIO) -> Iterator[tuple[int, dict[str, Any]]]:
    """The events of standard input, each with the number of its line; empty lines are none."""
    for number, raw in enumerate(stream, 1):
        if not raw.strip():
            continue
        try:
            line = from_json(raw)
        except ValueError as error:
            raise click.ClickException(f"line {number} is not JSON: {error}") from None
        if isinstance(line, list) and line:
            line = {"event": line[0], "args": line[1:]}
        if not isinstance(line, dict) or "event" not in line or not FIELDS.issuperset(line):
            raise click.ClickException(
                f"line {number} is neither a list that begins with the event, nor an object with "
                + ", ".join(sorted(FIELDS))
            )
        if not isinstance(line.get("args", []), list):
            raise click.ClickException(f"line {number}: args must be a list")
        yield number, line
