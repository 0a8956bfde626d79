"""`top`: servers of three languages, rates, rooms, losses; pure counting first, then a real cluster."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from typing import Any

import pytest

from socketio_postgres import AsyncEmitter, Emitter, _core
from socketio_postgres.cli import main
from socketio_postgres.cli.traffic import SENDER_LIMIT, SILENCE, Session, Snapshot, Traffic
from tests.fixtures.bus import serving
from tests.fixtures.clients import PythonClient
from tests.fixtures.database import Database
from tests.fixtures.node import NodePeer, NodeServer
from tests.fixtures.spy import spying
from tests.fixtures.waiting import TIMEOUT_S, eventually


def message(uid: str, kind: int = 2, end: str = "}", **fields: object) -> str:
    """A message of Node.js, or with its end one of this package."""
    return json.dumps({"type": kind, "uid": uid, "nsp": "/", **fields})[:-1] + end


def broadcast(*rooms: str) -> dict[str, Any]:
    """Its data, which look like a number of this package's."""
    return {"data": {"opts": {"rooms": rooms}, "packet": {"type": 2, "data": ["hello", {"n": 5}]}}}


def view(traffic: Traffic, *sessions: Session, now: float = 1.0, attachment_bytes: int = 0) -> Snapshot:
    """The end of an interval of two seconds."""
    return traffic.snapshot(2.0, now, sessions, attachment_bytes)


def test_languages_and_rates() -> None:
    traffic = Traffic(["/"])
    heard = [message("node1"), message("py1", end=',"n":1}'), '{"uid":"go1","nsp":"/","type":1}']
    heard.append(message("emitter", 3, ',"p":"abcdefgh","n":7,"h":"x"}', **broadcast("red")))
    heard.append(message("emitter", 3, **broadcast("red", "blue")))
    for payload in heard:
        traffic.take(payload, "/", 0.5)
    seen = view(traffic)
    assert {each["uid"]: each["language"] for each in seen.servers} == {"node1": "node", "py1": "python", "go1": "go"}
    assert [each["uid"] for each in seen.emitters] == ["emitter/abcdefgh", "emitter"]
    assert seen.messages_per_second == 2.5
    assert seen.bytes_per_second == sum(map(len, heard)) / 2
    assert seen.namespaces[0]["servers"] == 3
    assert [(each["room"], each["messages_per_second"]) for each in seen.rooms] == [("red", 1.0), ("blue", 0.5)]
    after = view(traffic)
    assert (after.messages_per_second, after.rooms, len(after.servers)) == (0.0, [], 3), "rates begin anew"


def test_holes_in_the_numbers_of_a_sender() -> None:
    traffic = Traffic(["/", "/b"])
    for number, nsp in ((5, "/"), (6, "/"), (1, "/b"), (9, "/"), (10, "/")):
        traffic.take(message("py1", end=f',"n":{number}}}'), nsp, 0.0)
    traffic.lost(None)
    traffic.take("no message", "/", 0.0)
    seen = view(traffic)
    assert (seen.gaps, seen.missing, seen.undecodable) == (2, 2, 1)


def test_attachments() -> None:
    traffic = Traffic(["/"])
    header = '{"type":3,"uid":"a","nsp":"/","source":"_sio_adapter","rooms":["red"],"n":2,"attachmentId":"42"}'
    traffic.take(header, "/", 0.0)
    assert traffic.attachments == [42]
    seen = view(traffic, attachment_bytes=1000)
    assert (seen.attachments_per_second, seen.bytes_per_second) == (0.5, (len(header) + 1000) / 2)
    assert seen.rooms[0]["room"] == "red"
    assert traffic.attachments == []


def test_who_is_gone_is_forgotten() -> None:
    traffic = Traffic(["/"])
    held = Session(_core.member_lock("py1"), 7, "10.0.0.1")
    for payload in (message("py1", end=',"n":1}'), message("node1"), message("node2")):
        traffic.take(payload, "/", 0.0)
    traffic.take(message("node2", 13), "/", 0.0)
    assert [each["uid"] for each in view(traffic, held).servers] == ["py1", "node1"], "node2 has said goodbye"
    later = view(traffic, held, now=SILENCE + 1).servers
    assert [(each["uid"], each["pid"], each["address"]) for each in later] == [("py1", 7, "10.0.0.1")]
    assert view(traffic, now=SILENCE + 2).servers == []


def test_silent_servers_are_known_by_their_locks() -> None:
    (server,) = view(Traffic(["/"]), Session(5, 7, None)).servers
    assert (server["uid"], server["language"], server["silent_seconds"], server["pid"]) == (None, "python", None, 7)


def test_senders_are_bounded() -> None:
    traffic = Traffic(["/"])
    for number in range(SENDER_LIMIT + 1):
        traffic.take(message(f"node{number}"), "/", 0.0)
    seen = view(traffic)
    assert len(seen.servers) == SENDER_LIMIT
    assert seen.messages_per_second == (SENDER_LIMIT + 1) / 2


async def top(database: Database, *arguments: str) -> asyncio.subprocess.Process:
    """`top` in a process of its own."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "socketio_postgres", "top", "--dsn", database.dsn, *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


async def views(process: asyncio.subprocess.Process) -> dict[str, Any]:
    """The next line."""
    assert process.stdout is not None
    fields: dict[str, Any] = json.loads(await asyncio.wait_for(process.stdout.readline(), TIMEOUT_S))
    return fields


def test_messages_of_this_package_as_they_are(database: Database) -> None:
    """Emitters are told apart by their own ids, and from what transactions send."""
    traffic = Traffic(["/"])
    with (
        database.connect() as listening,
        Emitter(database.dsn) as one,
        Emitter(database.dsn, signing_key="k" * 16) as two,
    ):
        one.install_sql()
        listening.execute('LISTEN "socket.io#/"')
        for emitter in (one, two):
            emitter.emit("small")
            emitter.emit("large", "x" * 9000)
            emitter.flush()
        listening.execute("SELECT socketio.emit('small'), socketio.emit('large', jsonb_build_array(repeat('x', 9000)))")
        for received in listening.notifies(timeout=TIMEOUT_S, stop_after=6):
            traffic.take(received.payload, "/", 0.0)
    seen = view(traffic)
    assert sorted(each["language"] for each in seen.emitters) == ["python", "python", "sql"]
    assert {each["messages_per_second"] for each in seen.emitters} == {1.0}
    assert [each["uid"] for each in seen.emitters if each["language"] == "sql"] == ["emitter/sql"]
    assert seen.gaps == 0


@pytest.mark.usefixtures("node_packages")
async def test_a_mixed_cluster(database: Database) -> None:
    async with serving(database) as python, NodePeer() as peer, AsyncEmitter(database.dsn) as emitter:
        await python.manager.start()
        client = await PythonClient.connect(python.server.url)
        node = await NodeServer.start(peer, database)
        process = await top(database, "--json", "--interval", "0.3", "-n", "/")
        try:
            assert process.stderr is not None
            await asyncio.wait_for(process.stderr.readline(), TIMEOUT_S)

            async def everything_is_seen() -> bool:
                """In one interval, in which a message or an answer may still be on its way."""
                await emitter.to("red").emit("hello", "é" * 9000)
                seen = await views(process)
                languages = {each["language"] for each in seen["servers"] if each["uid"] is not None}
                assert languages == {"python", "node"}, seen
                (place,) = [each["pid"] for each in seen["servers"] if each["language"] == "python"]
                assert place is not None, "its lock is known"
                assert seen["lag_seconds"] > 0, seen
                assert [each["room"] for each in seen["rooms"]] == ["red"], seen
                size = seen["bytes_per_second"] * seen["seconds"]
                assert size > 18_000, "attachments are counted with what they hold"
                assert 0 <= seen["queue_usage"] < 0.1, seen
                assert seen["gaps"] == seen["missing"] == seen["undecodable"] == 0, seen
                assert [each["namespace"] for each in seen["namespaces"]] == ["/"], seen
                return True

            await eventually(everything_is_seen, "a view of everything", 2 * TIMEOUT_S)
            await eventually(lambda: python.manager.server_count("/") == 2, "nobody counts it")
        finally:
            process.kill()
            await process.wait()
            await node.close()
            await client.disconnect()


async def test_it_writes_nothing_into_the_cluster(database: Database) -> None:
    async with spying(database) as spy, AsyncEmitter(database.dsn) as emitter:
        assert await asyncio.to_thread(main, ["top", "--once", "--interval", "0.1", "--dsn", database.dsn]) == 0
        await emitter.emit("fence")
        await spy.wait_for_broadcast("fence")
    assert len(spy.frames) == 1


async def test_for_people(database: Database, capsys: pytest.CaptureFixture[str]) -> None:
    async with serving(database) as node:
        await node.manager.start()
        arguments = ["top", "--count", "2", "--interval", "0.1", "-n", "[bold]", "--dsn", database.dsn]
        assert await asyncio.to_thread(main, arguments) == 0
        out = capsys.readouterr().out
        assert out.count("server") >= 2
        assert "never heard" in out or "python" in out
        assert "/[bold]" in out


async def test_it_goes_on_when_postgres_was_away(database: Database) -> None:
    process = await top(database, "--json", "--interval", "0.2")
    try:
        assert (await views(process))["gaps"] == 0
        with database.connect() as admin:
            admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )

        async def is_back() -> bool:
            seen = await views(process)
            # Not how full the queue is: all databases of the server share it, and other tests stop listeners.
            assert seen["gaps"] >= 1, seen
            assert seen["queue_usage"] is not None, seen
            return True

        await eventually(is_back, "it listens again, and says that something may be missing")
    finally:
        process.kill()
        await process.wait()


def test_it_ends_without_postgres(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", "--once", "--dsn", "host=127.0.0.1 port=1 password=secret"]) == 1
    told = capsys.readouterr().err
    assert "127.0.0.1" in told
    assert "secret" not in told
