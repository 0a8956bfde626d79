"""What the numbers were measured on."""

from __future__ import annotations

import datetime as dt
import os
import platform
import re
import subprocess
import sys
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

PACKAGES = (
    "socketio-postgres",
    "python-socketio",
    "python-engineio",
    "uvicorn",
    "websockets",
    "asyncpg",
    "redis",
    "psycopg",
    "socketio-pg-manager",
    "eventsourcing",
)


@dataclass(frozen=True)
class Machine:
    """Where and when a program ran."""

    day: str
    commit: str
    processor: str
    cores: int
    memory_gb: float
    system: str
    python: str
    load: float
    """Processes that wanted a core in the minute before: above 0.5 others were at work."""
    packages: dict[str, str] = field(default_factory=dict)


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def read_machine() -> Machine:
    """This machine, now."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.+)", info.read_text()) if info.exists() else []
    changed = _output("git", "status", "--porcelain", "--untracked-files=no", "python", "rust", "Cargo.toml")
    return Machine(
        day=dt.datetime.now(dt.timezone.utc).strftime("%d %B %Y, %H:%M UTC"),
        commit=(_output("git", "rev-parse", "--short", "HEAD") or "unknown") + (" with changes" if changed else ""),
        processor=names[0] if names else platform.processor(),
        cores=os.cpu_count() or 0,
        memory_gb=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        system=platform.platform(),
        python=sys.version.split()[0],
        load=round(os.getloadavg()[0], 2),
        packages=_versions(),
    )
