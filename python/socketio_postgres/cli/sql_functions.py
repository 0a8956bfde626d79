"""What `doctor` says about the SQL functions: their version, their owner, and whether they fit the cluster."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncGenerator, Iterator
from typing import Any, Final

from socketio_postgres._bus.drivers import literal
from socketio_postgres._cluster.sql_script import PUBLIC_FUNCTIONS, SCHEMA, VERSION
from socketio_postgres.cli.finding import Finding, note, ok, warning
from socketio_postgres.cli.session import Session

__all__ = ["sql_functions"]

ABOUT: Final = "SQL functions"

BLOCK: Final = 64
"""Bytes that SHA-256 works on at once, and so those of an HMAC's key."""

_AGAIN: Final = "Call `install_sql` with the options of your managers, as the owner of the functions."

_STATE: Final = f"""SELECT pg_catalog.json_build_object(
    'owner', pg_catalog.pg_get_userbyid(c.relowner),
    'is_readable', pg_catalog.has_schema_privilege(n.oid, 'USAGE')
        AND pg_catalog.has_table_privilege(c.oid, 'SELECT'),
    'functions', (SELECT pg_catalog.json_object_agg(p.proname,
            pg_catalog.has_schema_privilege(n.oid, 'USAGE') AND pg_catalog.has_function_privilege(p.oid, 'EXECUTE'))
        FROM pg_catalog.pg_proc AS p WHERE p.pronamespace = n.oid),
    'strangers', (SELECT pg_catalog.json_agg(DISTINCT r.rolname) FROM (
            SELECT n.nspowner AS owner
            UNION ALL SELECT p.proowner FROM pg_catalog.pg_proc AS p WHERE p.pronamespace = n.oid
        ) AS found JOIN pg_catalog.pg_roles AS r ON r.oid = found.owner
        WHERE r.oid <> c.relowner AND NOT r.rolsuper AND r.rolname <> 'pg_database_owner'
            AND r.oid <> (SELECT datdba FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()))
    )::pg_catalog.text
FROM pg_catalog.pg_namespace AS n JOIN pg_catalog.pg_class AS c ON c.relnamespace = n.oid
WHERE n.nspname = {literal(SCHEMA)} AND c.relname = 'settings' AND c.relkind = 'r' AND
    (SELECT pg_catalog.count(*) FROM pg_catalog.pg_attribute AS a WHERE a.attrelid = c.oid
        AND a.attname IN ('version', 'channel', 'attachments', 'inner_key')) = 4"""

# The key itself stays where it is.
_SETTINGS: Final = f"""SELECT pg_catalog.json_build_object(
    'version', s.version, 'channel', s.channel, 'attachments', s.attachments, 'exists', t.relation IS NOT NULL,
    'is_same_table', t.relation IS NOT DISTINCT FROM pg_catalog.to_regclass({{table}})::pg_catalog.oid,
    'may_insert', t.relation IS NULL OR pg_catalog.has_table_privilege({{owner}}, t.relation, 'INSERT') AND CASE
        WHEN EXISTS (SELECT FROM pg_catalog.pg_attribute WHERE attrelid = t.relation AND attname = 'id')
        THEN coalesce(pg_catalog.has_sequence_privilege({{owner}},
            pg_catalog.pg_get_serial_sequence(t.relation::pg_catalog.regclass::pg_catalog.text, 'id'), 'USAGE'), true)
        ELSE true END,
    'key', pg_catalog.encode(pg_catalog.sha256(s.inner_key), 'hex'))::pg_catalog.text
FROM {SCHEMA}.settings AS s, LATERAL (SELECT pg_catalog.to_regclass(s.attachments)::pg_catalog.oid AS relation) AS t"""


async def sql_functions(keywords: dict[str, Any], session: Session) -> AsyncGenerator[Finding, None]:
    """Whether the functions of `install_sql`, if they are there, do what this package and this cluster expect."""
    rows = await session.rows(_STATE)
    if not rows:
        yield note(ABOUT, "not installed; only emitting from SQL and triggers needs them")
        return
    state: dict[str, Any] = json.loads(rows[0][0] or "{}")
    owner, functions = state["owner"], state["functions"] or {}
    findings = list(_of_catalog(state))
    told = f"in the schema {SCHEMA}, owned by {owner}"
    if state["is_readable"]:
        sql = _SETTINGS.format(table=literal(keywords["table_name"]), owner=literal(owner))
        ((text,),) = await session.rows(sql)
        settings: dict[str, Any] = json.loads(text or "{}")
        told = f"version {settings['version']} {told}"
        findings += _of_settings(settings, keywords, owner)
    for finding in findings:
        yield finding
    if findings:
        return
    if not state["is_readable"]:
        yield note(
            ABOUT,
            f"{told}; only that role may read their version and settings",
            f"Run `doctor` as {owner} to check them.",
        )
    elif functions.get("emit"):
        yield ok(ABOUT, f"{told}; this role may execute socketio.emit")
    else:
        yield ok(ABOUT, f"{told}; this role may not execute socketio.emit")


def _of_catalog(state: dict[str, Any]) -> Iterator[Finding]:
    """What everybody can see."""
    if state["strangers"]:
        strangers = ", ".join(state["strangers"])
        yield warning(
            ABOUT,
            f"the schema {SCHEMA} or functions in it belong to {strangers}, and the settings to {state['owner']}: what"
            " one role changes runs with the rights of the other",
            "Install as one role, and drop what it has not made; `install_sql` names the first such object.",
        )
    missing = [
        name for name in (each.strip('"') for each in PUBLIC_FUNCTIONS) if name not in (state["functions"] or {})
    ]
    if missing:
        yield warning(ABOUT, f"the schema {SCHEMA} lacks {', '.join(missing)}", _AGAIN)


def _of_settings(settings: dict[str, Any], keywords: dict[str, Any], owner: str) -> Iterator[Finding]:
    """What only the owner can see."""
    version, channel = settings["version"], settings["channel"]
    if version < VERSION:
        yield warning(
            ABOUT,
            f"version {version}, owned by {owner}; this package has version {VERSION}",
            f"{_AGAIN} Or run what `socketio-postgres sql --functions` prints.",
        )
    elif version > VERSION:
        yield warning(
            ABOUT,
            f"version {version}, owned by {owner}; this package has version {VERSION}, and cannot install it",
            "Update socketio-postgres in the processes that call `install_sql`.",
        )
    if channel != keywords["channel"]:
        yield warning(
            ABOUT,
            f"they emit to channels that begin with {channel!r}, and this cluster listens to {keywords['channel']!r}:"
            " what they emit reaches none of its clients",
            _AGAIN,
        )
    if not settings["exists"]:
        yield warning(
            ABOUT, f"their attachment table {settings['attachments']} does not exist: large messages fail", _AGAIN
        )
    elif not settings["is_same_table"]:
        yield warning(
            ABOUT,
            f"they put large messages into {settings['attachments']}, and this cluster reads {keywords['table_name']}",
            _AGAIN,
        )
    if not settings["may_insert"]:
        yield warning(
            ABOUT,
            f"they run with the rights of {owner}, which lacks INSERT on {settings['attachments']} or USAGE on its"
            " sequence: large messages fail",
            f"`socketio-postgres sql --role {owner} --access write` prints the statements that grant them.",
        )
    if settings["key"] != _digest_of(keywords.get("signing_key")):
        signs = (
            "they sign with another key"
            if settings["key"] and keywords.get("signing_key")
            else (
                "they sign messages, and no signing key was given"
                if settings["key"]
                else "they do not sign messages, and this cluster drops what is not signed"
            )
        )
        yield warning(ABOUT, signs, f"{_AGAIN} Give `doctor` the key of the cluster as --signing-key-file.")


def _digest_of(key: bytes | None) -> str | None:
    """What `set_signing_key` keeps of a key, as a digest."""
    if key is None:
        return None
    block = (key if len(key) <= BLOCK else hashlib.sha256(key).digest()).ljust(BLOCK, b"\0")
    return hashlib.sha256(bytes(byte ^ 0x36 for byte in block)).hexdigest()
