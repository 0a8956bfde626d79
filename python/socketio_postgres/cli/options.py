"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import click

__all__ = ["as_json", "bus_keywords", "bus_options", "dsn_option", "listen_dsn_option", "namespaces_of"]

Command = TypeVar("Command", bound=Callable[..., Any])

dsn_option = click.option(
    "--dsn", default="", metavar="DSN", help="PostgreSQL, as a URL or as key=value pairs. Default: PGHOST, PGUSER, …"
)
listen_dsn_option = click.option(
    "--listen-dsn", metavar="DSN", help="Where to LISTEN, if --dsn leads through a transaction pooler. Default: --dsn."
)
as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, one value per line.")


def bus_options(command: Command) -> Command:
    """The options of a participant of the cluster; `bus_keywords` makes keywords of them."""
    for option in (
        click.option("--signing-key-file", type=click.Path(exists=True, dir_okay=False), help="The cluster's key."),
        click.option("--table-name", default="socket_io_attachments", show_default=True, help="Attachment table."),
        click.option("--channel", default="socket.io", show_default=True, help="Prefix of the channels."),
        listen_dsn_option,
        dsn_option,
    ):
        command = option(command)
    return command


def namespaces_of(names: Iterable[str]) -> list[str]:
    """The namespaces that an option names, each with its leading slash; without any, the default one."""
    return [name if name.startswith("/") else f"/{name}" for name in names] or ["/"]


def bus_keywords(listen_dsn: str | None, channel: str, table_name: str, signing_key_file: str | None) -> dict[str, Any]:
    """The options of `bus_options`, except for the DSN, as keywords of emitters and clients."""
    keywords: dict[str, Any] = {"listen_dsn": listen_dsn, "channel": channel, "table_name": table_name}
    if signing_key_file is not None:
        keywords["signing_key"] = Path(signing_key_file).read_bytes().strip()
    return keywords
