"""`socketio-postgres doctor` names the cause, and how to mend it."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from socketio_postgres import Emitter, EventStore
from socketio_postgres._cluster.sql_script import VERSION
from socketio_postgres.cli import checks, main
from socketio_postgres.cli.nodelay import nodelay
from socketio_postgres.cli.session import Row, Session
from tests.fixtures.database import Database, new_database, patient
from tests.fixtures.pgbouncer import PgBouncer, pgbouncer_program
from tests.fixtures.postgres import OwnPostgres, queue_usage, standby_of

__all__ = ["pgbouncer_program"]

Capture = pytest.CaptureFixture[str]


def doctor(capsys: Capture, dsn: str, *arguments: str, status: int = 0) -> dict[str, dict[str, str]]:
    """What it finds, by what was looked at."""
    capsys.readouterr()
    assert main(["doctor", "--json", "--dsn", dsn, *arguments]) == status
    return {found["about"]: found for found in map(json.loads, capsys.readouterr().out.splitlines())}


@contextmanager
def role(database: Database, *grants: str) -> Iterator[str]:
    """The connection string of a role with these rights only."""
    with closing(database.connect()) as admin:
        name = f"doctor_{database.name}"
        admin.execute(f'CREATE ROLE "{name}" LOGIN')
        for grant in grants:
            admin.execute(grant.format(role=f'"{name}"'))
        try:
            yield make_conninfo(database.dsn, user=name)
        finally:
            admin.execute(f'DROP OWNED BY "{name}"')
            admin.execute(f'DROP ROLE "{name}"')


def test_a_sound_set_up(database: Database, capsys: Capture) -> None:
    with EventStore(database.dsn):
        pass
    found = doctor(capsys, database.dsn)
    assert {each["level"] for each in found.values()} <= {"ok", "note", "warning"}
    assert found["LISTEN"]["level"] == found["event store"]["level"] == found["sequence"]["level"] == "ok"
    assert main(["doctor", "--dsn", database.dsn]) == 0
    assert "✓ LISTEN: what is published comes back" in capsys.readouterr().out


def test_it_changes_nothing(database: Database, capsys: Capture) -> None:
    doctor(capsys, database.dsn, "--events-table", "events")
    assert database.value("SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace") == 0


def test_nobody_answers(capsys: Capture) -> None:
    found = doctor(capsys, "host=127.0.0.1 port=1 dbname=x user=y", status=1)
    assert found.keys() == {"connection"}
    assert "Connection refused" in found["connection"]["text"]


def test_the_password_is_wrong(capsys: Capture) -> None:
    with OwnPostgres() as server:
        server.database.value("SELECT 1")
        with closing(server.database.connect()) as admin:
            admin.execute("CREATE ROLE chat LOGIN PASSWORD 'right'")
        (server.data_dir / "pg_hba.conf").write_text(
            "host all chat 127.0.0.1/32 scram-sha-256\nhost all all 127.0.0.1/32 trust\nlocal all all trust\n"
        )
        server.database.value("SELECT pg_reload_conf()")
        server.restart()
        found = doctor(capsys, make_conninfo(patient(server.database.dsn), user="chat", password="hunter2"), status=1)
    assert "28P01" in found["connection"]["text"]
    assert "PGPASSWORD" in found["connection"]["remedy"]
    assert "hunter2" not in json.dumps(found)


@pytest.mark.parametrize("role_of_it", ["both", "listen"])
def test_a_pooler_in_transaction_mode(
    database: Database, pgbouncer_program: str, capsys: Capture, role_of_it: str
) -> None:
    with PgBouncer(pgbouncer_program, database, "transaction") as pooler:
        dsn = pooler.dsn if role_of_it == "both" else database.dsn
        found = doctor(capsys, dsn, "--listen-dsn", pooler.dsn, status=1)
        assert found["pooling"]["level"] == "fault"
        assert "pool in session mode" in found["pooling"]["remedy"]
        assert doctor(capsys, pooler.dsn, "--listen-dsn", database.dsn)["pooling"]["level"] == "ok"


def test_a_standby(capsys: Capture) -> None:
    with OwnPostgres() as primary, standby_of(primary) as standby:
        found = doctor(capsys, patient(standby.database.dsn), status=1)
        assert "is a hot standby" in found["connection"]["text"]
        assert "lead to the primary" in found["connection"]["remedy"]
        found = doctor(capsys, patient(primary.database.dsn), "--listen-dsn", patient(standby.database.dsn), status=1)
        assert "is a hot standby" in found["connection to LISTEN"]["text"]


def test_another_database_behind_listen_dsn(database: Database, postgres_dsn: str, capsys: Capture) -> None:
    with new_database(postgres_dsn) as other:
        found = doctor(capsys, database.dsn, "--listen-dsn", other.dsn, status=1)
    assert "the same database" in found["LISTEN"]["remedy"]


def test_rights_are_missing(database: Database, capsys: Capture) -> None:
    table = "socket_io_attachments"
    with role(database, "REVOKE CREATE ON SCHEMA public FROM PUBLIC") as dsn:
        found = doctor(capsys, dsn, status=1)["attachments"]
        assert "may not create it" in found["text"]
    with closing(database.connect()) as admin:
        assert main(["sql"]) == 0
        admin.execute(capsys.readouterr().out)
        with role(database, f"GRANT SELECT, INSERT ON {table} TO {{role}}") as dsn:
            found = doctor(capsys, dsn, status=1)["attachments"]
            assert f"lacks DELETE on the table and USAGE on its sequence {table}" in found["text"]
            name = psycopg.conninfo.conninfo_to_dict(dsn)["user"]
            assert main(["sql", "--role", str(name)]) == 0
            admin.execute(capsys.readouterr().out)
            assert doctor(capsys, dsn)["attachments"]["level"] == "ok"


def test_a_table_of_another_layout(database: Database, capsys: Capture) -> None:
    with closing(database.connect()) as admin:
        admin.execute("CREATE TABLE socket_io_attachments (id bigserial, body text)")
        admin.execute("CREATE TABLE events (id int)")
    found = doctor(capsys, database.dsn, status=1)
    assert found["attachments"]["level"] == "fault"
    assert found["event store"]["level"] == "note", "any application may have a table of this name"
    assert doctor(capsys, database.dsn, "--events-table", "events", status=1)["event store"]["level"] == "fault"


def test_a_table_without_an_id(database: Database, capsys: Capture) -> None:
    with closing(database.connect()) as admin:
        admin.execute("CREATE TABLE socket_io_attachments (body text)")
    found = doctor(capsys, database.dsn, status=1)["attachments"]
    assert (found["level"], "id" in found["text"]) == ("fault", True)


def test_the_queue_is_nearly_full(capsys: Capture) -> None:
    server = OwnPostgres(max_notify_queue_pages="64")
    if server._binaries.major < 17:
        pytest.skip(f"max_notify_queue_pages needs PostgreSQL 17 or newer, this is {server.version}")
    with server, closing(server.database.connect()) as sleeper, closing(server.database.connect()) as sender:
        sleeper.execute("SET application_name = 'sleeper'")
        sleeper.execute("LISTEN something")
        sleeper.execute("BEGIN")
        sleeper.execute("SELECT 1")
        while queue_usage(server.database) < 0.6:
            sender.execute("SELECT pg_notify('something', repeat('x', 7000) || n) FROM generate_series(1, 10) AS n")
        found = doctor(capsys, patient(server.database.dsn), status=1)["queue"]
    assert "sleeper" in found["text"]
    assert "End the session" in found["remedy"]


def test_an_encoding_without_meaning(postgres_dsn: str, capsys: Capture) -> None:
    with new_database(postgres_dsn, "SQL_ASCII") as database:
        found = doctor(capsys, database.dsn)["encoding"]
    assert found["level"] == "warning"
    assert "SQL_ASCII" in found["text"]


def test_a_sequence_behind_the_table(database: Database, capsys: Capture) -> None:
    with EventStore(database.dsn), closing(database.connect()) as admin:
        admin.execute("INSERT INTO events (version, id, aggregate_id, event_type) VALUES (7, 'a', 'a', 'T')")
    found = doctor(capsys, database.dsn, status=1)
    named = next(each for each in found.values() if "setval" in each["remedy"] or "setval" in each["text"])
    assert "events_version_seq" in json.dumps(named)


def test_a_transaction_that_holds_readers_up(database: Database, capsys: Capture) -> None:
    with EventStore(database.dsn), closing(psycopg.connect(database.dsn, application_name="sleeper")) as writer:
        writer.execute("INSERT INTO events (id, aggregate_id, event_type) VALUES ('a', 'a', 'T')")
        found = doctor(capsys, database.dsn)["open transactions"]
    assert found["level"] == "warning"
    assert "sleeper" in found["text"]


def functions_found(capsys: Capture, dsn: str, *arguments: str) -> list[dict[str, str]]:
    """What it says about the SQL functions."""
    capsys.readouterr()
    assert main(["doctor", "--json", "--dsn", dsn, *arguments]) == 0
    found = map(json.loads, capsys.readouterr().out.splitlines())
    return [each for each in found if each["about"] == "SQL functions"]


def test_sql_functions(database: Database, capsys: Capture) -> None:
    for statement in (
        "",
        "CREATE SCHEMA socketio; CREATE TABLE socketio.settings (name text)",
        "DROP SCHEMA socketio CASCADE",
    ):
        with closing(database.connect()) as admin:
            admin.execute(statement)
        (found,) = functions_found(capsys, database.dsn)
        assert (found["level"], found["text"].partition(";")[0]) == ("note", "not installed")
    with Emitter(database.dsn) as io:
        io.install_sql()
    (found,) = functions_found(capsys, database.dsn)
    owner = str(database.value("SELECT current_user"))
    assert found["level"] == "ok"
    assert f"version {VERSION} in the schema socketio, owned by {owner}; this role may execute" in found["text"]
    table = "socket_io_attachments"
    rights = (f"GRANT ALL ON {table} TO {{role}}", f"GRANT ALL ON SEQUENCE {table}_id_seq TO {{role}}")
    with role(database, *rights) as dsn:
        (found,) = functions_found(capsys, dsn)
        assert found["level"] == "note"
        assert f"owned by {owner}; only that role may read" in found["text"]


@pytest.mark.parametrize(
    ("statement", "text", "remedy"),
    [
        ("UPDATE socketio.settings SET version = 1", f"this package has version {VERSION}", "install_sql"),
        ("UPDATE socketio.settings SET version = 1000", "cannot install it", "Update socketio-postgres"),
        ("UPDATE socketio.settings SET channel = 'chat'", "begin with 'chat'", "options of your managers"),
        ("ALTER TABLE socket_io_attachments RENAME TO other", "does not exist: large messages fail", "install_sql"),
        ("UPDATE socketio.settings SET attachments = 'pg_class'", "into pg_class", "install_sql"),
        (
            "SELECT socketio.set_signing_key('\\x000102030405060708090a0b0c0d0e0f')",
            "no signing key was given",
            "--signing",
        ),
        ("DROP FUNCTION socketio.emit", "lacks emit", "install_sql"),
        ("ALTER FUNCTION socketio.leave OWNER TO {role}", "belong to {role}", "Install as one role"),
        (
            (
                "GRANT CREATE ON SCHEMA socketio TO {role}; ALTER TABLE socketio.settings OWNER TO {role};"
                "GRANT SELECT ON socketio.settings TO CURRENT_USER"
            ),
            "they run with the rights of {role}, which lacks INSERT",
            "sql --role {role} --access write",
        ),
    ],
)
def test_sql_functions_that_do_not_fit(
    database: Database, capsys: Capture, statement: str, text: str, remedy: str
) -> None:
    with Emitter(database.dsn) as io:
        io.install_sql()
    with role(database) as dsn:
        name = str(psycopg.conninfo.conninfo_to_dict(dsn)["user"])
        with closing(database.connect()) as admin:
            admin.execute(statement.replace("{role}", f'"{name}"'))
        found = functions_found(capsys, database.dsn)
        told = [each for each in found if text.replace("{role}", name) in each["text"]]
        assert told, found
        assert told[0]["level"] == "warning"
        assert remedy.replace("{role}", name) in told[0]["remedy"]


@pytest.mark.parametrize("key", [b"k" * 16, b"k" * 64, b"k" * 65])
def test_the_key_of_the_sql_functions(database: Database, tmp_path: Path, capsys: Capture, key: bytes) -> None:
    file = tmp_path / "key"
    file.write_bytes(key + b"\n")
    with Emitter(database.dsn) as io:
        io.install_sql()
    (found,) = functions_found(capsys, database.dsn, "--signing-key-file", str(file))
    assert "drops what is not signed" in found["text"]
    with Emitter(database.dsn, signing_key=key) as io:
        io.install_sql()
    (found,) = functions_found(capsys, database.dsn, "--signing-key-file", str(file))
    assert found["level"] == "ok"
    file.write_bytes(b"another key" * 10)
    (found,) = functions_found(capsys, database.dsn, "--signing-key-file", str(file))
    assert "sign with another key" in found["text"]


def test_a_channel_that_is_too_long(database: Database, capsys: Capture) -> None:
    name = "n" * 60
    found = doctor(capsys, database.dsn, "-n", name, status=1)["channel"]
    assert name in found["text"]
    assert "63 bytes together" in found["remedy"]


def test_an_index_that_is_missing(database: Database, capsys: Capture) -> None:
    with EventStore(database.dsn), closing(database.connect()) as admin:
        admin.execute("DROP INDEX events_aggregate_version")
    found = doctor(capsys, database.dsn)["event index"]
    assert found["level"] == "warning"
    with closing(database.connect()) as admin:
        admin.execute(found["remedy"])
    assert "event index" not in doctor(capsys, database.dsn), "the remedy mends it"


def test_writers_in_go_without_a_guard(database: Database, capsys: Capture) -> None:
    with EventStore(database.dsn) as store:
        store.enable_go_notifications()
        assert "enable_guard" in doctor(capsys, database.dsn)["guard"]["remedy"]
        store.enable_guard()
    assert "guard" not in doctor(capsys, database.dsn)


class Told(Session):
    """A session with these facts about its server."""

    def __init__(self, version: int) -> None:
        self._facts = {"version": version, "version_text": "x", "encoding": "UTF8", "database": "d", "user": "u"}

    async def rows(self, sql: str) -> list[Row]:
        return [[json.dumps(self._facts)]] if "server_version" in sql else [["0.0", None]]


@pytest.mark.parametrize(
    ("version", "level", "remedy"),
    [
        (120_022, "fault", "Use PostgreSQL 13 or newer."),
        (130_000, "ok", ""),
        (140_020, "warning", "Update to 14.21 or newer."),
        (140_021, "ok", ""),
        (180_001, "warning", "Update to 18.2 or newer."),
        (180_002, "ok", ""),
        (190_000, "ok", ""),
    ],
)
async def test_versions(version: int, level: str, remedy: str) -> None:
    (found,) = [each async for each in checks.server(Told(version)) if each.about == "version"]
    assert (found.level.value, found.remedy) == (level, remedy)


@pytest.mark.parametrize(("loop", "level"), [("asyncio", "note"), ("uvloop", "ok")])
async def test_nodelay(loop: str, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module(loop)
    monkeypatch.setattr("socketio_postgres.cli.nodelay._loop", lambda: (loop, module.new_event_loop))
    (found,) = [each async for each in nodelay()]
    assert (found.about, found.level.value) == ("TCP_NODELAY", level)
    assert loop in found.text


def test_everything_that_it_looks_at_is_documented(database: Database, capsys: Capture) -> None:
    with EventStore(database.dsn) as store, closing(database.connect()) as admin:
        store.enable_go_notifications()
        admin.execute("DROP INDEX events_aggregate_version")
        found = doctor(capsys, database.dsn, "--listen-dsn", database.dsn)
    page = (Path(__file__).parents[2] / "docs" / "command-line.md").read_text()
    table = page.partition("\n## doctor\n")[2].partition("\n## ")[0]
    assert {"queue", "guard", "event index", "TCP_NODELAY", "connection to LISTEN"} <= found.keys()
    assert [about for about in found if f"`{about}`" not in table] == []
