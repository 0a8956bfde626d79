"""The scripts that install and remove the SQL functions: the files in `sql/`, with names and settings filled in."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from importlib import resources
from typing import Final

from socketio_postgres._bus.drivers import literal
from socketio_postgres._bus.messages import RESERVED_EVENTS
from socketio_postgres._bus.options import BusOptions
from socketio_postgres._cluster.rooms import bad

__all__ = ["PUBLIC_FUNCTIONS", "SCHEMA", "VERSION", "install_script", "migration", "remove_script"]

SCHEMA: Final = "socketio"
"""Where the functions are unless told otherwise."""

VERSION: Final = 2
"""Of `functions.sql`. A change of what it installs needs the next one: an older package must not replace the newer."""

MAX_BYTES: Final = 256 * 1024
"""Largest message of the functions unless told otherwise: larger ones take the database too long to encode."""

PUBLIC_FUNCTIONS: Final = ("emit", '"join"', "leave", "disconnect", "server_side_emit", "emit_row", "emit_rows")
"""What roles may be granted to execute."""

OBSOLETE: Final = ("_msgpack_bytes", "_old_publish")
"""What older versions had for themselves, and this one has not."""

# A role must not be able to change the meaning of what runs with the owner's rights.
_SAFELY: Final = "SET search_path = pg_catalog, pg_temp"

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}", re.ASCII)


def checked_schema(schema: object) -> str:
    """The name of a schema.

    Raises:
        OptionsError: It is no plain name.
    """
    if not isinstance(schema, str) or not _NAME.fullmatch(schema) or schema.startswith("pg_"):
        raise bad("schema", schema, "a schema is named by letters, digits and _, and not as PostgreSQL's own")
    return schema


def _literals(texts: Iterable[str]) -> str:
    return ", ".join(map(literal, sorted(texts)))


def _text(name: str) -> str:
    return (resources.files(__package__) / "sql" / name).read_text(encoding="utf-8")


def _filled(name: str, schema: str, values: Mapping[str, str]) -> str:
    text = _text(name)
    quoted = f'"{checked_schema(schema)}"'
    made = set(re.findall(r'CREATE OR REPLACE FUNCTION \{schema\}\."?(\w+)', _text("functions.sql")))
    lists = {"names": _literals(made), "obsolete": _literals(OBSOLETE)}
    for key, value in {"schema": quoted, "schema_text": literal(quoted), **lists, **values}.items():
        text = text.replace(f"{{{key}}}", value)
    return text


def _parts(options: BusOptions, table: str, schema: str) -> tuple[str, str]:
    """The schema with its settings, and the functions."""
    values = {
        "version": str(VERSION),
        "channel": literal(options.channel),
        "attachments": literal(table),
        "payload_threshold": str(options.payload_threshold),
        "max_bytes": str(min(MAX_BYTES, options.max_payload)),
        "reserved": _literals(RESERVED_EVENTS),
        "safely": _SAFELY,
    }
    return _filled("settings.sql", schema, values), _filled("functions.sql", schema, values)


def migration(options: BusOptions, table: str, schema: str = SCHEMA) -> str:
    """The statements that install the functions, or bring any older ones to this version; without a signing key.

    Args:
        options: Of the cluster.
        table: The attachment table, quoted; it must exist by then.
        schema: Where to install.

    Raises:
        OptionsError: The schema is no plain name.
    """
    settings, functions = _parts(options, table, schema)
    return f"-- Run this in one transaction. It may be run again.\n\n{settings}\n{functions}"


def install_script(options: BusOptions, table: str, schema: str = SCHEMA) -> str:
    """The same for a program that may do so at each start: functions of this version stay as they are. With the key.

    Whoever replaces functions makes every session of the database compile them again.
    """
    settings, functions = _parts(options, table, schema)
    key = options.signing_key.encode() if isinstance(options.signing_key, str) else options.signing_key
    value = "NULL" if key is None else f"pg_catalog.decode('{key.hex()}', 'hex')"
    return f"""{settings}
DO $install$
BEGIN
    IF (SELECT version FROM "{schema}".settings) <> {VERSION} THEN
        EXECUTE $functions$
{functions}
        $functions$;
    END IF;
END
$install$;
SELECT "{schema}".set_signing_key({value});
"""


def remove_script(schema: str) -> str:
    """The statements that remove the functions and their schema; they fail while triggers or other objects use them.

    Raises:
        OptionsError: The schema is no plain name.
    """
    return _filled("remove.sql", schema, {})
