"""A real, throw-away PostgreSQL server for the demo and the tests: up within a second, gone without a trace.

Every connection from this machine is trusted, as superuser. Keep nothing in it that matters.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Literal
from urllib.parse import quote

from socketio_postgres._typing import Self
from socketio_postgres.demo.postgres_account import public_tempdir, readable_copy, server_account
from socketio_postgres.demo.postgres_binaries import (
    EmbeddedPostgresError,
    PostgresBinaries,
    default_binaries,
    find_binaries,
)

if TYPE_CHECKING:
    import pwd

__all__ = ["EmbeddedPostgres", "EmbeddedPostgresError", "PostgresBinaries", "find_binaries", "free_port"]

StopMode = Literal["fast", "immediate"]

# Data that is thrown away needs no protection against a crash of the machine.
_DEFAULT_SETTINGS = {"fsync": "off", "full_page_writes": "off"}
_STOP_SIGNALS: dict[StopMode, signal.Signals] = {"fast": signal.SIGINT, "immediate": signal.SIGQUIT}
_START_TIMEOUT = 30.0
_STOP_TIMEOUT = 15.0
_POLL_INTERVAL = 0.02
_PORT_ATTEMPTS = 5
_LOG_TAIL_LINES = 20
# Outlives this process however it ends: reads the server's process id (0 when stopped) line by line until the
# pipe closes, then stops the server and removes its directory. PR_SET_PDEATHSIG would not do: it is Linux
# only, fires when the starting *thread* ends, and leaves the files.
_WATCHER = """
pid=0
while read -r line; do pid=$line; done
if [ "$pid" -gt 0 ]; then
    kill -QUIT "$pid" 2>/dev/null
    tries=0
    while kill -0 "$pid" 2>/dev/null && [ "$tries" -lt 100 ]; do tries=$((tries + 1)); sleep 0.1; done
    kill -KILL "$pid" 2>/dev/null
fi
rm -rf -- "$1"
"""


def free_port() -> int:
    """Choose a free TCP port at 127.0.0.1, which no other call chooses while this process lives.

    A program may therefore take its time before it listens there, and stop listening for a while. Other processes on
    macOS may choose it.

    It lies below the range from which systems take the ports of outgoing connections: there, a client that
    keeps trying to reach a stopped server can end up connected to itself, and the server cannot get its port
    back.

    Raises:
        OSError: No socket can be made; a port that somebody has is none such reason.
    """
    while True:
        port = 20_000 + secrets.randbelow(12_000)
        try:
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("127.0.0.1", port))
                _reserve(port)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
        else:
            return port


def _reserve(port: int) -> None:
    """Take a port for this process, among those that ask here. It costs a file descriptor.

    Raises:
        OSError: Somebody has it.
    """
    if sys.platform == "linux":
        # An abstract name, which the kernel forgets with the last process that has it open, and which reaches as far as
        # the port does.
        with socket.socket(socket.AF_UNIX) as name:
            name.bind(f"\0socketio-postgres-port-{port}")
            name.detach()


class EmbeddedPostgres:
    """One PostgreSQL server of our own, on 127.0.0.1 and on a Unix socket.

    Use it as a context manager, or call `start` and `close`. When this process ends without `close`, even by
    SIGKILL, the server is stopped and its files are removed. Not thread-safe; Linux and macOS.

        with EmbeddedPostgres(settings={"max_notify_queue_pages": "64"}) as postgres:
            connect(postgres.dsn())

    Args:
        bin_dir: Folder of `postgres` and `initdb`; the first of `find_binaries()` when absent.
        settings: Server settings by name, on top of `fsync=off` and `full_page_writes=off`.
        port: TCP port; a free one when absent. It stays the same over `restart`.
        data_dir: Cluster to use and keep: created when missing or empty. A temporary one, removed by `close`,
            when absent. When run by root it must be owned by the unprivileged account that runs the server.
        temp_dir: Folder for temporary files: cluster, log and socket. Default: the system's temporary directory.

    Raises:
        EmbeddedPostgresError: No usable binaries.
    """

    def __init__(
        self,
        *,
        bin_dir: str | os.PathLike[str] | None = None,
        settings: Mapping[str, str] | None = None,
        port: int | None = None,
        data_dir: str | os.PathLike[str] | None = None,
        temp_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        if os.name != "posix":
            raise EmbeddedPostgresError(
                "the embedded PostgreSQL needs Linux or macOS; use a server that runs already with --dsn"
            )
        self._binaries = default_binaries() if bin_dir is None else PostgresBinaries.inspect(bin_dir)
        self._settings = {**_DEFAULT_SETTINGS, **(settings or {})}
        self._fixed_port = port
        self._port = port
        self._wanted_data_dir = None if data_dir is None else Path(data_dir).absolute()
        self._temp_dir = Path(tempfile.gettempdir() if temp_dir is None else temp_dir)
        self._base_dir: Path | None = None  # log, socket and, unless the caller has his own, data
        self._account: pwd.struct_passwd | None = None  # who runs the server when we are root
        self._programs_dir = self._binaries.bin_dir  # or a copy that this account can read
        self._process: subprocess.Popen[bytes] | None = None
        self._watcher: subprocess.Popen[bytes] | None = None
        self._owner_pid = os.getpid()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def bin_dir(self) -> Path:
        """Folder of the programs as found, `psql` and `pg_ctl` among them."""
        return self._binaries.bin_dir

    @property
    def version(self) -> str:
        """As the server says it, for example `18.6`."""
        return self._binaries.version

    @property
    def port(self) -> int:
        """TCP port on 127.0.0.1.

        Raises:
            EmbeddedPostgresError: Not started yet.
        """
        if self._port is None:
            raise EmbeddedPostgresError("the embedded PostgreSQL has no port before start()")
        return self._port

    @property
    def pid(self) -> int | None:
        """Process id of the running server (the postmaster), None when it does not run."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    @property
    def socket_dir(self) -> Path:
        """Folder of the Unix socket; also usable as `host` in `dsn`."""
        return self._base() / "socket"

    @property
    def data_dir(self) -> Path:
        """The cluster's data directory."""
        return self._wanted_data_dir or self._base() / "data"

    @property
    def log_path(self) -> Path:
        """The server's log, kept over restarts and removed by `close`."""
        return self._base() / "server.log"

    def dsn(self, dbname: str = "postgres", user: str = "postgres", host: str | os.PathLike[str] = "127.0.0.1") -> str:
        """Give the connection URL of a database; no password is needed.

        Args:
            dbname: Database.
            user: Role.
            host: Address, or `socket_dir`.
        """
        host, user, dbname = (quote(part, safe="") for part in (os.fspath(host), user, dbname))
        return f"postgresql://{user}@{host}:{self.port}/{dbname}"

    def start(self) -> None:
        """Start the server and return when it accepts connections; nothing happens when it already runs.

        Raises:
            EmbeddedPostgresError: It does not come up; the text holds the end of its log.
        """
        if self.pid is not None:
            return
        if self._base_dir is None:
            self._prepare()
        for attempt in range(1, _PORT_ATTEMPTS + 1):
            if self._port is None:
                self._port = free_port()
            log_start = self.log_path.stat().st_size if self.log_path.exists() else 0
            try:
                self._launch()
            except EmbeddedPostgresError:
                # Somebody took the port since it was probed. One that was asked for or used before stays.
                log = self.log_path.read_bytes()[log_start:]
                if self._fixed_port is not None or b"could not create any TCP/IP sockets" not in log:
                    raise
                if attempt == _PORT_ATTEMPTS:
                    raise
                self._port = None
            else:
                self._fixed_port = self._port
                return

    def stop(self, mode: StopMode = "fast") -> None:
        """Stop the server and wait until it is gone; data, port and log stay for the next `start`.

        Args:
            mode: `"fast"` ends sessions and shuts down cleanly, `"immediate"` is a crash that the next start
                recovers from (unlogged tables are emptied).
        """
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            for stop_signal in (_STOP_SIGNALS[mode], signal.SIGQUIT, signal.SIGKILL):
                process.send_signal(stop_signal)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_STOP_TIMEOUT)
                    break
        self._tell_watcher(0)

    def restart(self, mode: StopMode = "fast") -> None:
        """Stop and start again on the same port with the same data."""
        self.stop(mode)
        self.start()

    def close(self) -> None:
        """Stop the server and remove its files; a `data_dir` given by the caller stays."""
        if os.getpid() != self._owner_pid:  # a forked child runs our atexit hook too, the server is not its own
            return
        atexit.unregister(self.close)
        self.stop()
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            watcher.communicate()  # closes the pipe: the watcher removes the files and ends
        self._base_dir = None

    def create_database(self, name: str) -> str:
        """Create an empty UTF-8 database and give its connection URL.

        Raises:
            EmbeddedPostgresError: The server refused; the text says why.
        """
        host = os.fspath(self.socket_dir)
        address = ["--host", host, "--port", str(self.port), "--username", "postgres", "--no-password"]
        self._run("createdb", *address, "--template", "template0", "--encoding", "UTF8", "--", name)
        return self.dsn(name)

    def _base(self) -> Path:
        if self._base_dir is None:
            raise EmbeddedPostgresError("the embedded PostgreSQL has no files before start() and after close()")
        return self._base_dir

    def _prepare(self) -> None:
        """Make the directories and the cluster; the watcher is there before there is anything to clean."""
        self._account = server_account()
        self._base_dir = Path(tempfile.mkdtemp(prefix="sio-pg-", dir=public_tempdir(self._account, self._temp_dir)))
        self._watcher = subprocess.Popen(
            ["/bin/sh", "-c", _WATCHER, "sh", self._base_dir],
            stdin=subprocess.PIPE,
            cwd="/",
            start_new_session=True,  # Ctrl-C is for us, not for it
        )
        atexit.register(self.close)
        try:
            self._own(self._base_dir)
            if self._account is not None:
                self._programs_dir = readable_copy(self.bin_dir, self._base_dir / "programs")
            self.socket_dir.mkdir(mode=0o700)
            self._own(self.socket_dir)
            if not self.data_dir.exists():
                self.data_dir.mkdir(mode=0o700)
                self._own(self.data_dir)
            if not (self.data_dir / "PG_VERSION").exists():
                self._run(
                    *(
                        "initdb",
                        "--pgdata",
                        os.fspath(self.data_dir),
                        "--username",
                        "postgres",
                        "--auth",
                        "trust",
                    ),
                    *("--encoding", "UTF8", "--no-locale", "--no-sync"),
                )
        except BaseException:
            self.close()
            raise

    def _launch(self) -> None:
        """Start the server process once and wait until it is ready."""
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": os.fspath(self.socket_dir),
            **self._settings,
        }
        arguments = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        with self.log_path.open("ab") as log:
            self._process = self._popen("postgres", "-D", os.fspath(self.data_dir), *arguments, output=log)
        self._tell_watcher(self._process.pid)
        deadline = time.monotonic() + _START_TIMEOUT
        while not self._is_ready(self._process.pid):
            if (status := self._process.poll()) is not None:
                self.stop()
                raise EmbeddedPostgresError(f"PostgreSQL {self.version} ended with status {status}{self._log_tail()}")
            if time.monotonic() > deadline:
                self.stop("immediate")
                raise EmbeddedPostgresError(
                    f"PostgreSQL {self.version} was not ready within {_START_TIMEOUT} s{self._log_tail()}"
                )
            time.sleep(_POLL_INTERVAL)

    def _is_ready(self, pid: int) -> bool:
        """Read what the server says about itself; the file of a crashed predecessor has another process id.

        The first line of postmaster.pid is the id, the eighth the status.
        Source: pg_ctl's wait_for_postmaster_start.
        """
        with contextlib.suppress(OSError):
            lines = (self.data_dir / "postmaster.pid").read_text().splitlines()
            # Slices: the server may be writing it just now.
            return lines[:1] == [str(pid)] and [line.strip() for line in lines[7:8]] == ["ready"]
        return False

    def _log_tail(self) -> str:
        lines = self.log_path.read_text(errors="replace").splitlines()[-_LOG_TAIL_LINES:]
        return "\n".join(["; its log ends with:", *lines]) if lines else "; its log is empty"

    def _popen(self, program: str, *arguments: str, output: IO[bytes] | int) -> subprocess.Popen[bytes]:
        """Start one of the programs under the account that runs the server."""
        # Variables such as PGDATA or PGOPTIONS belong to somebody else's server; messages stay in English.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        environment["LC_ALL"] = "C"
        account = self._account
        try:
            return subprocess.Popen(
                [self._programs_dir / program, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self._base(),
                env=environment,
                start_new_session=True,  # Ctrl-C is for us: we stop the server in order
                user=None if account is None else account.pw_uid,
                group=None if account is None else account.pw_gid,
                extra_groups=None if account is None else [],
            )
        except OSError as error:
            who = "" if account is None else f" as user {account.pw_name!r}"
            raise EmbeddedPostgresError(f"cannot run {str(self._programs_dir / program)!r}{who}: {error}") from error

    def _run(self, program: str, *arguments: str) -> None:
        process = self._popen(program, *arguments, output=subprocess.PIPE)
        try:
            output, _ = process.communicate(timeout=_START_TIMEOUT)
        except subprocess.TimeoutExpired as error:
            process.kill()
            process.communicate()
            raise EmbeddedPostgresError(f"{program} did not finish within {_START_TIMEOUT} s") from error
        if process.returncode != 0:
            text = output.decode(errors="replace").strip()
            raise EmbeddedPostgresError(f"{program} ended with status {process.returncode}: {text}")

    def _own(self, path: Path) -> None:
        if self._account is not None:
            os.chown(path, self._account.pw_uid, self._account.pw_gid)

    def _tell_watcher(self, pid: int) -> None:
        if self._watcher is not None and self._watcher.stdin is not None:
            self._watcher.stdin.write(b"%d\n" % pid)
            self._watcher.stdin.flush()
