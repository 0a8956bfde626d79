"""`socketio-postgres sql`: the statements that a migration needs."""

from __future__ import annotations

from collections.abc import Iterator

import click

from socketio_postgres._bus.bus import Bus
from socketio_postgres._bus.options import BusOptions
from socketio_postgres._cluster.sql_script import PUBLIC_FUNCTIONS, SCHEMA, install_script, remove_script
from socketio_postgres.cli.session import literal

__all__ = ["sql"]


@click.command()
@click.option("--table-name", default="socket_io_attachments", show_default=True, help="Attachment table.")
@click.option("--functions", is_flag=True, help="Also print the SQL functions, such as socketio.emit.")
@click.option("--remove", is_flag=True, help="Print what removes the SQL functions instead.")
@click.option("--schema", default=SCHEMA, show_default=True, help="Schema of the SQL functions.")
@click.option("--channel", default="socket.io", show_default=True, help="Prefix of the channels.")
@click.option("--payload-threshold", default=8000, show_default=True, help="As the option of that name.")
@click.option("--role", metavar="ROLE", help="Also print what this role needs to be granted.")
def sql(
    table_name: str,
    *,
    functions: bool,
    remove: bool,
    schema: str,
    channel: str,
    payload_threshold: int,
    role: str | None,
) -> None:
    """Print the statements that create the attachment table and, if wanted, the SQL functions, for your migrations.

    With them, and `create_table=False`, the servers' role needs no right to create anything. Run them in one
    transaction, as `psql -1` does.
    """
    options = BusOptions.of("", {"table_name": table_name, "channel": channel, "payload_threshold": payload_threshold})
    if remove:
        click.echo(remove_script(schema), nl=False)
        return
    core = Bus(options, uid=str).core
    statements = [core.table_ddl]
    if functions:
        statements += ["\n", install_script(options, core.table_name, schema)]
    if role is not None:
        statements += _grants(core.table_name, role, schema if functions else None)
    click.echo("".join(statements), nl=False)


def _grants(table: str, role: str, schema: str | None) -> Iterator[str]:
    """What a role is granted: on the attachment table and, if there is a schema, on the functions in it."""
    name = role.replace('"', '""')
    yield (
        f'GRANT SELECT, INSERT, DELETE ON {table} TO "{name}";\n'
        "DO $$ BEGIN\n    EXECUTE pg_catalog.format('GRANT USAGE ON SEQUENCE %s TO %I',\n"
        f"        pg_catalog.pg_get_serial_sequence({literal(table)}, 'id'), {literal(role)});\nEND $$;\n"
    )
    if schema is not None:
        yield f'GRANT USAGE ON SCHEMA "{schema}" TO "{name}";\n'
        for function in PUBLIC_FUNCTIONS:
            yield f'GRANT EXECUTE ON FUNCTION "{schema}".{function} TO "{name}";\n'
