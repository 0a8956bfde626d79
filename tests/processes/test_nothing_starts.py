"""Importing the package and making its objects starts nothing and opens nothing."""

import subprocess
import sys

from tests.fixtures.program import ROOT, environment
from tests.fixtures.waiting import TIMEOUT_S

SCRIPT = """
import os, socketio

def seen():
    links = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            links[fd] = os.readlink("/proc/self/fd/" + fd)
        except OSError:
            pass  # the listing itself
    return sorted(os.listdir("/proc/self/task")), links

before = seen()
import socketio_postgres as package
package.AsyncPostgresManager  # importing may be lazy
made = []
dsn = "postgresql://app@127.0.0.1:1/app"
for name in ("AsyncPostgresManager", "PostgresManager", "AsyncEmitter", "Emitter", "AsyncPostgresClient",
             "PostgresClient"):
    made.append(getattr(package, name)(dsn))
socketio.AsyncServer(client_manager=made[0], async_mode="asgi")
socketio.Server(client_manager=made[1], async_mode="threading")
made.append(package.PostgresManager(dsn, write_only=True))
assert made[0].stats()["peers"] == {}
assert made[1].server_count() == 1
after = seen()
assert before == after, (before, after)
if %r:
    made[3].emit("now it starts")
    assert seen() != after
    os._exit(0)  # without waiting for a database that is not there
"""


def _run(script: str) -> None:
    command = [sys.executable, "-W", "ignore", "-c", script]
    done = subprocess.run(
        command, env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_import_and_construction_start_nothing() -> None:
    _run(SCRIPT % False)


def test_the_first_use_does() -> None:
    _run(SCRIPT % True)
