"""The functions from programs that know nothing of this package: Node.js with `pg`, and psql."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import pytest

from socketio_postgres import Emitter
from socketio_postgres.demo.postgres_binaries import find_binaries
from tests.fixtures.bus import BusReader
from tests.fixtures.database import Database, new_database
from tests.fixtures.node import NodePeer


@pytest.mark.usefixtures("node_packages")
async def test_node_with_pg(installed: Database) -> None:
    emit = "SELECT socketio.emit($1, $2, $3, except_ => $4, namespace => $5)"
    calls = [
        # `pg` makes arrays of lists, and takes JSON as text.
        (emit, ["paid", json.dumps([{"id": 7, "é": None}]), ["a", 'b "c", {d}'], ["x"], "/"]),
        (emit, ["large", json.dumps(["é" * 9000]), None, [], "/"]),
        ("SELECT socketio.join($1, $2)", [["a"], ["b"]]),
    ]
    async with BusReader(installed) as reader, NodePeer() as peer:
        await peer.call("sql.transaction", database=installed.node, calls=calls, rollBack=True)
        await peer.call("sql.transaction", database=installed.node, calls=calls, rollBack=False)
        installed.value("SELECT socketio.emit('end')::text")
        packets = await reader.wait_for(3)
    assert packets == [["paid", {"id": 7, "é": None}], ["large", "é" * 9000], ["end"]]
    assert reader.messages[0].to == ["a", 'b "c", {d}']
    assert reader.messages[0].except_ == ["x"]
    assert (reader.messages[2].to, reader.messages[2].rooms) == (["a"], ["b"])
    assert reader.failures == []


async def test_psql(installed: Database) -> None:
    if shutil.which("psql") is None:
        pytest.skip("needs psql, which is not installed")
    commands = """
        BEGIN; SELECT socketio.emit('rolled back'); ROLLBACK;
        \\set room kitchen
        SELECT socketio.emit('chat', '["hi"]', rooms => ARRAY[:'room']);
        CREATE TABLE t (a int, b text);
        CREATE TRIGGER x AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION socketio.emit_row('row', 'a:{a}');
        \\copy t FROM STDIN
    """
    async with BusReader(installed) as reader:
        process = await asyncio.create_subprocess_exec(
            *("psql", "--no-psqlrc", "-v", "ON_ERROR_STOP=1", "-q", "-d", installed.dsn, "-f", "-"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        text = "\n".join(line.strip() for line in commands.splitlines())
        _, errors = await process.communicate(f"{text}1\tone\n2\ttwo\n\\.\n".encode())
        assert process.returncode == 0, errors.decode()
        packets = await reader.wait_for(3)
    assert packets[0] == ["chat", "hi"]
    assert [packet[1]["new"] for packet in packets[1:]] == [{"a": 1, "b": "one"}, {"a": 2, "b": "two"}]
    assert [message.to for message in reader.messages] == [["kitchen"], ["a:1"], ["a:2"]]


async def test_dumped_and_restored(postgres_dsn: str, installed: Database) -> None:
    """With triggers, settings, key and grants."""
    version = int(str(installed.value("SHOW server_version_num"))) // 10000
    programs = ("pg_dump", "psql")
    found = [each.bin_dir for each in find_binaries(version)]
    folders = [bin_dir for bin_dir in found if all((bin_dir / program).exists() for program in programs)]
    if not folders:
        pytest.skip(f"needs pg_dump and psql of PostgreSQL {version}, which are not installed")
    bin_dir = folders[0]
    role, key = installed.name + "_role", "correct horse battery staple"
    with Emitter(installed.dsn, signing_key=key) as io:
        io.install_sql()
    with installed.connect() as psql, new_database(postgres_dsn) as other:
        psql.execute(f"CREATE ROLE {role}; GRANT EXECUTE ON FUNCTION socketio.emit TO {role}")
        try:
            psql.execute("CREATE TABLE t (a int, b text)")
            psql.execute(
                "CREATE TRIGGER x AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION socketio.emit_row('row', 'a:{a}')"
            )
            psql.execute("INSERT INTO t VALUES (1, 'old')")
            async with BusReader(other, signing_key=key) as reader:
                dump = await _run(bin_dir / "pg_dump", "-d", installed.dsn)
                await _run(bin_dir / "psql", "--no-psqlrc", "-qv", "ON_ERROR_STOP=1", "-1", "-d", other.dsn, given=dump)
                other.value("WITH i AS (INSERT INTO t VALUES (2, 'new') RETURNING a) SELECT a FROM i")
                assert (await reader.wait_for(1))[0][1]["new"] == {"a": 2, "b": "new"}
            with Emitter(other.dsn, signing_key=key) as io:
                io.install_sql()
            assert other.value(
                "SELECT has_function_privilege(%s, oid, 'EXECUTE') FROM pg_proc WHERE proname = 'emit'", role
            )
        finally:
            psql.execute(f"DROP OWNED BY {role}")
            with other.connect() as there:
                there.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


async def _run(program: Path, *arguments: str, given: bytes | None = None) -> bytes:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(program, *arguments, stdin=pipe, stdout=pipe, stderr=pipe)
    printed, errors = await process.communicate(given)
    assert process.returncode == 0, errors.decode()
    return printed
