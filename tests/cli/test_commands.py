"""The other commands, on a real cluster and a real event store."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest
from psycopg.conninfo import make_conninfo

from socketio_postgres import AsyncEmitter, Event, EventStore
from socketio_postgres.cli import main
from tests.fixtures.bus import serving
from tests.fixtures.clients import PythonClient
from tests.fixtures.database import Database, new_database
from tests.fixtures.postgres import terminate
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


@pytest.mark.parametrize(
    "line",
    [
        *("{", "[]", "7", '{"event_type": "T"}', '{"aggregate_id": "a", "event_type": "T", "x": 1}'),
        *('{"aggregate_id": "", "event_type": "T"}', '{"aggregate_id": "a", "event_type": 1}'),
        *(
            '{"aggregate_id": "a", "event_type": "T", ' + rest
            for rest in (
                *('"id": null}', '"id": "\\u0000"}', '"metadata": []}', '"metadata": {"\\ud800": 1}}', '"data": NaN}'),
                *('"data": {"a": [1e999]}}', '"data": ["\\udfff"]}', '"data": ' + "[" * 101 + "]" * 101 + "}"),
            )
        ),
    ],
    ids=lambda line: str(line)[:70],
)
def test_import_names_the_line(database: Database, tmp_path: Path, capsys: Capture, line: str) -> None:
    with EventStore(database.dsn) as store:
        (tmp_path / "file").write_text('{"aggregate_id": "a", "event_type": "T"}\n' + line)
        assert main(["events", "import", str(tmp_path / "file"), "--dsn", database.dsn]) == 1
        assert "line 2" in capsys.readouterr().err
        assert list(store.read()) == []


def test_what_is_imported_at_the_limits(database: Database, tmp_path: Path) -> None:
    values: list[object] = [None, [], {"é": "\x7f\u2028😀"}, "\\u0000", 2**64, 1e-300]
    deep: list[object] = []
    for _ in range(99):
        deep = [deep]
    (tmp_path / "file").write_text(
        "".join(
            json.dumps({"aggregate_id": "a", "event_type": "T", "data": value, "metadata": None}) + "\n"
            for value in (*values, deep)
        )
    )
    with EventStore(database.dsn) as store:
        store.open()
        assert main(["events", "import", str(tmp_path / "file"), "--dsn", database.dsn]) == 0
        assert [each.data for each in store.read()] == [*values, deep]


def test_import_needs_ids_to_skip(database: Database, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "file").write_text('{"aggregate_id": "a", "event_type": "T"}\n')
    with EventStore(database.dsn) as store:
        store.open()
        assert main(["events", "import", "--skip-existing", str(tmp_path / "file"), "--dsn", database.dsn]) == 1
        assert "line 1 lacks id" in capsys.readouterr().err
        assert list(store.read()) == []


@pytest.mark.parametrize(("size", "status", "text"), [(20_000_000, 1, "the limit is"), (None, 2, "does not exist")])
def test_emit_refuses_a_file(
    database: Database, tmp_path: Path, capsys: Capture, size: int | None, status: int, text: str
) -> None:
    if size is not None:
        (tmp_path / "file").write_bytes(b"\0" * size)
    assert main(["emit", "a", "--binary", str(tmp_path / "file"), "--dsn", database.dsn]) == status
    assert text in capsys.readouterr().err


async def test_tail_goes_on_when_postgres_was_away(database: Database) -> None:
    process = await tail(database, "--count", "1")
    terminate(database)
    assert process.stderr is not None
    told = b""
    while b"it is active again" not in told:
        told = await asyncio.wait_for(process.stderr.readline(), TIMEOUT_S)
        assert told, "it ended"
    async with AsyncEmitter(database.dsn) as io_:
        await io_.emit("after")
    out, _ = await asyncio.wait_for(process.communicate(), TIMEOUT_S)
    assert b'["after"]' in out


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


async def test_emit_says_how_far_it_came(database: Database, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    given = '["a"]\n["b", 1]\n{"event": "c", "to": 1.5}\n["d"]\n'
    monkeypatch.setattr(sys, "stdin", Stdin(given))
    async with spying(database) as spy:
        assert await asyncio.to_thread(main, ["emit", "-", "--dsn", database.dsn]) == 1
        frames = await spy.wait_for(lambda _: True, 2)
    assert [frame.message["data"]["packet"]["data"] for frame in frames] == [["a"], ["b", 1]]
    told = capsys.readouterr().err
    assert "2 events are committed" in told
    assert "Error: line 3: " in told


@pytest.mark.parametrize(
    "line",
    [
        '{"event": 1}', '{"event": null}', '{"event": []}', '{"event": {"a": 1}}', "[[]]", "[null]", "[]", "7", '"a"',
        '{"event": "a", "namespace": 1}', '{"event": "a", "namespace": null}', '{"event": "a", "to": null}',
        '{"event": "a", "to": [[]]}', '{"event": "a", "except": null}', '{"event": "a", "except": {"a": 1}}',
        '["a", NaN]', '["a", Infinity]', '["a", 1e999]', '{"event": "a", "args": null}', '{"event": "disconnect"}',
        '{"event": "a", "args": [' + "[" * 101 + "]" * 101 + "]}", '["a", "' + "x" * 17_000_000 + '"]',
    ],
    ids=lambda line: str(line)[:40],
)  # fmt: skip
def test_emit_names_the_bad_line(
    database: Database, monkeypatch: pytest.MonkeyPatch, capsys: Capture, line: str
) -> None:
    monkeypatch.setattr(sys, "stdin", Stdin(f'["good"]\n\n{line}\n'))
    assert main(["emit", "-", "--dsn", database.dsn]) == 1
    told = capsys.readouterr().err
    assert "1 event is committed" in told
    assert "Error: line 3" in told


def test_emit_says_how_far_it_came_when_it_is_interrupted(database: Database) -> None:
    with database.connect() as listening:
        listening.execute('LISTEN "socket.io#/"')
        process = subprocess.Popen(
            [sys.executable, "-m", "socketio_postgres", "emit", "-", "--dsn", database.dsn],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509
        )
        assert process.stdin is not None
        process.stdin.write(b'["a"]\n')
        process.stdin.flush()
        [_] = listening.notifies(timeout=TIMEOUT_S, stop_after=1)  # as it arrives, not at the end of the input
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 130
    assert told.strip() == b"1 event is committed"


async def test_tail_filters_attachments(database: Database) -> None:
    async with AsyncEmitter(database.dsn) as io_:
        process = await tail(database, "--count", "2", "--room", "vip", "--type", "broadcast", "--raw")
        await io_.to("vip").sockets_join("x" * 9000)
        await io_.to("other").emit("large", "x" * 9000)
        await io_.emit("large", "for all", b"\x00")
        await io_.to("vip").emit("large", "é" * 9000)
        await io_.to(["a", "vip"]).emit("binary", b"\x00")
        out, told = await asyncio.wait_for(process.communicate(), TIMEOUT_S)
    headers = [json.loads(line) for line in out.splitlines()]
    assert [header["rooms"] for header in headers] == [["vip"], ["a", "vip"]]
    assert all("attachmentId" in header for header in headers)
    assert told == b""


async def test_tail_without_a_right_on_the_attachments(database: Database) -> None:
    name = f"tail_{database.name}"
    with closing(database.connect()) as admin:
        admin.execute(f'CREATE ROLE "{name}" LOGIN')
        try:
            async with AsyncEmitter(database.dsn) as io_:
                await io_.emit("creates the table", b"\x00")
                restricted = Database(make_conninfo(database.dsn, user=name))
                process = await tail(restricted, "--count", "1")
                await io_.emit("binary", b"\x00")
                await io_.emit("small")
                out, told = await asyncio.wait_for(process.communicate(), TIMEOUT_S)
        finally:
            admin.execute(f'DROP ROLE "{name}"')
    assert process.returncode == 0
    assert b'["small"]' in out
    assert b"cannot be shown" in told
    assert b"permission denied" in told


def test_events_go_through_a_pipe(database: Database, postgres_dsn: str) -> None:
    events = [Event(f"T{n}", f"a-{n}", {"n": n, "é": "ü\u2028\x7f"}, {"m": [n]}, id=f"id-{n}") for n in range(2500)]
    with new_database(postgres_dsn) as other, EventStore(database.dsn) as store, EventStore(other.dsn) as copy:
        store.store_batch(events)
        copy.open()
        sp = f"'{sys.executable}' -m socketio_postgres events"
        line = f"{sp} export --dsn '{database.dsn}' | {sp} import --dsn '{other.dsn}'"
        subprocess.run(["/bin/bash", "-o", "pipefail", "-c", line], check=True, timeout=TIMEOUT_S)
        found = [(each.id, each.event_type, each.aggregate_id, each.data, each.metadata) for each in copy.read()]
    assert found == [(each.id, each.event_type, each.aggregate_id, each.data, each.metadata) for each in events]


def lines_of(count: int) -> list[str]:
    """Events to import, each with an id."""
    return [json.dumps({"id": f"id-{n}", "aggregate_id": "a", "event_type": "T", "data": n}) for n in range(count)]


def test_an_import_goes_on_after_a_broken_line(database: Database, tmp_path: Path, capsys: Capture) -> None:
    lines, file = lines_of(25_000), tmp_path / "events.jsonl"
    file.write_text("\n".join([*lines[:20_000], "{", *lines[20_001:]]))
    options = [str(file), "--dsn", database.dsn]
    with EventStore(database.dsn) as store:
        store.open()
        assert main(["events", "import", *options]) == 1
        told = capsys.readouterr().err
        assert "20000 events are stored; --skip-existing goes on" in told
        assert "line 20001 is not JSON" in told
        file.write_text("\n".join(lines))
        assert main(["events", "import", *options]) == 1, "their ids are taken"
        capsys.readouterr()
        assert main(["events", "import", "--skip-existing", *options]) == 0
        assert "5000 events are stored, 20000 were stored already" in capsys.readouterr().err
        assert [each.data for each in store.read()] == list(range(25_000))


def test_an_import_goes_on_after_ctrl_c(database: Database, tmp_path: Path) -> None:
    lines = lines_of(15_000)
    (tmp_path / "events.jsonl").write_text("\n".join(lines))
    with EventStore(database.dsn) as store:
        store.open()
        command = [sys.executable, "-m", "socketio_postgres", "events", "import", "--dsn", database.dsn]
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509
        )
        assert process.stdin is not None
        process.stdin.write("\n".join(lines[:12_000]).encode() + b"\n")
        process.stdin.flush()  # and the input does not end
        deadline = time.monotonic() + TIMEOUT_S
        while database.value("SELECT count(*) FROM events") != 10_000:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == 130
        assert told.strip() == b"10000 events are stored; --skip-existing goes on after them"
        ended = subprocess.run([*command, "--skip-existing", str(tmp_path / "events.jsonl")], check=True)
        assert ended.returncode == 0
        assert [each.data for each in store.read()] == list(range(15_000))


def test_an_export_goes_on(database: Database, tmp_path: Path) -> None:
    options = ["--dsn", database.dsn]
    with EventStore(database.dsn) as store:
        store.store_batch(Event("T", "a", n) for n in range(10))
    assert main(["events", "export", str(tmp_path / "all"), *options]) == 0
    assert main(["events", "export", str(tmp_path / "rest"), "--since", "7", *options]) == 0
    assert (tmp_path / "all").read_text().splitlines()[7:] == (tmp_path / "rest").read_text().splitlines()
