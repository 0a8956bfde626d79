"""`socketio-postgres sql`: the statements that a migration needs."""

from __future__ import annotations

import click

from socketio_postgres import _core
from socketio_postgres._bus.bus import Bus
from socketio_postgres._bus.drivers import literal
from socketio_postgres._bus.options import BusOptions
from socketio_postgres._cluster.sql_script import PUBLIC_FUNCTIONS, SCHEMA, migration, remove_script
from socketio_postgres.events.options import EventStoreOptions

__all__ = ["sql"]

ACCESS = ("all", "read", "write")

_ATTACHMENTS = {"all": "SELECT, INSERT, DELETE", "read": "SELECT", "write": "INSERT"}
"""Rights on the attachment table: of servers, of clients that only read, and of emitters."""

_EXTRAS = {"guard": "guard", "serial-order": "serial", "go-notifications": "go_notify"}
"""Parts of the store's schema that are made only when they are asked for."""


@click.command()
@click.option("--store", is_flag=True, help="Print the event store's tables instead of the attachment table.")
@click.option("--functions", is_flag=True, help="Print the SQL functions, such as socketio.emit, instead.")
@click.option("--remove", is_flag=True, help="With --functions, print what removes them.")
@click.option("--schema", default=SCHEMA, show_default=True, help="Schema of the SQL functions.")
@click.option("--channel", default="socket.io", show_default=True, help="Prefix of the channels, of the SQL functions.")
@click.option("--table-name", help="Default: socket_io_attachments, and with --store events.")
@click.option(
    "--with",
    "extras",
    multiple=True,
    type=click.Choice(list(_EXTRAS)),
    help="With --store, what `enable_guard` and its like add; may be repeated.",
)
@click.option("--role", metavar="ROLE", help="Also print what this role needs to be granted.")
@click.option(
    "--access",
    type=click.Choice(ACCESS),
    default="all",
    show_default=True,
    help="What ROLE is to do: a role that only emits, or only stores events, needs `write`.",
)
def sql(
    table_name: str | None,
    role: str | None,
    extras: tuple[str, ...],
    access: str,
    schema: str,
    channel: str,
    *,
    store: bool,
    functions: bool,
    remove: bool,
) -> None:
    """Print the statements that create the tables, or the SQL functions, for your migrations.

    With them, and `create_table=False`, the servers' role needs no right to create anything.
    """
    if extras and not store:
        raise click.UsageError("--with needs --store")
    if role == "":
        raise click.BadParameter("a role has a name", param_hint="--role")
    if functions and store:
        raise click.UsageError("--functions and --store print different things; call it twice")
    if remove and not functions:
        raise click.UsageError("--remove needs --functions")
    if remove:
        click.echo(remove_script(schema), nl=False)
    elif functions:
        _of_functions(table_name or "socket_io_attachments", role, schema, channel)
    elif store:
        _of_store(table_name or "events", role, extras, access)
    else:
        _of_attachments(table_name or "socket_io_attachments", role, access)


def _of_attachments(table_name: str, role: str | None, access: str) -> None:
    core = Bus(BusOptions.of("", {"table_name": table_name}), uid=str).core
    click.echo(core.table_ddl, nl=False)
    if role is not None:
        _grant(_ATTACHMENTS[access], core.table_name, role)
        if access != "read":
            _grant_sequence("USAGE", core.table_name, "id", role)


def _of_functions(table_name: str, role: str | None, schema: str, channel: str) -> None:
    bus = Bus(BusOptions.of("", {"table_name": table_name, "channel": channel}), uid=str)
    click.echo(migration(bus.options, bus.core.table_name, schema), nl=False)
    if role is not None:
        click.echo(f"GRANT USAGE ON SCHEMA {_quoted(schema)} TO {_quoted(role)};")
        for function in PUBLIC_FUNCTIONS:
            click.echo(f"GRANT EXECUTE ON FUNCTION {_quoted(schema)}.{function} TO {_quoted(role)};")


def _of_store(table_name: str, role: str | None, extras: tuple[str, ...], access: str) -> None:
    core = _core.EventStore(EventStoreOptions.of("", {"table_name": table_name}))
    parts = ["events", "settled", "subscriptions", *(_EXTRAS[name] for name in extras)]
    click.echo(core.ddl(parts), nl=False)
    if role is None:
        return
    _grant("SELECT" if access == "read" else "SELECT, INSERT", core.table(""), role)
    # Readers ask for the sequence's last value, and see its lock without any right.
    _grant_sequence("SELECT" if access == "read" else "SELECT, USAGE", core.table(""), "version", role)
    _grant("SELECT", core.table("_migrations"), role)
    if access != "write":
        _grant("SELECT, INSERT, UPDATE", core.table("_settled"), role)
        for suffix in ("_subscriptions", "_consumers", "_parked"):
            _grant("SELECT, INSERT, UPDATE, DELETE", core.table(suffix), role)


def _grant(rights: str, table: str, role: str) -> None:
    click.echo(f"GRANT {rights} ON {table} TO {_quoted(role)};")


def _grant_sequence(rights: str, table: str, column: str, role: str) -> None:
    # The sequence of a table that is there already may have another name.
    click.echo(
        f"DO $$ BEGIN\n    EXECUTE pg_catalog.format('GRANT {rights} ON SEQUENCE %s TO %I',\n"
        f"        pg_catalog.pg_get_serial_sequence({literal(table)}, {literal(column)}), {literal(role)});\nEND $$;"
    )


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
