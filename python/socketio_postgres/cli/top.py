"""`socketio-postgres top`: the cluster at a glance, once per interval."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime as dt
import math
import secrets
import time
from collections.abc import AsyncGenerator, Callable
from typing import Any

import click
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from socketio_postgres import _core
from socketio_postgres._bus.bus import Bus
from socketio_postgres._bus.options import BusOptions
from socketio_postgres.cli import session
from socketio_postgres.cli.options import as_json, bus_keywords, bus_options, namespaces_of
from socketio_postgres.cli.output import errors, lines, to_json, until_reader_ends
from socketio_postgres.cli.traffic import Session, Snapshot, Traffic, lock_class
from socketio_postgres.client import AsyncPostgresClient, GapInfo
from socketio_postgres.exceptions import ClosedError, SocketIOPostgresError

__all__ = ["top"]

WIDEST = 10_000
"""Columns where there is no terminal that would be too narrow."""

_QUEUE = "SELECT pg_catalog.pg_notification_queue_usage()::pg_catalog.text"

_SESSIONS = """SELECT l.objid::pg_catalog.text, l.pid::pg_catalog.text, pg_catalog.host(a.client_addr)
    FROM pg_catalog.pg_locks l LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
    WHERE l.locktype = 'advisory' AND l.classid = {lock_class} AND l.objsubid = 2 AND l.granted AND l.database =
        (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()) ORDER BY l.pid"""

_ATTACHMENTS = """SELECT pg_catalog.sum(pg_catalog.octet_length(payload))::pg_catalog.text
    FROM {table} WHERE id IN ({ids})"""


@click.command()
@click.option("--namespace", "-n", "namespaces", multiple=True, help="May be repeated. Default: /.")
@click.option(
    "--interval",
    type=click.FloatRange(min=0.1, max=3600),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="How often it is refreshed.",
)
@click.option("--count", type=click.IntRange(min=1), help="End after so many intervals.")
@click.option("--once", is_flag=True, help="The same as --count 1.")
@as_json
@bus_options
def top(
    namespaces: tuple[str, ...],
    interval: float,
    count: int | None,
    *,
    once: bool,
    as_json: bool,
    dsn: str,
    **options: Any,
) -> None:
    """Show servers, namespaces, rooms, rates, gaps, queue usage and listener lag.

    This command only listens: servers do not see or count it. Python servers are known by their locks, even silent
    ones; others once they are heard. It does not check signatures.
    """
    if math.isnan(interval):
        raise click.BadParameter("nan is no interval", param_hint="--interval")
    channels = {_core.channel_name(options["channel"], nsp): nsp for nsp in namespaces_of(namespaces)}
    watch = _Watch(dsn, bus_keywords(**options), channels, lock_class(options["channel"]))
    asyncio.run(_top(watch, interval, 1 if once else count, is_json=as_json))


@dataclasses.dataclass(frozen=True)
class View:
    """One interval, as it is shown.

    Attributes:
        time: When it ended, in ISO 8601.
        snapshot: What was heard.
        queue_usage: Used part of PostgreSQL's notification queue, 0 to 1; None while PostgreSQL is away.
        lag_seconds: How long the last notification of this command took to come back to it; if one has not come
            back yet, its age.
    """

    time: str
    snapshot: Snapshot
    queue_usage: float | None
    lag_seconds: float

    def fields(self) -> dict[str, Any]:
        """One line of JSON."""
        own = {"time": self.time, "queue_usage": self.queue_usage, "lag_seconds": self.lag_seconds}
        return own | dataclasses.asdict(self.snapshot)


class _Watch:
    """Listens to the cluster, and looks at PostgreSQL at the end of each interval."""

    def __init__(self, dsn: str, keywords: dict[str, Any], channels: dict[str, str], lock_class: int) -> None:
        self._dsn = dsn
        self._keywords = keywords
        self._channels = channels
        self._sessions_sql = _SESSIONS.format(lock_class=lock_class)
        self._table = Bus(BusOptions.of(dsn, keywords), uid=str).core.table_name
        self._traffic = Traffic(channels.values())
        # Only this process listens to it, and only to see how long its own notification takes.
        self._echo = f"socketio_postgres_top_{secrets.token_hex(8)}"
        self._sent_at: float | None = None
        self._lag = 0.0

    async def views(self, interval: float) -> AsyncGenerator[View, None]:
        """A view for each interval, without end."""

        def on_gap(gap: GapInfo) -> None:
            self._traffic.lost(gap.missing)

        async with (
            AsyncPostgresClient(self._dsn, on_gap=on_gap, **self._keywords) as client,
            session.Session(self._dsn) as asking,
        ):
            await client.listen(self._echo)
            for channel in self._channels:
                await client.listen(channel)
            reading = asyncio.create_task(self._read(client))
            pinging = asyncio.create_task(self._ping(client, interval))
            try:
                began = time.monotonic()
                while True:
                    await asyncio.wait([reading, pinging], timeout=interval, return_when=asyncio.FIRST_COMPLETED)
                    for task in (reading, pinging):
                        if task.done():
                            task.result()
                    view = await self._view(asking, time.monotonic() - began)
                    began = time.monotonic()
                    yield view
            finally:
                for task in (reading, pinging):
                    task.cancel()
                await asyncio.gather(reading, pinging, return_exceptions=True)

    async def _read(self, client: AsyncPostgresClient) -> None:
        async for notification in client:
            now = time.monotonic()
            if notification.channel != self._echo:
                self._traffic.take(notification.payload, self._channels[notification.channel], now)
            elif self._sent_at is not None:
                self._lag, self._sent_at = now - self._sent_at, None

    async def _ping(self, client: AsyncPostgresClient, interval: float) -> None:
        while True:
            if self._sent_at is None:
                self._sent_at = time.monotonic()
                try:
                    await client.notify(self._echo, "")
                except ClosedError:
                    return
                except SocketIOPostgresError:
                    self._sent_at = None  # PostgreSQL is away; the queue's usage is unknown then, too
            await asyncio.sleep(interval)

    async def _view(self, asking: session.Session, seconds: float) -> View:
        usage, sessions, attachment_bytes = None, list[Session](), 0
        with contextlib.suppress(SocketIOPostgresError):
            ((text,),) = await asking.rows(_QUEUE)
            usage = float(text or 0)
            rows = await asking.rows(self._sessions_sql)
            sessions = [Session(int(row[0] or 0), int(row[1] or 0), row[2]) for row in rows]
            attachment_bytes = await self._size_of_attachments(asking)
        now = time.monotonic()
        lag = self._lag if self._sent_at is None else max(self._lag, now - self._sent_at)
        snapshot = self._traffic.snapshot(seconds, now, sessions, attachment_bytes)
        return View(dt.datetime.now().astimezone().isoformat(timespec="seconds"), snapshot, usage, round(lag, 6))

    async def _size_of_attachments(self, asking: session.Session) -> int:
        """Together; 0 of those that are deleted or that this role may not read."""
        ids = self._traffic.attachments
        if not ids:
            return 0
        text = ", ".join(map(str, ids))
        ((size,),) = await asking.rows(_ATTACHMENTS.format(table=self._table, ids=text))
        return int(size or 0)


async def _top(watch: _Watch, interval: float, count: int | None, *, is_json: bool) -> None:
    errors.print("[dim]listening; Ctrl-C ends[/]")
    is_live = lines.is_terminal and not is_json
    number = 0
    screen = Live(console=lines, auto_refresh=False) if is_live else contextlib.nullcontext()
    async with until_reader_ends(), contextlib.aclosing(watch.views(interval)) as views:
        with screen as live:
            async for view in views:
                if live is not None:
                    live.update(_page(view), refresh=True)
                elif is_json:
                    click.echo(to_json(view.fields()))
                else:
                    lines.print(_page(view), width=WIDEST)
                number += 1
                if number == count:
                    return


def _page(view: View) -> Group:
    snapshot = view.snapshot
    usage = "unknown: PostgreSQL is away" if view.queue_usage is None else f"{view.queue_usage:.1%}"
    losses = f"{snapshot.gaps} gaps, {snapshot.missing} messages missing, {snapshot.undecodable} undecodable"
    colour = "red" if snapshot.gaps or snapshot.undecodable else "green"
    head = (
        f"[bold]{lines.plain(view.time)}[/] {_rates(snapshot)}, {snapshot.attachments_per_second:,.1f} attachments/s\n"
        f"queue {usage}, lag {view.lag_seconds * 1000:,.1f} ms, [{colour}]{losses}[/]"
    )
    told = Text.from_markup(head, overflow="fold")
    told.no_wrap = False  # on a narrow terminal, too, all of it is shown
    parts: list[Text | Table] = [
        told,
        _table(
            ("server", "language", "namespaces", "messages/s", "bytes/s", "silent", "session"),
            [*snapshot.servers, *snapshot.emitters],
            lambda each: (
                each["uid"] or "?",
                each["language"],
                " ".join(each["namespaces"]),
                f"{each['messages_per_second']:,.1f}",
                f"{each['bytes_per_second']:,.0f}",
                "never heard" if each["silent_seconds"] is None else f"{each['silent_seconds']:,.0f} s",
                " ".join(str(part) for part in (each.get("pid"), each.get("address")) if part is not None),
            ),
        ),
        _table(
            ("namespace", "servers", "messages/s", "bytes/s"),
            snapshot.namespaces,
            lambda each: (
                each["namespace"],
                str(each["servers"]),
                f"{each['messages_per_second']:,.1f}",
                f"{each['bytes_per_second']:,.0f}",
            ),
        ),
        _table(
            ("room", "namespace", "messages/s"),
            snapshot.rooms,
            lambda each: (each["room"], each["namespace"], f"{each['messages_per_second']:,.1f}"),
        ),
    ]
    return Group(*(each for part in parts for each in (part, "")))


def _rates(snapshot: Snapshot) -> str:
    return f"{snapshot.messages_per_second:,.1f} messages/s, {snapshot.bytes_per_second:,.0f} bytes/s"


def _table(
    heads: tuple[str, ...], rows: list[dict[str, Any]], cells: Callable[[dict[str, Any]], tuple[str, ...]]
) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for head in heads:
        table.add_column(head, justify="right" if head.endswith("/s") or head == "silent" else "left")
    for row in rows:
        table.add_row(*(lines.plain(cell) for cell in cells(row)))
    return table
