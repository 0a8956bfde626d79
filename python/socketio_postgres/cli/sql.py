"""`socketio-postgres sql`: the statements that a migration needs."""

from __future__ import annotations

import click

from socketio_postgres._bus.bus import Bus
from socketio_postgres._bus.options import BusOptions
from socketio_postgres.cli.session import literal

__all__ = ["sql"]


@click.command()
@click.option("--table-name", default="socket_io_attachments", show_default=True, help="Attachment table.")
@click.option("--role", metavar="ROLE", help="Also print what this role needs to be granted.")
def sql(table_name: str, role: str | None) -> None:
    """Print the statements that create the attachment table, for your migrations.

    With them, and `create_table=False`, the servers' role needs no right to create anything.
    """
    bus = Bus(BusOptions.of("", {"table_name": table_name}), uid=str)
    click.echo(bus.core.table_ddl, nl=False)
    if role is None:
        return
    core, name = bus.core, role.replace('"', '""')
    text = {"table": literal(core.table_name), "role": literal(role)}
    click.echo(
        f'GRANT SELECT, INSERT, DELETE ON {core.table_name} TO "{name}";\n'
        "DO $$ BEGIN\n    EXECUTE pg_catalog.format('GRANT USAGE ON SEQUENCE %s TO %I',\n"
        "        pg_catalog.pg_get_serial_sequence({table}, 'id'), {role});\nEND $$;".format(**text)
    )
