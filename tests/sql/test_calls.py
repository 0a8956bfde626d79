"""What the functions refuse, whom they address, and when the message goes out."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from socketio_postgres._bus.messages import RESERVED_EVENTS
from tests.fixtures.bus import BusReader
from tests.fixtures.database import Database

NULL, INVALID = "22004", "22023"

REFUSED = [
    ("emit(NULL)", NULL, "event is NULL"),
    ("emit('')", INVALID, "is empty"),
    ("emit('e', NULL)", NULL, "arguments are NULL"),
    ("emit('e', '{}')", INVALID, "no JSON array but one object"),
    ("emit('e', '1')", INVALID, "no JSON array but one number"),
    ("emit('e', '[]', ARRAY[NULL])", NULL, "rooms contains NULL"),
    ("emit('e', '[]', ARRAY['a', NULL])", NULL, "rooms contains NULL"),
    ("emit('e', '[]', ARRAY['a', ''])", INVALID, "rooms contains an empty text"),
    ("emit('e', '[]', ARRAY[ARRAY['a'], ARRAY['b']])", INVALID, "several dimensions"),
    ("emit('e', '[]', NULL, ARRAY[NULL])", NULL, "except_ contains NULL"),
    ("emit('e', '[]', NULL, ARRAY[''])", INVALID, "except_ contains an empty text"),
    ("emit('e', namespace => NULL)", NULL, "namespace is NULL"),
    ("emit('e', namespace => repeat('x', 53))", INVALID, "longer than 63 bytes"),
    ("emit('e', namespace => repeat('é', 27))", INVALID, "longer than 63 bytes"),
    ("emit('e', (repeat('[', 101) || repeat(']', 101))::jsonb)", "54000", "deeper than 100"),
    ("emit('e', (repeat('[{\"a\":', 51) || '1' || repeat('}]', 51))::jsonb)", "54000", "deeper than 100"),
    ("emit('e', jsonb_build_array(repeat('x', 262144)))", "54000", "larger than 262144"),
    ("join(NULL, ARRAY['a'])", INVALID, "sockets is NULL and everybody is false"),
    ("join(ARRAY['a'], ARRAY['a'], everybody => true)", INVALID, "sockets is an array and everybody is true"),
    ("join(NULL, ARRAY['a'], everybody => NULL)", INVALID, "everybody is NULL"),
    ("join(ARRAY['a'], NULL)", NULL, "rooms is NULL"),
    ("join(ARRAY['a'], ARRAY[NULL])", NULL, "rooms contains NULL"),
    ("join(ARRAY[NULL], ARRAY['a'])", NULL, "sockets contains NULL"),
    ("leave(ARRAY[''], ARRAY['a'])", INVALID, "sockets contains an empty text"),
    ("leave(NULL, ARRAY['a'])", INVALID, "sockets is NULL"),
    ("disconnect(NULL)", INVALID, "sockets is NULL"),
    ("disconnect(ARRAY[NULL])", NULL, "sockets contains NULL"),
    ("disconnect(ARRAY['a'], NULL)", NULL, "close is NULL"),
    ("server_side_emit(NULL)", NULL, "event is NULL"),
    ("server_side_emit('e', '{}')", INVALID, "no JSON array"),
    *((f"{function}('{event}')", INVALID, "reserved by Socket.IO")
      for event in sorted(RESERVED_EVENTS) for function in ("emit", "server_side_emit")),
]  # fmt: skip


@pytest.mark.parametrize(("call", "sqlstate", "text"), REFUSED, ids=[call[:60] for call, _, _ in REFUSED])
def test_refused(psql: psycopg.Connection, call: str, sqlstate: str, text: str) -> None:
    with pytest.raises(psycopg.Error, match=text) as caught:
        psql.execute(f"SELECT socketio.{call}")
    assert caught.value.sqlstate == sqlstate


def test_too_large_says_what_to_do(psql: psycopg.Connection) -> None:
    psql.execute("UPDATE socketio.settings SET max_bytes = 10000")
    psql.execute("SELECT socketio.emit('e', jsonb_build_array(repeat('x', 9900)))")
    with pytest.raises(psycopg.errors.ProgramLimitExceeded) as caught:
        psql.execute("SELECT socketio.emit('e', jsonb_build_array(repeat('é', 5000)))")
    assert "Send a key instead" in (caught.value.diag.message_hint or "")


ADDRESSED: list[tuple[str, dict[str, Any] | None]] = [
    ("emit('e')", {"to": []}),
    ("emit('e', (repeat('[', 100) || repeat(']', 100))::jsonb)", {"to": []}),
    ("emit('e', rooms => NULL)", {"to": []}),
    ("emit('e', rooms => '{}')", None),
    ("emit('e', rooms => '{}', except_ => ARRAY['x'])", None),
    ("emit('e', rooms => ARRAY['a', 'b'], except_ => ARRAY['c'])", {"to": ["a", "b"], "except_": ["c"]}),
    ("emit('e', rooms => '[5:6]={a,b}')", {"to": ["a", "b"]}),
    ("emit('e', except_ => '{}')", {"to": [], "except_": []}),
    ("emit('e', '[]', '{a}', NULL, '')", {"to": ["a"], "nsp": "/"}),
    ("emit('e', '[]', '{a}', namespace => 'chat')", {"to": ["a"], "nsp": "/chat"}),
    ("emit('e', '[]', '{a}', namespace => '/chat')", {"to": ["a"], "nsp": "/chat"}),
    ("join('{a}', '{b}')", {"to": ["a"], "rooms": ["b"]}),
    ("join('{}', '{b}')", None),
    ("join('{a}', '{}')", None),
    ("join(NULL, '{b}', everybody => true)", {"to": [], "rooms": ["b"]}),
    ("leave('{}', '{b}')", None),
    ("leave(NULL, '{b}', everybody => true)", {"to": [], "rooms": ["b"]}),
    ("disconnect('{}')", None),
    ("disconnect('{a}')", {"to": ["a"], "close": False}),
    ("disconnect('{a}', close => true, namespace => 'chat')", {"to": ["a"], "close": True, "nsp": "/chat"}),
    ("disconnect(NULL, everybody => true)", {"to": []}),
]


@pytest.mark.parametrize(("call", "addressed"), ADDRESSED, ids=[call for call, _ in ADDRESSED])
async def test_addressed(
    installed: Database, psql: psycopg.Connection, call: str, addressed: dict[str, Any] | None
) -> None:
    async with BusReader(installed, ("/", "/chat")) as reader:
        psql.execute(f"SELECT socketio.{call}")
        psql.execute("SELECT socketio.emit('end'), socketio.emit('end', namespace => '/chat')")
        await reader.wait_for(2 if addressed is None or not call.startswith("emit") else 3)
    sent = [message for message in reader.messages if message.packet() != ["end"]]
    if addressed is None:
        assert sent == []
        return
    [message] = sent
    for name, value in addressed.items():
        assert getattr(message, name) == value
    assert reader.failures == []


async def test_only_what_is_committed_goes_out(installed: Database, psql: psycopg.Connection) -> None:
    big = "jsonb_build_array(repeat('x', 9000))"
    async with BusReader(installed) as reader:
        with psql.transaction(force_rollback=True):
            psql.execute(f"SELECT socketio.emit('rolled back'), socketio.emit('rolled back', {big})")
        with psql.transaction():
            psql.execute("SELECT socketio.emit('one')")
            with psql.transaction(force_rollback=True):
                psql.execute(f"SELECT socketio.emit('to the savepoint'), socketio.emit('to the savepoint', {big})")
            psql.execute(f"SELECT socketio.emit('two', {big})")
        with installed.connect() as other:
            other.execute("BEGIN; SELECT socketio.emit('killed')")
            psql.execute("SELECT pg_terminate_backend(%s)", [other.info.backend_pid])
            with pytest.raises(psycopg.OperationalError):
                other.execute("COMMIT")
        psql.execute("SELECT socketio.emit('three')")
        assert [packet[0] for packet in await reader.wait_for(3)] == ["one", "two", "three"]
    assert reader.gap_infos == []
    assert installed.value("SELECT count(*) FROM socket_io_attachments") == 1


def test_rows_of_attachments_outlive_the_transaction(installed: Database, psql: psycopg.Connection) -> None:
    """Servers delete what is older than 30 seconds, and a row appears only with its commit."""
    psql.execute("SELECT socketio.emit('e', jsonb_build_array(repeat('x', 9000)))")
    seconds = installed.value("SELECT extract(epoch FROM created_at - now())::int FROM socket_io_attachments")
    assert isinstance(seconds, int)
    assert 30 < seconds <= 60


def test_the_users_settings_stay(psql: psycopg.Connection) -> None:
    psql.execute("SELECT socketio.emit('e')")  # loads PL/pgSQL, and with it its settings
    with psql.transaction():
        before = psql.execute("SELECT name, setting FROM pg_settings ORDER BY 1").fetchall()
        psql.execute("SELECT socketio.emit('e', jsonb_build_array(repeat('x', 9000)))")
        assert psql.execute("SELECT name, setting FROM pg_settings ORDER BY 1").fetchall() == before


async def test_called_from_functions_and_rules(installed: Database, psql: psycopg.Connection) -> None:
    async with BusReader(installed) as reader:
        psql.execute("DO $$ BEGIN PERFORM socketio.emit('do', '[1]'); END $$")
        psql.execute(
            "CREATE FUNCTION notice(text) RETURNS void LANGUAGE sql AS"
            " $$ SELECT socketio.emit('function', jsonb_build_array($1)) $$"
        )
        psql.execute("SELECT notice('é')")
        psql.execute("CREATE TABLE t (a int)")
        psql.execute("CREATE RULE r AS ON INSERT TO t DO ALSO SELECT socketio.emit('rule', jsonb_build_array(NEW.a))")
        psql.execute("INSERT INTO t VALUES (7)")
        psql.execute("PREPARE p(jsonb) AS SELECT socketio.emit('prepared', $1)")
        for number in range(7):  # beyond the five custom plans
            psql.execute(f"EXECUTE p('[{number}]')")
        packets = await reader.wait_for(10)
    assert packets == [["do", 1], ["function", "é"], ["rule", 7], *(["prepared", number] for number in range(7))]


async def test_in_a_read_only_transaction(installed: Database, psql: psycopg.Connection) -> None:
    """PostgreSQL lets it notify, and not write the row of a large message."""
    async with BusReader(installed) as reader:
        with psql.transaction():
            psql.execute("SET TRANSACTION READ ONLY")
            psql.execute("SELECT socketio.emit('small')")
        psql.execute("BEGIN READ ONLY")
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            psql.execute("SELECT socketio.emit('large', jsonb_build_array(repeat('x', 9000)))")
        psql.execute("ROLLBACK")
        psql.execute("SELECT socketio.emit('end')")
        assert await reader.wait_for(2) == [["small"], ["end"]]
