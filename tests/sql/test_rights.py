"""Who may do what, and how the functions sign."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import psycopg
import pytest
from psycopg import sql

from socketio_postgres import DatabaseError, Emitter
from socketio_postgres._cluster.sql_script import PUBLIC_FUNCTIONS
from socketio_postgres.cli import main
from tests.fixtures.bus import BusReader
from tests.fixtures.database import Database
from tests.fixtures.spy import spying
from tests.fixtures.waiting import eventually

KEY = "correct horse battery staple"
BIG = "jsonb_build_array(repeat('é', 5000))"


@pytest.fixture
def role(database: Database) -> Iterator[str]:
    """A role that may do nothing; roles belong to the whole server."""
    name = database.name + "_role"
    with database.connect() as connection:
        connection.execute(sql.SQL("CREATE ROLE {}").format(sql.Identifier(name)))
        yield name
        connection.execute(sql.SQL("DROP OWNED BY {} CASCADE").format(sql.Identifier(name)))
        connection.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))


def become(connection: psycopg.Connection, role: str) -> None:
    connection.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(role)))


def test_nothing_is_for_everybody(installed: Database, psql: psycopg.Connection, role: str) -> None:
    rows = psql.execute(
        "SELECT proname FROM pg_proc, LATERAL aclexplode(coalesce(proacl, acldefault('f', proowner))) AS a"
        " WHERE pronamespace = 'socketio'::regnamespace AND a.grantee <> proowner"
    ).fetchall()
    assert rows == []
    become(psql, role)
    for call in ("SELECT socketio.emit('e')", "SELECT * FROM socketio.settings"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            psql.execute(call)


async def test_a_role_needs_only_the_grants_that_are_printed(
    installed: Database, psql: psycopg.Connection, role: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sql", "--functions", "--role", role]) == 0
    grants = re.findall('(?m)^GRANT (?:USAGE ON SCHEMA|EXECUTE ON FUNCTION) "socketio".*$', capsys.readouterr().out)
    assert len(grants) == 1 + len(PUBLIC_FUNCTIONS)
    for grant in grants:
        psql.execute(grant)  # not those on the attachment table
    psql.execute(sql.SQL("GRANT CREATE ON SCHEMA public TO {}").format(sql.Identifier(role)))
    async with BusReader(installed) as reader:
        become(psql, role)
        psql.execute(f"SELECT socketio.emit('small'), socketio.emit('large', {BIG})")
        psql.execute("SELECT socketio.server_side_emit('e'), socketio.disconnect('{a}'), socketio.join('{a}', '{b}')")
        psql.execute("CREATE TABLE t (a int)")
        psql.execute("CREATE TRIGGER x AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION socketio.emit_row('row', '*')")
        psql.execute("INSERT INTO t VALUES (1)")
        assert [packet[0] for packet in await reader.wait_for(3)] == ["small", "large", "row"]
        for call in (
            "SELECT socketio.set_signing_key(NULL)",
            "SELECT socketio._publish(3, '/', NULL, NULL, '[1]')",
            "SELECT * FROM socketio.settings",
            "UPDATE socketio.settings SET channel = 'x'",
            "SELECT * FROM socket_io_attachments",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                psql.execute(call)


async def test_those_who_write_need_no_right_of_the_trigger(
    installed: Database, psql: psycopg.Connection, role: str
) -> None:
    psql.execute("CREATE TABLE t (a int)")
    psql.execute("CREATE TRIGGER x AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION socketio.emit_row('row', '*')")
    psql.execute(sql.SQL("GRANT INSERT ON t TO {}").format(sql.Identifier(role)))
    async with BusReader(installed) as reader:
        become(psql, role)
        psql.execute("INSERT INTO t VALUES (1)")
        assert (await reader.wait_for(1))[0][1]["new"] == {"a": 1}


def test_default_privileges_do_not_open_the_key(database: Database, role: str) -> None:
    with database.connect() as connection:
        grant = "ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO {}, PUBLIC"
        connection.execute(sql.SQL(grant).format(sql.Identifier(role)))
        with Emitter(database.dsn, signing_key=KEY) as io:
            io.install_sql()
        connection.execute(sql.SQL("GRANT USAGE ON SCHEMA socketio TO {}").format(sql.Identifier(role)))
        become(connection, role)
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("SELECT inner_key FROM socketio.settings")


@pytest.mark.parametrize("wrapped", ["mine", "mine[]", "holder", "fenced"])
def test_a_cast_of_somebody_else_does_not_run_with_the_owners_rights(
    installed: Database, psql: psycopg.Connection, role: str, wrapped: str
) -> None:
    psql.execute(sql.SQL("GRANT CREATE, USAGE ON SCHEMA public TO {}").format(sql.Identifier(role)))
    become(psql, role)
    psql.execute("CREATE TYPE mine AS ENUM ('a')")
    psql.execute("CREATE TYPE holder AS (m mine)")
    psql.execute("CREATE DOMAIN fenced AS mine[]")
    psql.execute(
        "CREATE FUNCTION steal(mine) RETURNS json LANGUAGE plpgsql AS"
        " $$ BEGIN RETURN to_json((SELECT channel FROM socketio.settings)); END $$"
    )
    psql.execute("CREATE CAST (mine AS json) WITH FUNCTION steal(mine)")
    psql.execute("RESET ROLE")
    psql.execute(f"CREATE TABLE t (a int, m {wrapped})")
    psql.execute("CREATE TRIGGER x AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION socketio.emit_row('row', '*')")
    psql.execute("CREATE TABLE other (a int)")
    psql.execute("CREATE TRIGGER x AFTER INSERT ON other FOR EACH ROW EXECUTE FUNCTION socketio.emit_row('row', '*')")
    psql.execute("INSERT INTO other VALUES (1)")
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="steal"):
        psql.execute("INSERT INTO t VALUES (1)")
    psql.execute("ALTER FUNCTION steal(mine) OWNER TO CURRENT_USER")
    psql.execute("INSERT INTO t VALUES (1)")


@pytest.mark.parametrize("key", [KEY, "k" * 64, "long " * 20, b"\x00\xff'\\" * 10])
async def test_a_signed_cluster_hears_the_functions(database: Database, key: str | bytes) -> None:
    with Emitter(database.dsn, signing_key=key) as io:
        io.install_sql()
    async with BusReader(database, ("/", "/é"), signing_key=key) as reader, spying(database, ["socket.io#/"]) as spy:
        with database.connect() as psql:
            psql.execute(f"SELECT socketio.emit('é'), socketio.emit('large', {BIG}), socketio.server_side_emit('e')")
            psql.execute("SELECT socketio.emit('other', namespace => 'é')")
        await reader.wait_for(3)
        inline, header, _ = await spy.wait_for(lambda _: True, 3)
    assert sorted(packet[0] for packet in reader.packets) == ["large", "other", "é"]
    assert reader.failures == []
    assert list(inline.header)[-2:] == ["k", "h"]
    assert list(header.header)[-4:] == ["k", "b", "h", "attachmentId"]


async def test_without_the_key_nobody_listens(installed: Database, psql: psycopg.Connection) -> None:
    async with BusReader(installed, signing_key=KEY) as reader:
        psql.execute(f"SELECT socketio.emit('e'), socketio.emit('e', {BIG})")
        await eventually(lambda: len(reader.failures) == 2, "both are reported")
        psql.execute("SELECT socketio.set_signing_key(convert_to(%s, 'UTF8'))", [KEY])
        psql.execute("SELECT socketio.emit('signed')")
        assert await reader.wait_for(1) == [["signed"]]
        psql.execute("SELECT socketio.set_signing_key(NULL)")
        psql.execute("SELECT socketio.emit('e')")
        await eventually(lambda: len(reader.failures) == 3, "not signed any more")


def test_a_short_key_is_refused(psql: psycopg.Connection) -> None:
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="15 bytes"):
        psql.execute("SELECT socketio.set_signing_key('123456789012345')")


async def test_what_was_signed_cannot_be_changed(database: Database) -> None:
    with Emitter(database.dsn, signing_key=KEY) as io:
        io.install_sql()
    async with BusReader(database, signing_key=KEY) as reader, spying(database) as spy:
        with database.connect() as psql:
            psql.execute(f"SELECT socketio.emit('small'), socketio.emit('large', {BIG})")
            await reader.wait_for(2)
            inline, header = (frame.payload for frame in await spy.wait_for(lambda _: True, 2))
            other = psql.execute("SELECT id FROM socket_io_attachments").fetchone()
            psql.execute("UPDATE socket_io_attachments SET payload = payload || '\\x00'")
            assert other is not None
            for text in (inline.replace("small", "smell"), header):
                psql.execute("SELECT pg_notify('socket.io#/', %s)", [text])
        await eventually(lambda: len(reader.failures) == 2, "both are refused")
    assert json.loads(header)["attachmentId"] == str(other[0])


@pytest.mark.parametrize("trap", ["table", "view", "function", "schema"])
def test_what_somebody_else_made_beforehand_is_not_run(database: Database, role: str, trap: str) -> None:
    """Who may create schemas must not get the rights of whoever installs."""
    with database.connect() as psql:
        psql.execute(
            sql.SQL("GRANT CREATE ON DATABASE {} TO {}").format(sql.Identifier(database.name), sql.Identifier(role))
        )
        become(psql, role)
        psql.execute("CREATE SCHEMA socketio")
        psql.execute(
            "CREATE FUNCTION socketio.evil() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN RAISE EXCEPTION 'this was run by %', current_user; END $$"
        )
        psql.execute(
            "CREATE FUNCTION socketio.evil_too() RETURNS int LANGUAGE plpgsql AS"
            " $$ BEGIN RAISE EXCEPTION 'this was run by %', current_user; END $$"
        )
        if trap == "table":
            psql.execute("CREATE TABLE socketio.settings (version int)")
            psql.execute(
                "CREATE TRIGGER x BEFORE INSERT ON socketio.settings FOR EACH ROW EXECUTE FUNCTION socketio.evil()"
            )
        elif trap == "view":
            psql.execute("CREATE VIEW socketio.settings AS SELECT socketio.evil_too() AS version")
        elif trap == "function":
            psql.execute(
                "CREATE FUNCTION socketio.set_signing_key(bytea) RETURNS void LANGUAGE plpgsql AS"
                " $$ BEGIN RAISE EXCEPTION 'this was run by %', current_user; END $$"
            )
        psql.execute("RESET ROLE")
        if trap != "schema":  # what is in it still belongs to the role
            psql.execute("ALTER SCHEMA socketio OWNER TO CURRENT_USER")
        with Emitter(database.dsn) as io:
            with pytest.raises(DatabaseError, match=f"belongs to {role}") as caught:
                io.install_sql()
            assert caught.value.sqlstate == "42501"
            psql.execute("DROP SCHEMA socketio CASCADE")
            io.install_sql()


def test_a_role_installs_for_itself_in_a_schema_that_it_was_given(database: Database, role: str) -> None:
    with database.connect() as psql:
        psql.execute(sql.SQL("ALTER ROLE {} LOGIN").format(sql.Identifier(role)))
        psql.execute("CREATE SCHEMA socketio")
        psql.execute(sql.SQL("GRANT CREATE, USAGE ON SCHEMA socketio, public TO {}").format(sql.Identifier(role)))
        psql.execute(sql.SQL("REVOKE ALL ON SCHEMA public FROM PUBLIC"))
    with Emitter(psycopg.conninfo.make_conninfo(database.dsn, user=role)) as io:
        io.install_sql()
        io.install_sql()
    with Emitter(database.dsn) as io, pytest.raises(DatabaseError, match=f"belongs to {role}") as caught:
        io.install_sql()
    assert f"SET ROLE {role}" in (caught.value.hint or "")


def test_others_in_the_schema_keep_what_they_have(database: Database, role: str) -> None:
    """A schema that holds more than these functions, such as `public`."""
    with database.connect() as psql, Emitter(database.dsn) as io:
        psql.execute("CREATE SCHEMA app; CREATE FUNCTION app._mine() RETURNS int LANGUAGE sql AS 'SELECT 1'")
        psql.execute("CREATE PROCEDURE app._too() LANGUAGE sql AS 'SELECT 1'")
        psql.execute(sql.SQL("GRANT USAGE ON SCHEMA app TO {}").format(sql.Identifier(role)))
        io.install_sql("app")
        become(psql, role)
        assert psql.execute("SELECT app._mine()").fetchone() == (1,)
        psql.execute("CALL app._too()")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            psql.execute("SELECT app.emit('e')")
