"""The other commands, on a real cluster and a real event store."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest

from socketio_postgres import AsyncEmitter, Event, EventStore
from socketio_postgres.cli import main
from tests.fixtures.bus import serving
from tests.fixtures.clients import PythonClient
from tests.fixtures.database import Database
from tests.fixtures.spy import spying
from tests.fixtures.waiting import TIMEOUT_S, eventually

Capture = pytest.CaptureFixture[str]


class Stdin:
    """Standard input with this content."""

    def __init__(self, text: str) -> None:
        self.buffer = io.BytesIO(text.encode())


async def test_emit_reaches_clients(database: Database, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"\x00\xff" * 5000)
    async with serving(database) as node:
        client = await PythonClient.connect(node.server.url)
        arguments = ["emit", "--dsn", database.dsn, "hello", '"world"', '{"a": 1}', "-b", str(tmp_path / "file")]
        assert await asyncio.to_thread(main, arguments) == 0
        assert await client.wait_for("hello") == [("world", {"a": 1}, b"\x00\xff" * 5000)]
        await client.disconnect()


async def test_emit_from_standard_input(database: Database, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    given = '["a", 1]\n\n{"event": "b", "args": [2], "to": ["x"], "except": ["y"], "namespace": "/"}\n["c"]\n'
    monkeypatch.setattr(sys, "stdin", Stdin(given))
    async with spying(database) as spy:
        assert await asyncio.to_thread(main, ["emit", "-", "--dsn", database.dsn, "--to", "room"]) == 0
        frames = await spy.wait_for(lambda _: True, 3)
    assert [frame.message["data"]["packet"]["data"] for frame in frames] == [["a", 1], ["b", 2], ["c"]]
    assert [frame.message["data"]["opts"]["rooms"] for frame in frames] == [["room"], ["x"], ["room"]]
    assert "3 events are committed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "given", "status", "text"),
    [
        (["hello", "world"], "", 2, "'world' is not JSON"),
        (["connect"], "", 1, "connect"),
        (["-", "1"], "", 2, "standard input"),
        (["-"], "{", 1, "line 1 is not JSON"),
        (["-"], '["a"]\n{"evnt": "b"}\n', 1, "line 2"),
        (["-"], '{"event": "b", "args": 1}', 1, "args must be a list"),
        (["hello", "--to", ""], "", 1, "room"),
    ],
)
def test_emit_refuses(
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
    arguments: list[str],
    given: str,
    status: int,
    text: str,
) -> None:
    monkeypatch.setattr(sys, "stdin", Stdin(given))
    assert main(["emit", "--dsn", database.dsn, *arguments]) == status
    assert text in capsys.readouterr().err


async def tail(database: Database, *arguments: str) -> asyncio.subprocess.Process:
    """`tail` in a process of its own, once it listens."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "socketio_postgres", "tail", "--dsn", database.dsn, *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stderr is not None
    told = await asyncio.wait_for(process.stderr.readline(), TIMEOUT_S)
    assert told.startswith(b"listening to")
    return process


async def test_tail_decodes_the_traffic_without_taking_part(database: Database) -> None:
    async with serving(database) as node, AsyncEmitter(database.dsn) as io_:
        await node.manager.start()
        process = await tail(database, "--count", "3", "--type", "broadcast", "--json")
        await io_.to("room").except_("other").emit("small", [1], {"a": None})
        await io_.emit("binary", b"\x00")
        await io_.emit("large", "é" * 9000)
        out, _ = await asyncio.wait_for(process.communicate(), TIMEOUT_S)
        assert node.manager.server_count("/") == 1, "nobody counts it"
    small, binary, large = map(json.loads, out.splitlines())
    assert (small["type"], small["namespace"], small["uid"]) == ("broadcast", "/", "emitter")
    assert small["data"]["packet"]["data"] == ["small", [1], {"a": None}]
    assert small["data"]["opts"] == {"rooms": ["room"], "except": ["other"], "flags": {}} | small["data"]["opts"]
    assert binary["data"]["packet"]["data"] == ["binary", {"base64": "AA=="}]
    assert binary["attachment_id"] is not None
    assert large["data"]["packet"]["data"] == ["large", "é" * 9000]


async def test_tail_for_people(database: Database) -> None:
    async with AsyncEmitter(database.dsn) as io_:
        process = await tail(database, "--count", "1", "--room", "vip", "-n", "chat")
        await io_.of("/chat").to("other").emit("unseen")
        await io_.of("/chat").to("vip").emit("[bold]\x1b[31m", 1)
        out, _ = await asyncio.wait_for(process.communicate(), TIMEOUT_S)
    assert out.decode().rstrip().endswith('/chat broadcast from emitter to vip ["[bold]\\u001b[31m", 1]')


async def test_tail_ends_with_its_reader(database: Database) -> None:
    async with AsyncEmitter(database.dsn) as io_:
        process = await tail(database, "--raw")
        assert process.stdout is not None
        await io_.emit("one")
        line = await asyncio.wait_for(process.stdout.readline(), TIMEOUT_S)
        assert b'["one"]' in line
        process.stdout._transport.close()  # type: ignore[attr-defined]  # as `head -n 1` does

        async def has_ended() -> bool:
            await io_.emit("more")
            return process.returncode is not None

        await eventually(has_ended, "it ends")
        assert process.stderr is not None
        assert b"Traceback" not in await process.stderr.read()


def test_events_go_out_and_in_again(database: Database, tmp_path: Path, capsys: Capture) -> None:
    options = ["--dsn", database.dsn]
    with EventStore(database.dsn) as store:
        store.store_batch(Event(f"T{n % 2}", f"a-{n}", {"n": n, "é": "ü"}, id=f"id-{n}") for n in range(10))
        file = tmp_path / "events.jsonl"
        assert main(["events", "export", str(file), *options]) == 0
        assert main(["events", "load", "--json", "--type", "T1", "--since", "4", *options]) == 0
        loaded = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [each["version"] for each in loaded] == [6, 8, 10]
    with closing(database.connect()) as admin:
        admin.execute("TRUNCATE events")
    assert main(["events", "import", str(file), *options]) == 0
    assert "10 events are stored" in capsys.readouterr().err
    with EventStore(database.dsn) as store:
        found = list(store.read())
        assert [(each.id, each.data) for each in found] == [(f"id-{n}", {"n": n, "é": "ü"}) for n in range(10)]
        assert main(["events", "load", "--aggregate", "a-3", *options]) == 0
        assert "T1 a-3" in capsys.readouterr().out


@pytest.mark.parametrize("line", ["{", "[]", '{"event_type": "T"}', '{"aggregate_id": "a", "event_type": "T", "x": 1}'])
def test_import_names_the_line(database: Database, tmp_path: Path, capsys: Capture, line: str) -> None:
    with EventStore(database.dsn) as store:
        (tmp_path / "file").write_text('{"aggregate_id": "a", "event_type": "T"}\n' + line)
        assert main(["events", "import", str(tmp_path / "file"), "--dsn", database.dsn]) == 1
        assert "line 2" in capsys.readouterr().err
        assert list(store.read()) == []


def test_events_tail(database: Database, capsys: Capture) -> None:
    with EventStore(database.dsn) as store:
        store.store(Event("T", "a", 1))
        arguments = ["events", "tail", "--after", "0", "--count", "2", "--json", "--dsn", database.dsn]
        tailing = threading.Thread(target=main, args=(arguments,))
        tailing.start()
        store.store(Event("T", "b", 2))
        tailing.join(TIMEOUT_S)
    assert [json.loads(line)["data"] for line in capsys.readouterr().out.splitlines()] == [1, 2]


def test_durable_subscriptions(database: Database, capsys: Capture) -> None:
    options = ["--dsn", database.dsn]
    with EventStore(database.dsn) as store:
        store.store_batch(Event("T", "a", n) for n in range(3))
        with store.durable("billing") as durable:
            durable.ack(next(iter(durable)))
        for command in (["pause", "billing"], ["rewind", "billing", "2"]):
            assert main(["events", *command, *options]) == 0
        assert main(["events", "subscriptions", "--json", *options]) == 0
        state = json.loads(capsys.readouterr().out)
        assert (state["name"], state["position"], state["lag"], state["is_paused"]) == ("billing", 2, 1, True)
        assert main(["events", "resume", "billing", *options]) == 0
        assert main(["events", "subscriptions", *options]) == 0
        told = capsys.readouterr().out
        assert re.fullmatch(r"billing at 2, 1 behind \(\d+ s\), 0 parked, nobody consumes it\n", told)
        assert main(["events", "delete", "billing", "--yes", *options]) == 0
        assert store.durable_subscriptions() == []
    assert main(["events", "pause", "billing", *options]) == 1


def test_a_store_that_is_not_there(database: Database, capsys: Capture) -> None:
    assert main(["events", "load", "--dsn", database.dsn, "--table-name", "nothing"]) == 1
    assert "does not exist" in capsys.readouterr().err
    assert database.value("SELECT to_regclass('nothing')") is None


def test_without_the_extra() -> None:
    script = (
        "import sys\nsys.modules['click'] = None\nfrom socketio_postgres.cli import main\nsys.exit(main(['doctor']))"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "pip install 'socketio-postgres[cli]'" in ended.stderr


def test_help_and_version(capsys: Capture) -> None:
    for arguments in ([], ["--help"], ["--version"], ["doctor", "--help"], ["events", "tail", "-h"]):
        assert main(arguments) in {0, 2}
    assert "socketio-postgres" in capsys.readouterr().out
