"""`socketio-postgres doctor`: what is wrong with a set-up, and how to mend it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncGenerator
from typing import Any

import click

from socketio_postgres.cli import checks
from socketio_postgres.cli.finding import Finding, Level
from socketio_postgres.cli.nodelay import nodelay
from socketio_postgres.cli.options import as_json, bus_keywords, bus_options, namespaces_of
from socketio_postgres.cli.output import lines, to_json
from socketio_postgres.cli.session import Session
from socketio_postgres.cli.sql_functions import sql_functions

__all__ = ["doctor"]

MARKS = {
    Level.OK: "[green]✓[/]",
    Level.NOTE: "[cyan]i[/]",
    Level.WARNING: "[yellow]![/]",
    Level.FAULT: "[bold red]✗[/]",
}


@click.command()
@click.option("--namespace", "-n", "namespaces", multiple=True, help="Namespace of the servers; may be repeated.")
@click.option("--events-table", metavar="NAME", help="Table of an event store. Default: events, if it is one.")
@as_json
@bus_options
def doctor(namespaces: tuple[str, ...], events_table: str | None, *, as_json: bool, dsn: str, **options: Any) -> int:
    """Connect as the manager would; say what is wrong and how to mend it.

    Looks at the connections, the server's version, encoding and notification queue, poolers and standbys, the
    attachment table and its rights, the SQL functions, the event store, and the event loop of this environment.
    Changes nothing. The exit status is 1 when something does not work.
    """
    return asyncio.run(_doctor(dsn, bus_keywords(**options), namespaces_of(namespaces), events_table, is_json=as_json))


async def _doctor(
    dsn: str, keywords: dict[str, Any], namespaces: list[str], events_table: str | None, *, is_json: bool
) -> int:
    status = 0
    async with contextlib.aclosing(_findings(dsn, keywords, namespaces, events_table)) as findings:
        async for finding in findings:
            status = max(status, int(finding.level is Level.FAULT))
            if is_json:
                click.echo(to_json(dataclasses.asdict(finding)))
                continue
            lines.print(f"{MARKS[finding.level]} [bold]{finding.about}[/]: {lines.plain(finding.text)}")
            if finding.remedy:
                lines.print(f"    {lines.plain(finding.remedy)}")
    return status


async def _findings(
    dsn: str, keywords: dict[str, Any], namespaces: list[str], events_table: str | None
) -> AsyncGenerator[Finding, None]:
    """All findings; those that need a connection only if there is one."""
    listen_dsn = keywords["listen_dsn"]
    listening_dsn = dsn if listen_dsn is None else listen_dsn
    async with Session(dsn) as session, Session(listening_dsn) as listening:
        reached = [await checks.connection("connection", session)]
        if listen_dsn is not None:
            reached.append(await checks.connection("connection to LISTEN", listening))
        for finding in reached:
            yield finding
        if any(finding.level is Level.FAULT for finding in reached):
            return
        for check in (
            checks.server(session),
            checks.pooling(listening_dsn),
            checks.cluster(dsn, keywords, namespaces, session),
            sql_functions(keywords, session),
            checks.event_store(dsn, listen_dsn, events_table, session),
            nodelay(),
        ):
            async with contextlib.aclosing(check) as findings:
                async for finding in findings:
                    yield finding
