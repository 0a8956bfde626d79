"""The functions from programs that know nothing of this package: Node.js with `pg`, and psql."""

from __future__ import annotations

import asyncio
import json
import shutil

import pytest

from tests.fixtures.bus import BusReader
from tests.fixtures.database import Database
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
