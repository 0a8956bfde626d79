"""Installing, upgrading and removing the functions."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from socketio_postgres import (
    AsyncEmitter,
    AsyncPostgresManager,
    DatabaseError,
    Emitter,
    OptionsError,
    PostgresManager,
)
from socketio_postgres._cluster import sql_script
from socketio_postgres.cli import main
from tests.fixtures.bus import BusReader
from tests.fixtures.database import Database

FOLDER = Path(sql_script.__file__).parent / "sql"
OLD_VERSIONS = Path(__file__).parent / "versions"
DIGESTS = {1: "8ccfddac6e99bcaa", 2: "58f485e3487488fe"}
"""Of `functions.sql` in each version."""

CATALOG = """
    SELECT p.proname, pg_get_function_identity_arguments(p.oid), pg_get_functiondef(p.oid), p.proacl::text
    FROM pg_proc AS p WHERE pronamespace = 'socketio'::regnamespace
    UNION ALL
    SELECT a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull::text, c.relacl::text
    FROM pg_attribute AS a JOIN pg_class AS c ON c.oid = a.attrelid
    WHERE c.oid = 'socketio.settings'::regclass AND attnum > 0 AND NOT attisdropped
    ORDER BY 1, 2
"""


def catalog(database: Database) -> list[Any]:
    """Everything that is installed."""
    with database.connect() as connection:
        return connection.execute(CATALOG).fetchall()


def settings(database: Database) -> dict[str, Any]:
    """The row of settings."""
    with database.connect() as connection:
        cursor = connection.execute("SELECT * FROM socketio.settings")
        assert cursor.description is not None
        [row] = cursor.fetchall()
        return {column.name: value for column, value in zip(cursor.description, row, strict=True)}


def test_a_change_of_the_script_is_a_new_version() -> None:
    """Otherwise an older package could replace the newer functions."""
    digest = hashlib.sha256((FOLDER / "functions.sql").read_bytes()).hexdigest()[:16]
    assert DIGESTS[sql_script.VERSION] == digest
    assert max(DIGESTS) == sql_script.VERSION


BLOCKING: list[Callable[[str], Any]] = [Emitter, PostgresManager]
ASYNC: list[Callable[[str], Any]] = [AsyncEmitter, AsyncPostgresManager]


@pytest.mark.parametrize("kind", BLOCKING)
def test_installed_and_removed_by_threads(database: Database, kind: Callable[[str], Any]) -> None:
    with kind(database.dsn) as one:
        one.uninstall_sql()  # nothing is there
        one.install_sql()
        one.install_sql()
        database.value("SELECT socketio.emit('e')::text")
        one.install_sql("other")
        database.value("SELECT other.emit('e')::text")
        one.uninstall_sql()
    assert database.value("SELECT to_regnamespace('socketio')::text") is None
    assert database.value("SELECT to_regnamespace('other')::text") == "other"


@pytest.mark.parametrize("kind", ASYNC)
async def test_installed_and_removed_by_tasks(database: Database, kind: Callable[[str], Any]) -> None:
    async with kind(database.dsn) as one:
        await asyncio.gather(*(one.install_sql() for _ in range(5)))
        database.value("SELECT socketio.emit('e')::text")
        await one.uninstall_sql()
        await one.uninstall_sql()
    assert database.value("SELECT to_regnamespace('socketio')::text") is None


def test_many_processes_install_at_once(database: Database) -> None:
    emitters = [Emitter(database.dsn) for _ in range(4)]

    async def install() -> None:
        await asyncio.gather(*(asyncio.to_thread(emitter.install_sql) for emitter in emitters))

    asyncio.run(install())
    for emitter in emitters:
        emitter.close()
    database.value("SELECT socketio.emit('e')::text")


def test_the_settings_are_those_of_the_object(database: Database) -> None:
    options: dict[str, Any] = {
        "channel": "it's", "table_name": '"My Table"', "payload_threshold": 500, "max_payload": 10_000,
        "signing_key": "k" * 16,
    }  # fmt: skip
    with Emitter(database.dsn, **options) as io:
        io.install_sql()
    found = settings(database)
    assert (found["channel"], found["payload_threshold"], found["max_bytes"]) == ("it's", 500, 10_000)
    assert found["attachments"] == 'public."My Table"'
    assert found["inner_key"] == bytes(ord("k") ^ 0x36 for _ in range(16)) + b"\x36" * 48
    with database.connect() as connection:
        connection.execute("UPDATE socketio.settings SET max_bytes = 20000, longest = '5 min'")
    with Emitter(database.dsn, table_name='"My Table"') as io:
        io.install_sql()
    later = settings(database)
    assert (later["channel"], later["inner_key"], later["outer_key"]) == ("socket.io", None, None)
    assert (later["max_bytes"], later["longest"].total_seconds()) == (20000, 300), "what an administrator has set stays"


async def test_another_channel_and_table(database: Database) -> None:
    options: dict[str, Any] = {"channel": "it's", "table_name": '"My Table"'}
    async with AsyncEmitter(database.dsn, **options) as io, BusReader(database, **options) as reader:
        await io.install_sql()
        database.value("SELECT socketio.emit('e', jsonb_build_array(repeat('x', 9000)))::text")
        assert await reader.wait_for(1) == [["e", "x" * 9000]]


@pytest.mark.parametrize("schema", ["", "a b", 'a"b', "pg_own", "x" * 64, "é", 7, None])
def test_schemas_that_are_refused(database: Database, schema: Any) -> None:
    with Emitter(database.dsn) as io:
        for method in (io.install_sql, io.uninstall_sql):
            with pytest.raises(OptionsError) as caught:
                method(schema)
            assert caught.value.option == "schema"


@pytest.mark.parametrize("schema", ["select", "Mixed", "_x9"])
def test_schemas_are_taken_literally(database: Database, schema: str) -> None:
    with Emitter(database.dsn) as io:
        io.install_sql(schema)
        database.value(f"SELECT \"{schema}\".emit('e')::text")
        io.uninstall_sql(schema)


def test_a_newer_version_stays(installed: Database) -> None:
    with installed.connect() as connection:
        connection.execute("UPDATE socketio.settings SET version = 1000, channel = 'newer'")
    with Emitter(installed.dsn) as io, pytest.raises(DatabaseError, match="has version 1000") as caught:
        io.install_sql()
    assert caught.value.sqlstate == "55000"
    assert "newest socketio-postgres" in (caught.value.hint or "")
    assert settings(installed)["channel"] == "newer"


def test_what_triggers_use_is_not_removed(installed: Database, psql: psycopg.Connection) -> None:
    before = catalog(installed)
    psql.execute("CREATE TABLE t (a int)")
    psql.execute("CREATE TRIGGER x AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION socketio.emit_row('e', '*')")
    with Emitter(installed.dsn) as io:
        with pytest.raises(DatabaseError) as caught:
            io.uninstall_sql()
        assert caught.value.sqlstate == "2BP01"
        assert "trigger x on table t" in (caught.value.detail or "")
        assert catalog(installed) == before
        psql.execute("DROP TABLE t")
        psql.execute("CREATE TABLE socketio.mine (a int)")
        with pytest.raises(DatabaseError, match=r"mine|other objects"):
            io.uninstall_sql()
        assert catalog(installed) == before


def test_without_an_attachment_table(database: Database) -> None:
    with Emitter(database.dsn, create_table=False) as io, pytest.raises(DatabaseError) as caught:
        io.install_sql()
    assert caught.value.sqlstate == "42P01"
    assert database.value("SELECT to_regnamespace('socketio')::text") is None


@pytest.mark.parametrize("version", [None, 0], ids=["the same version", "another version"])
def test_a_transaction_that_has_emitted_is_not_waited_for(
    installed: Database, psql: psycopg.Connection, version: int | None
) -> None:
    """Otherwise every other emit would wait behind the one who waits."""
    with psql.transaction():
        psql.execute("SELECT socketio.emit('e')")
        if version is not None:
            with installed.connect() as other:
                other.execute("UPDATE socketio.settings SET version = %s", [version])
        with Emitter(installed.dsn) as io:
            io.install_sql()
        installed.value("SELECT socketio.emit('e')::text")
    assert settings(installed)["version"] == sql_script.VERSION


def test_functions_of_this_version_stay(installed: Database) -> None:
    """So a program may install at each start without any session having to compile them again."""
    query = "SELECT string_agg(oid::text || xmin::text, ' ' ORDER BY oid) FROM pg_proc"
    before = installed.value(query)
    with Emitter(installed.dsn, channel="other") as io:
        io.install_sql()
    assert installed.value(query) == before
    assert settings(installed)["channel"] == "other"


def test_an_upgrade_while_others_emit(installed: Database) -> None:
    async def emit() -> None:
        def run() -> None:
            with installed.connect() as connection:
                for _ in range(300):
                    connection.execute(
                        "SELECT socketio.emit('e'), socketio.emit('e', jsonb_build_array(repeat('x', 9000)))"
                    )

        await asyncio.to_thread(run)

    async def upgrade() -> None:
        async with AsyncEmitter(installed.dsn) as io:
            for _ in range(20):
                installed.value("WITH w AS (UPDATE socketio.settings SET version = 0 RETURNING 1) SELECT * FROM w")
                await io.install_sql()

    async def both() -> None:
        await asyncio.gather(emit(), emit(), upgrade())

    asyncio.run(both())


async def test_the_printed_migration_is_the_same(database: Database, capsys: pytest.CaptureFixture[str]) -> None:
    with Emitter(database.dsn) as io:
        io.install_sql()
    found = catalog(database)
    removed = ["--functions", "--remove"]
    for arguments in (["--functions"], removed, removed, [], ["--functions"], ["--functions"]):
        assert main(["sql", *arguments]) == 0
        with database.connect() as connection, connection.transaction():
            connection.execute(capsys.readouterr().out)
    assert catalog(database) == found
    async with BusReader(database) as reader:
        database.value("SELECT socketio.emit('e', jsonb_build_array(repeat('x', 9000)))::text")
        await reader.wait_for(1)


def test_printing_keeps_the_key(database: Database, capsys: pytest.CaptureFixture[str]) -> None:
    with Emitter(database.dsn, signing_key="k" * 16) as io:
        io.install_sql()
    assert main(["sql", "--functions", "--channel", "other"]) == 0
    with database.connect() as connection, connection.transaction():
        connection.execute(capsys.readouterr().out)
    assert settings(database)["channel"] == "other"
    assert settings(database)["inner_key"] is not None


def test_the_command_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, status in (
        (["--schema", "a b"], 1),
        (["--schema", "a b", "--remove"], 1),
        (["--channel", "x" * 70], 1),
        (["--store"], 2),
    ):
        assert main(["sql", "--functions", *arguments]) == status
        assert capsys.readouterr().out == ""
    assert main(["sql", "--remove"]) == 2


VERSIONS = {int(path.stem): path.read_text() for path in OLD_VERSIONS.glob("*.sql")}
"""As they were installed. Version 0 was never released: it lacks functions and a column, and has others for itself."""


def test_there_is_every_older_version() -> None:
    assert VERSIONS.keys() == set(range(sql_script.VERSION))


@pytest.mark.parametrize("version", VERSIONS)
async def test_upgrade(database: Database, version: int) -> None:
    """A version as it was installed becomes this one, and keeps the grants."""
    role = database.name + "_user"
    with Emitter(database.dsn) as io, database.connect() as psql:
        io.install_sql()
        fresh = catalog(database)
        io.uninstall_sql()
        psql.execute(VERSIONS[version])
        psql.execute(f"CREATE ROLE {role}")
        try:
            psql.execute("GRANT USAGE ON SCHEMA socketio TO " + role)
            psql.execute("GRANT EXECUTE ON FUNCTION socketio.emit TO " + role)
            io.install_sql()
            async with BusReader(database) as reader:
                psql.execute("SET ROLE " + role)
                psql.execute("SELECT socketio.emit('after')")
                psql.execute("RESET ROLE")
                assert await reader.wait_for(1) == [["after"]]
            psql.execute("REVOKE EXECUTE ON FUNCTION socketio.emit FROM " + role)
        finally:
            psql.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")
    assert catalog(database) == fresh
    assert settings(database)["version"] == sql_script.VERSION


@pytest.mark.parametrize("version", VERSIONS)
def test_older_versions_are_removed(database: Database, version: int) -> None:
    with Emitter(database.dsn) as io, database.connect() as psql:
        io.install_sql()
        io.uninstall_sql()
        psql.execute(VERSIONS[version])
        io.uninstall_sql()
    assert database.value("SELECT to_regnamespace('socketio')::text") is None


@pytest.mark.parametrize("how", ["install_sql", "printed"])
async def test_how_the_database_reads_backslashes_does_not_matter(
    database: Database, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    channel, key = "it's \\ one", b"\\'\x00\xff" * 5
    options: dict[str, Any] = {"channel": channel, "signing_key": key}
    with database.connect() as psql:
        psql.execute(f'ALTER DATABASE "{database.name}" SET standard_conforming_strings = off')
        psql.execute(f'ALTER DATABASE "{database.name}" SET escape_string_warning = off')
    async with AsyncEmitter(database.dsn, **options) as io, BusReader(database, **options) as reader:
        await io.install_sql()
        if how == "printed":
            before = catalog(database)
            await io.uninstall_sql()
            assert main(["sql", "--functions", "--channel", channel]) == 0
            with database.connect() as psql, psql.transaction():
                psql.execute(capsys.readouterr().out)
                psql.execute("SELECT socketio.set_signing_key(decode(%s, 'hex'))", [key.hex()])
            assert catalog(database) == before
        text = 'x, y: "\\' * 1000
        with database.connect() as psql:
            psql.execute("SELECT socketio.emit('e', %s)", [Jsonb([text[:90], "é"])])
            psql.execute("SELECT socketio.emit('e', %s)", [Jsonb([text, 200])])
            psql.execute("CREATE TABLE t (a text, b text)")
            psql.execute(
                "CREATE TRIGGER x AFTER INSERT ON t FOR EACH ROW"
                " EXECUTE FUNCTION socketio.emit_row('row', 'a , {a}', '/', 'a , b')"
            )
            psql.execute("INSERT INTO t VALUES ('s', 't')")
        assert (await reader.wait_for(3))[:2] == [["e", text[:90], "é"], ["e", text, 200]]
        assert (reader.messages[2].to, reader.messages[2].packet()[1]["new"]) == (["a", "s"], {"a": "s", "b": "t"})
        assert reader.failures == []


def test_every_function_is_listed() -> None:
    made = set(
        re.findall(r'CREATE OR REPLACE FUNCTION \{schema\}\.("join"|\w+)', (FOLDER / "functions.sql").read_text())
    )
    public = {name for name in made if not name.startswith("_")}
    assert public == {*sql_script.PUBLIC_FUNCTIONS, "set_signing_key"}
