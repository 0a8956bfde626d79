"""`socketio-postgres tail`: the messages of the cluster as they pass."""

from __future__ import annotations

import asyncio
import dataclasses
import datetime as dt
import json
from typing import Any

import click

from socketio_postgres import _core
from socketio_postgres._bus.messages import MessageType
from socketio_postgres.cli.options import as_json, bus_keywords, bus_options, namespaces_of
from socketio_postgres.cli.output import errors, lines, to_json, until_reader_ends
from socketio_postgres.client import AsyncPostgresClient, Notification
from socketio_postgres.codec import AttachmentHeader, Message, decode
from socketio_postgres.exceptions import DecodeError, SocketIOPostgresError

__all__ = ["tail"]

TYPES = {each.name.lower().replace("_", "-"): each for each in MessageType}
COLOURS = {MessageType.BROADCAST: "green", MessageType.HEARTBEAT: "dim", MessageType.INITIAL_HEARTBEAT: "dim"}
LONGEST = 500
"""Characters of a message's data that one line shows."""


@dataclasses.dataclass(frozen=True)
class Wanted:
    """Which messages are shown."""

    rooms: frozenset[str]
    types: frozenset[MessageType]

    def takes(self, message: Message) -> bool:
        """Whether a message is shown."""
        return self._takes(message.type, [*message.to, *message.rooms])

    def takes_header(self, payload: str) -> bool:
        """Whether a message is shown, as far as the notification tells that announces its attachment."""
        header = json.loads(payload)
        return self._takes(header.get("type"), header.get("rooms"))

    def _takes(self, kind: object, rooms: list[str] | None) -> bool:
        """`None` is what is not known: the headers of Node.js name no rooms."""
        is_of_type = not self.types or kind is None or kind in self.types
        return is_of_type and (not self.rooms or rooms is None or not self.rooms.isdisjoint(rooms))


@click.command()
@click.option("--namespace", "-n", "namespaces", multiple=True, help="May be repeated. Default: /.")
@click.option("--room", "-r", "rooms", multiple=True, help="Only messages that name this room; may be repeated.")
@click.option("--type", "-t", "types", multiple=True, type=click.Choice(list(TYPES)), help="May be repeated.")
@click.option("--raw", is_flag=True, help="Print payloads as they are, also those that cannot be decoded.")
@click.option("--count", type=click.IntRange(min=1), help="End after so many messages.")
@as_json
@bus_options
def tail(
    namespaces: tuple[str, ...],
    rooms: tuple[str, ...],
    types: tuple[str, ...],
    count: int | None,
    *,
    raw: bool,
    as_json: bool,
    dsn: str,
    **options: Any,
) -> None:
    """Print the messages that servers and emitters send to one another, attachments included.

    This command only listens: servers do not see or count it. It reads messages whether or not they are signed, and
    does not check signatures.
    """
    wanted = Wanted(frozenset(rooms), frozenset(TYPES[name] for name in types))
    channels = {_core.channel_name(options["channel"], nsp): nsp for nsp in namespaces_of(namespaces)}
    asyncio.run(_tail(dsn, bus_keywords(**options), channels, wanted, count, is_raw=raw, is_json=as_json))


async def _tail(
    dsn: str,
    keywords: dict[str, Any],
    channels: dict[str, str],
    wanted: Wanted,
    count: int | None,
    *,
    is_raw: bool,
    is_json: bool,
) -> None:
    shown = 0
    # Gaps are in the log, and so on standard error.
    async with until_reader_ends(), AsyncPostgresClient(dsn, **keywords) as client:
        for channel in channels:
            await client.listen(channel)
        errors.print(f"[dim]listening to {errors.plain(', '.join(channels))}; Ctrl-C ends[/]")
        async for notification in client:
            line = await _line(
                client, notification, channels[notification.channel], wanted, is_raw=is_raw, is_json=is_json
            )
            if line is not None:
                (click.echo if is_raw or is_json else lines.print)(line)
                shown += 1
                if shown == count:
                    return


async def _line(
    client: AsyncPostgresClient, notification: Notification, nsp: str, wanted: Wanted, *, is_raw: bool, is_json: bool
) -> str | None:
    """What is printed of a notification, or None."""
    attachment_id = None
    try:
        message = decode(notification.payload, nsp=nsp)
        if isinstance(message, AttachmentHeader):
            if not wanted.takes_header(notification.payload):
                return None
            attachment_id = message.attachment_id
            message = decode(await _body(client, message), nsp=nsp)
    except DecodeError as error:
        if is_raw:
            return notification.payload
        errors.print(f"[yellow]{errors.plain(str(error))}[/]")
        return None
    if not isinstance(message, Message) or not wanted.takes(message):
        return None
    if is_raw:
        return notification.payload
    return (_as_json if is_json else _as_text)(message, notification.pid, nsp, attachment_id)


async def _body(client: AsyncPostgresClient, header: AttachmentHeader) -> bytes:
    reason = "its row is deleted"
    try:
        body = await client.get_attachment(header.attachment_id)
    except SocketIOPostgresError as error:  # a right that this role lacks, for example; the next message may be small
        body, reason = None, str(error)
    if body is None:
        raise DecodeError(f"attachment {header.attachment_id} of {header.uid} cannot be shown: {reason}", reason=reason)
    return body


def _as_json(message: Message, pid: int, nsp: str, attachment_id: int | None) -> str:
    return to_json(
        {
            "time": dt.datetime.now().astimezone().isoformat(),
            "pid": pid,
            "namespace": nsp,
            "type": _name(message),
            "uid": message.uid,
            "attachment_id": attachment_id,
            "data": message.data(),
        }
    )


def _as_text(message: Message, pid: int, nsp: str, attachment_id: int | None) -> str:
    del pid  # several servers may share one behind a pooler; the sender's id says more
    now, colour = dt.datetime.now().astimezone(), COLOURS.get(MessageType(message.type), "cyan")
    return (
        f"[dim]{now:%H:%M:%S.%f}[/] {lines.plain(nsp)} [{colour}]{_name(message)}[/]"
        f" [dim]from {lines.plain(message.uid)}[/]{_rooms(message)} {_content(message)}"
        + (f" [dim](attachment {attachment_id})[/]" if attachment_id is not None else "")
    )


def _name(message: Message) -> str:
    """The type, as the option `--type` has it."""
    return MessageType(message.type).name.lower().replace("_", "-")


def _rooms(message: Message) -> str:
    """The rooms that a message names."""
    to, except_ = ", ".join(message.to), ", ".join(message.except_)
    return (f" to [bold]{lines.plain(to)}[/]" if to else "") + (f" except {lines.plain(except_)}" if except_ else "")


def _content(message: Message) -> str:
    """What a message carries, without its options."""
    if message.has_packet:
        value: Any = message.packet()
    else:
        value = {key: field for key, field in message.data().items() if key != "opts"}
    text = to_json(value) if value else ""
    return lines.plain(text if len(text) <= LONGEST else f"{text[:LONGEST]}…")
