"""What a shell sees: pipes that end, full devices, Ctrl-C, colours, characters that cannot be printed, no secrets."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import io
import json
import os
import pty
import re
import signal
import socket
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from psycopg.conninfo import make_conninfo

from socketio_postgres import AsyncEmitter, Event, EventStore
from socketio_postgres.cli import main
from socketio_postgres.cli.output import to_json
from tests.fixtures.database import Database
from tests.fixtures.spy import spying
from tests.fixtures.waiting import TIMEOUT_S

Capture = pytest.CaptureFixture[str]

PROGRAM = (sys.executable, "-m", "socketio_postgres")
NOBODY = "host=127.0.0.1 port=1"


def shell(line: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a line of a shell in which `sp` is the program."""
    script = f"set -o pipefail\nsp() {{ '{sys.executable}' -m socketio_postgres \"$@\"; }}\n{line}"
    return subprocess.run(
        ["/bin/bash", "-c", script],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=TIMEOUT_S,
        check=False,
    )


@pytest.fixture
def thousand(database: Database) -> Database:
    """More events than a pipe holds."""
    with EventStore(database.dsn) as store:
        store.store_batch(Event("T", "a", {"text": "x" * 500}) for _ in range(1000))
    return database


@pytest.mark.parametrize(
    "command",
    [
        "events load --limit 1000",
        "events load --limit 1000 --json",
        "events export",
        "doctor",
        "top --interval 0.1",
        "top --interval 0.1 --json",
    ],
)
def test_a_reader_that_ends(thousand: Database, command: str) -> None:
    ended = shell(f"sp {command} --dsn '{thousand.dsn}' | head -n 1")
    assert ended.returncode == 0, ended.stderr
    assert len(ended.stdout.splitlines()) == 1
    assert "Traceback" not in ended.stderr
    assert "Exception ignored" not in ended.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("command", ["events load", "events load --json", "events export", "doctor", "sql"])
def test_a_full_disk(thousand: Database, command: str) -> None:
    dsn = "" if command == "sql" else f"--dsn '{thousand.dsn}'"
    ended = shell(f"sp {command} {dsn} > /dev/full")
    assert ended.returncode == 1
    assert "No space left" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("doctor {} >&- 2>&-", 0),
        ("events load {} >&-", 0),
        ("events export {} >&-", 0),
        ("events import {} <&-", 0),
        ("emit - {} <&-", 0),
        ("emit a {} <&- >&- 2>&-", 0),
    ],
)
def test_closed_descriptors(thousand: Database, line: str, status: int) -> None:
    ended = shell("sp " + line.replace("{}", f"--dsn '{thousand.dsn}'"))
    assert ended.returncode == status, ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("command", ["tail", "top", "events tail", "emit -", "events import"])
def test_interrupted(thousand: Database, command: str) -> None:
    def sessions() -> set[int]:
        with thousand.connect() as admin:
            # Autovacuum has sessions, too.
            others = (
                "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
                " AND backend_type = 'client backend'"
            )
            return {row[0] for row in admin.execute(others)}

    before = sessions()  # of the fixture's store, which may take a moment to end
    process = subprocess.Popen(
        [*PROGRAM, *command.split(), "--dsn", thousand.dsn],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509
    )
    try:
        # It is up once it has a session.
        deadline = TIMEOUT_S
        while sessions() <= before:
            deadline -= 0.1
            assert deadline > 0
            assert process.poll() is None
            asyncio.run(asyncio.sleep(0.1))
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=TIMEOUT_S)
    finally:
        process.kill()
    assert process.returncode == 130
    assert b"Traceback" not in told


def on_a_terminal(
    arguments: list[str],
    env: Mapping[str, str],
    *,
    stdin: Path | None = None,
    typed: bytes = b"",
    size: tuple[int, int] = (24, 80),
) -> str:
    """What is printed on a terminal with so many rows and columns, by a command that ends by itself."""
    pid, terminal = pty.fork()
    if pid == 0:
        fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
        if stdin is not None:
            os.dup2(os.open(stdin, os.O_RDONLY), 0)
        os.execve(sys.executable, [*PROGRAM, *arguments], {**os.environ, "TERM": "xterm", **env})  # noqa: S606
    os.write(terminal, typed)
    printed = b""
    while True:
        try:
            part = os.read(terminal, 65536)
        except OSError:  # Linux' way to say that the other end is closed
            break
        if not part:
            break
        printed += part
    os.waitpid(pid, 0)
    os.close(terminal)
    return printed.decode()


def test_colours(database: Database) -> None:
    arguments = ["doctor", "--dsn", database.dsn]
    assert "\x1b[32m" in on_a_terminal(arguments, {})
    assert "\x1b[32m" not in on_a_terminal(arguments, {"NO_COLOR": "1"})
    assert "\x1b[" not in on_a_terminal(arguments, {"TERM": "dumb"})
    assert "\x1b[" not in shell(f"sp doctor --dsn '{database.dsn}'").stdout


def test_top_on_a_terminal(database: Database) -> None:
    printed = on_a_terminal(["top", "--count", "2", "--interval", "0.1", "--dsn", database.dsn], {})
    assert printed.count("queue 0.0%") >= 2, "once more at the end"
    assert printed.rstrip().endswith("\x1b[?25h"), "the cursor is back"


def test_a_terminal_without_all_characters(database: Database) -> None:
    ended = shell(
        f"sp doctor --dsn '{database.dsn}' && sp doctor --json --dsn '{database.dsn}'", PYTHONIOENCODING="ascii"
    )
    assert ended.returncode == 0, ended.stderr
    assert r"\u2713 connection" in ended.stdout


def test_json_is_json_in_every_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    value = {"é": "\ud800\x9b😀"}
    assert json.loads(to_json(value)) == value
    to_json(value).encode()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert to_json(value).isascii()
    assert json.loads(to_json(value)) == value


@pytest.mark.parametrize("arguments", [["--json"], []], ids=str)
async def test_tail_survives_what_cannot_be_printed(database: Database, arguments: list[str]) -> None:
    process = await asyncio.create_subprocess_exec(
        *PROGRAM, "tail", "--count", "2", "--dsn", database.dsn, *arguments,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr is not None
    await asyncio.wait_for(process.stderr.readline(), TIMEOUT_S)
    async with spying(database) as spy, AsyncEmitter(database.dsn) as emitter:
        await emitter.emit("é", "\ud800\x1b[31m\x9b")
        await emitter.emit("huge", "x" * 300_000)
        await spy.wait_for(lambda _: True, 2)
        out, told = await asyncio.wait_for(process.communicate(), TIMEOUT_S)
    assert process.returncode == 0, told
    odd, huge = out.decode().splitlines()
    assert "\x1b" not in odd
    assert r"\ud800" in odd
    assert len(huge) > 300_000 if arguments else len(huge) < 1000


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (b"\xff\xfe\n", "line 1 is not JSON"),
        (b"[" * 200_000 + b"\n", "line 1 is not JSON"),
        ('["a"]\n'.encode("utf-16"), "line 1 is not JSON"),
    ],
    ids=["not UTF-8", "too deep", "UTF-16"],
)
@pytest.mark.parametrize("command", [["emit", "-"], ["events", "import"]], ids=" ".join)
def test_input_that_is_no_text(database: Database, command: list[str], given: bytes, text: str) -> None:
    with EventStore(database.dsn) as store:
        store.open()
    ended = subprocess.run(
        [*PROGRAM, *command, "--dsn", database.dsn], input=given, capture_output=True, timeout=TIMEOUT_S, check=False
    )
    assert ended.returncode == 1
    assert text in ended.stderr.decode()
    assert b"Traceback" not in ended.stderr


@pytest.mark.parametrize(
    "dsn",
    [
        f"{NOBODY} password=geheim",
        "postgresql://u:geheim@127.0.0.1:1/x",
        "postgresql://u:geheim@h@127.0.0.1:1/x",
        "host=127.0.0.1 port=geheim password=geheim",
        "host=127.0.0.1 passwrd=geheim",
        "password='geheim",
        "postgresql://u:geheim%zz@127.0.0.1:1/x",
    ],
)
@pytest.mark.parametrize(
    "command",
    [
        ["doctor"],
        ["tail"],
        ["top"],
        ["emit", "a"],
        ["events", "load"],
        ["events", "trim", "1"],
        ["events", "pause", "x"],
    ],
    ids=" ".join,
)
def test_no_password_is_shown(capsys: Capture, command: list[str], dsn: str) -> None:
    assert main([*command, "--dsn", dsn]) == 1
    told = capsys.readouterr()
    assert "geheim" not in told.out + told.err
    assert told.out + told.err


def test_a_question_without_an_answer(database: Database) -> None:
    with EventStore(database.dsn) as store:
        store.store_batch(Event("T", "a") for _ in range(3))
    assert shell(f"sp events trim 1 --dsn '{database.dsn}' < /dev/null").returncode == 1
    assert shell(f"echo n | sp events trim 1 --dsn '{database.dsn}'").returncode == 1
    assert shell(f"echo y | sp events trim 1 --dsn '{database.dsn}'").returncode == 0


@pytest.mark.parametrize(
    "arguments",
    [["top", "--interval", "nan"], ["top", "--interval", "0"], ["sql", "--role", ""], ["emit", "a", "[" * 9999]],
)
def test_wrong_usage(capsys: Capture, arguments: list[str]) -> None:
    assert main(arguments) == 2
    assert "Error: " in capsys.readouterr().err


@pytest.mark.parametrize("command", ["tail", "tail --json", "top --interval 3600", "events tail", "events tail --json"])
def test_a_reader_that_ends_while_nothing_happens(thousand: Database, command: str) -> None:
    ended = shell(f"sp {command} --dsn '{thousand.dsn}' | true")
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr


async def test_tail_ends_after_the_one_line_that_is_wanted(database: Database) -> None:
    """As in `socketio-postgres tail | head -n 1`: nothing else is ever emitted."""
    process = await asyncio.create_subprocess_exec(
        *PROGRAM, "tail", "--dsn", database.dsn, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert process.stderr is not None
    assert process.stdout is not None
    await asyncio.wait_for(process.stderr.readline(), TIMEOUT_S)
    async with AsyncEmitter(database.dsn) as emitter:
        await emitter.emit("one")
    assert b'["one"]' in await asyncio.wait_for(process.stdout.readline(), TIMEOUT_S)
    process.stdout._transport.close()  # type: ignore[attr-defined]  # as `head` does
    assert await asyncio.wait_for(process.wait(), TIMEOUT_S) == 0
    assert await process.stderr.read() == b""


@contextlib.contextmanager
def silent_server() -> Iterator[tuple[str, socket.socket]]:
    """The connection string of a server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(TIMEOUT_S)
        yield f"host=127.0.0.1 port={server.getsockname()[1]} user=u dbname=d connect_timeout=600", server


@pytest.mark.parametrize(
    "command",
    [
        "doctor",
        "emit a",
        "emit -",
        "tail",
        "top",
        "events load",
        "events tail",
        "events export",
        "events import",
        "events subscriptions",
        "events parked x",
        "events replay x true",
        "events trim 1",
    ],
)
def test_interrupted_while_it_connects(command: str) -> None:
    with silent_server() as (dsn, server):
        process = subprocess.Popen(
            [*PROGRAM, *command.split(), "--dsn", dsn],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509
        )
        try:
            accepted, _ = server.accept()
            process.send_signal(signal.SIGINT)
            _, told = process.communicate(timeout=TIMEOUT_S)
            accepted.close()
        finally:
            process.kill()
    assert process.returncode == 130, told
    assert b"Traceback" not in told


@pytest.mark.parametrize(("rows", "columns"), [(24, 80), (5, 20), (1, 1), (2, 300)])
def test_top_on_a_terminal_of_any_size(database: Database, rows: int, columns: int) -> None:
    with EventStore(database.dsn):
        printed = on_a_terminal(
            ["top", "--count", "2", "--interval", "0.1", "--dsn", database.dsn], {}, size=(rows, columns)
        )
    assert "Traceback" not in printed
    assert printed.rstrip().endswith("\x1b[?25h"), "the cursor is back"


def test_top_hides_no_loss_on_a_narrow_terminal(database: Database) -> None:
    printed = on_a_terminal(["top", "--once", "--interval", "0.1", "--dsn", database.dsn], {}, size=(40, 30))
    assert "0 messages missing, 0 undecodable" in " ".join(re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", printed).split())


@pytest.mark.parametrize(
    ("command", "line"), [("emit -", b'["a"]'), ("events import", b'{"aggregate_id": "a", "event_type": "T"}')]
)
def test_no_bar_gets_into_what_is_typed(database: Database, command: str, line: bytes) -> None:
    with EventStore(database.dsn) as store:
        store.open()
        printed = on_a_terminal([*command.split(), "--dsn", database.dsn], {}, typed=line + b"\n\x04")
    assert "1 event is" in printed
    assert "\x1b[?25l" not in printed


def test_a_bad_line_below_a_progress_bar(database: Database, tmp_path: Path) -> None:
    (tmp_path / "lines").write_text('["a"]\n["b"]\n{\n["c"]\n')
    printed = on_a_terminal(["emit", "-", "--dsn", database.dsn], {}, stdin=tmp_path / "lines")
    plain = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", printed)
    assert "2 events are committed" in plain
    assert plain.rstrip().splitlines()[-1].startswith("Error: line 3 is not JSON")
    assert printed.count("\x1b[?25l") == printed.count("\x1b[?25h"), "the cursor is back"


@pytest.mark.parametrize(
    "command",
    [
        "doctor",
        "doctor --json",
        "top --once --interval 0.1",
        "top --once --interval 0.1 --json",
        "emit a",
        "events load",
        "events export",
        "events subscriptions",
    ],
)
@pytest.mark.parametrize("source", ["dsn", "environment"])
def test_no_password_is_shown_of_a_connection_that_works(thousand: Database, command: str, source: str) -> None:
    given = make_conninfo(thousand.dsn, password="geheim") if source == "dsn" else thousand.dsn
    listen = f"--listen-dsn '{given}'"
    ended = shell(f"sp {command} --dsn '{given}' {listen}", PGPASSWORD="geheim")
    assert ended.returncode == 0, ended.stderr
    assert "geheim" not in ended.stdout + ended.stderr
