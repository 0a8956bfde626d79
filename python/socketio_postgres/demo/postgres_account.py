"""The account that runs PostgreSQL if this process is root, and the folders that it can read."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from socketio_postgres.demo.postgres_binaries import EmbeddedPostgresError

if TYPE_CHECKING:
    import pwd

__all__ = ["is_readable", "public_tempdir", "readable_copy", "server_account"]

# PostgreSQL refuses to run as root: the first of these accounts that exists runs it instead.
_UNPRIVILEGED_USERS = ("postgres", "nobody")
# A Unix socket's path is limited to some 100 bytes, and ours adds about 40 to the temporary directory's.
_TEMPDIR_MAX_BYTES = 60


def server_account() -> pwd.struct_passwd | None:
    """The account to switch to; None when this process is not root and need not switch."""
    import pwd  # noqa: PLC0415 -- absent on Windows, where this module must still import

    if os.geteuid() != 0:
        return None
    for name in _UNPRIVILEGED_USERS:
        with contextlib.suppress(KeyError):
            account = pwd.getpwnam(name)
            if account.pw_uid != 0:
                return account
    raise EmbeddedPostgresError(
        f"PostgreSQL refuses to run as root and none of the accounts {', '.join(_UNPRIVILEGED_USERS)} "
        "exists: run this as an ordinary user, or use a server that runs already with --dsn"
    )


def public_tempdir(account: pwd.struct_passwd | None, wanted: Path) -> Path:
    """The temporary directory wanted, or /tmp when that is too long or out of reach of the server's account."""
    candidates = [wanted, Path("/tmp"), Path("/var/tmp")]  # noqa: S108 -- mkdtemp there is safe
    for folder in candidates:
        if (
            len(os.fsencode(folder)) <= _TEMPDIR_MAX_BYTES
            and folder.is_dir()
            and (account is None or _is_traversable(folder))
        ):
            return folder
    raise EmbeddedPostgresError(
        f"no temporary directory that the server can use among {', '.join(map(str, candidates))}"
    )


def _is_traversable(path: Path) -> bool:
    """Whether every user may pass through a directory and all above it."""
    path = path.resolve()
    return all(folder.stat().st_mode & stat.S_IXOTH for folder in (path, *path.parents))


def is_readable(folder: Path) -> bool:
    """Whether every user may read all files below a directory and run what its owner may run."""
    if not _is_traversable(folder):
        return False
    for path in (folder, *folder.rglob("*")):
        mode = path.stat().st_mode
        is_run = stat.S_ISDIR(mode) or mode & stat.S_IXUSR
        if not mode & stat.S_IROTH or (is_run and not mode & stat.S_IXOTH):
            return False
    return True


def readable_copy(bin_dir: Path, target: Path) -> Path:
    """Give a folder with the same programs that every user can run.

    That is the folder itself unless it lies in somebody's private directory, such as a virtual environment
    below /root. Nobody's permissions are changed: the installation is copied. A copy per server takes some
    50 ms and goes with it; a shared one would need defending against other users and cleaners of temporary
    files.
    """
    prefix = bin_dir.parent
    libraries = prefix.parent.with_name(prefix.parent.name + ".libs")  # where repaired wheels keep shared libraries
    sources = [folder for folder in (prefix, libraries) if folder.is_dir()]
    if all(is_readable(folder) for folder in sources):
        return bin_dir
    for source in sources:
        copied = target / source.relative_to(prefix.parent.parent)  # programs find the rest by relative paths
        shutil.copytree(source, copied, ignore=shutil.ignore_patterns("include", "doc", "pgxs"))
    for path in (target, *target.rglob("*")):
        path.chmod(0o755 if path.is_dir() or path.stat().st_mode & stat.S_IXUSR else 0o644)
    return target / bin_dir.relative_to(prefix.parent.parent)
