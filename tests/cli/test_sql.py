"""`sql --store`: what it prints makes the schema that the store makes, and grants no more than is needed."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from socketio_postgres import DatabaseError, Event, EventStore
from socketio_postgres.cli import main
from tests.fixtures.database import Database

Capture = pytest.CaptureFixture[str]

SCHEMA = """SELECT 'column', table_name, column_name, data_type, is_nullable, column_default, collation_name
        FROM information_schema.columns WHERE table_schema = 'public'
    UNION ALL SELECT 'index', tablename, indexname, indexdef, '', '', '' FROM pg_indexes WHERE schemaname = 'public'
    UNION ALL SELECT 'trigger', tgrelid::regclass::text, tgname, pg_get_triggerdef(oid), tgenabled::text, '', ''
        FROM pg_trigger WHERE NOT tgisinternal
    UNION ALL SELECT 'function', proname, prosrc, '', '', '', '' FROM pg_proc
        WHERE pronamespace = 'public'::regnamespace
    ORDER BY 1, 2, 3"""

ROLE = "sql printed"


@pytest.fixture
def role(database: Database) -> Iterator[str]:
    """A role without any right, as a connection string."""
    with database.connect() as admin:
        admin.execute(f'CREATE ROLE "{ROLE}" LOGIN')
        admin.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    yield make_conninfo(database.dsn, user=ROLE)
    with database.connect() as admin:
        admin.execute(f'DROP OWNED BY "{ROLE}"')
        admin.execute(f'DROP ROLE "{ROLE}"')


def run(database: Database, capsys: Capture, *arguments: str) -> None:
    """Run what `sql` prints, as the owner of the database."""
    capsys.readouterr()
    assert main(["sql", *arguments]) == 0
    script = capsys.readouterr().out
    with database.connect() as admin:
        admin.execute(script.encode())


def schema(database: Database) -> list[tuple[object, ...]]:
    """Everything that is there."""
    with database.connect() as admin:
        return admin.execute(SCHEMA).fetchall()


EXTRAS = ("--with", "guard", "--with", "serial-order", "--with", "go-notifications")


def test_it_is_the_schema_that_a_store_makes(database: Database, capsys: Capture) -> None:
    run(database, capsys, "--store", *EXTRAS)
    printed = schema(database)
    run(database, capsys, "--store", *EXTRAS)
    assert schema(database) == printed, "it can be run again"
    with EventStore(database.dsn, create_table=False) as store:
        store.enable_guard()
        store.enable_serial_order()
        store.enable_go_notifications()
        with store.durable("billing"):
            pass
    assert schema(database) == printed, "the store finds everything applied"
    with database.connect() as admin:
        admin.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    with EventStore(database.dsn) as store, store.durable("billing"):
        store.enable_guard()
        store.enable_serial_order()
        store.enable_go_notifications()
    assert schema(database) == printed


def use(dsn: str) -> None:
    """Everything that a consumer does which also stores."""
    with EventStore(dsn, create_table=False) as store:
        store.store_batch(Event("T", f"a-{n}", n) for n in range(3))
        with store.durable("billing") as durable:
            for event in durable:
                if event.version == 2:
                    durable.park(event, None)
                    break
            assert durable.replay_parked(lambda _: None) == 1
        store.import_events([Event("T", "b")])
        assert len(list(store.read())) == 4
        store.rewind_durable("billing", 0)
        store.delete_durable("billing")


@pytest.mark.parametrize("extras", [(), EXTRAS], ids=["plain", "extras"])
def test_the_rights_suffice_and_are_no_more(
    database: Database, role: str, capsys: Capture, extras: tuple[str, ...]
) -> None:
    run(database, capsys, "--store", "--role", ROLE, *extras)
    use(role)
    with psycopg.connect(role, autocommit=True) as session:
        for statement in (
            "DELETE FROM events",
            "UPDATE events SET data = NULL",
            "TRUNCATE events",
            "DROP TABLE events",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                session.execute(statement)


def test_a_role_that_only_stores(database: Database, role: str, capsys: Capture) -> None:
    run(database, capsys, "--store", "--role", ROLE, "--access", "write")
    with EventStore(role, create_table=False) as store:
        assert store.store(Event("T", "a"), expected=0).version == 1
        with pytest.raises(DatabaseError, match="permission denied"):
            store.durable_subscriptions()


def test_a_role_that_only_reads(database: Database, role: str, capsys: Capture) -> None:
    run(database, capsys, "--store", "--role", ROLE, "--access", "read")
    with EventStore(database.dsn) as store:
        store.store(Event("T", "a"))
    with EventStore(role, create_table=False) as store:
        with store.durable("billing") as durable:
            assert next(iter(durable)).aggregate_id == "a"
        with store.subscribe(after=0) as live:
            assert next(iter(live)).aggregate_id == "a"
        with pytest.raises(DatabaseError, match="permission denied"):
            store.store(Event("T", "a"))


@pytest.mark.parametrize("access", ["all", "read", "write"])
def test_attachments(database: Database, role: str, capsys: Capture, access: str) -> None:
    run(database, capsys, "--role", ROLE, "--access", access)
    statements = {
        "SELECT count(*) FROM socket_io_attachments": access != "write",
        "INSERT INTO socket_io_attachments (payload) VALUES ('')": access != "read",
        "DELETE FROM socket_io_attachments": access == "all",
    }
    with psycopg.connect(role, autocommit=True) as session:
        for statement, may in statements.items():
            if may:
                session.execute(statement)
            else:
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    session.execute(statement)


def test_odd_names(database: Database, role: str, capsys: Capture) -> None:
    with database.connect() as admin:
        admin.execute(f'CREATE SCHEMA "Sh""op"; GRANT USAGE ON SCHEMA "Sh""op" TO "{ROLE}"')
    name = '"Sh""op"."my \'events\'"'
    run(database, capsys, "--store", "--role", ROLE, "--table-name", name)
    with EventStore(role, table_name=name, create_table=False) as store:
        store.store(Event("T", "a"))


def test_wrong_usage(capsys: Capture) -> None:
    assert main(["sql", "--with", "guard"]) == 2
    assert "--with needs --store" in capsys.readouterr().err
    for arguments in (["--store"], []):
        assert main(["sql", *arguments, "--table-name", "x" * 64]) == 1
        assert "table_name" in capsys.readouterr().err


def test_nothing_connects(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setenv("PGHOST", "/no/such/folder")
    for arguments in (["sql"], ["sql", "--store"]):
        assert main(arguments) == 0
    assert "CREATE TABLE" in capsys.readouterr().out
