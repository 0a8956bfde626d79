"""Every statement in docs/emit-from-sql.md works as it stands there, and every function is described."""

from __future__ import annotations

import json
import re
from pathlib import Path

import psycopg
from psycopg import sql

from tests.fixtures.bus import BusReader
from tests.fixtures.database import Database

DOCUMENT = (Path(__file__).parents[2] / "docs" / "emit-from-sql.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)


async def test_all_statements(installed: Database, psql: psycopg.Connection) -> None:
    role = installed.name + "_chat"
    async with BusReader(installed, ("/", "/admin")) as reader:
        for block in blocks("sql"):
            psql.execute(block.replace(" chat;", f" {role};"))
        try:
            psql.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(role)))
            psql.execute("SELECT socketio.emit('granted')")
            psql.execute("RESET ROLE")
            psql.execute("INSERT INTO orders VALUES (1, 7, 'new'); UPDATE orders SET status = 'paid'")
            psql.execute("INSERT INTO prices VALUES (1, 'fx', 1.08), (2, 'fx', 2); UPDATE prices SET price = 3")
            psql.execute("DELETE FROM prices")
            packets = await reader.wait_for(10)
        finally:
            psql.execute(sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(sql.Identifier(role)))
    assert reader.failures == []
    [example] = blocks("json")
    assert json.loads(example) in [packet[1] for packet in packets if packet[0] == "order"]
    assert [packet[1]["count"] for packet in packets if packet[0] == "prices"] == [2, 4, 2]


def test_all_functions_are_described(psql: psycopg.Connection) -> None:
    rows = psql.execute(
        "SELECT proname, array_to_string(proargnames, ', ') FROM pg_proc"
        " WHERE pronamespace = 'socketio'::regnamespace AND proname !~ '^_|emit_row|set_signing_key'"
    ).fetchall()
    table = dict(re.findall(r"^\| `(\w+)\((.*?)\)` \|", DOCUMENT, re.MULTILINE))
    assert table == dict(rows)
