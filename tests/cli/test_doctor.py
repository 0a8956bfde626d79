"""`socketio-postgres doctor` names the cause, and how to mend it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing, contextmanager

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from socketio_postgres import EventStore
from socketio_postgres.cli import main
from tests.fixtures.database import Database, new_database
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
        found = doctor(capsys, make_conninfo(server.database.dsn, user="chat", password="hunter2"), status=1)
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
        found = doctor(capsys, standby.database.dsn, status=1)
        assert "is a hot standby" in found["connection"]["text"]
        assert "lead to the primary" in found["connection"]["remedy"]
        found = doctor(capsys, primary.database.dsn, "--listen-dsn", standby.database.dsn, status=1)
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
        found = doctor(capsys, server.database.dsn, status=1)["queue"]
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
