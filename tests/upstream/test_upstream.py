"""python-socketio's own tests of its managers, of the installed version, run against ours.

They come from its source distribution on PyPI, kept in `.cache/` at the top of the checkout, and run in a process of
their own, where the plugin `substitute` puts our managers in the place of python-socketio's. What cannot hold for ours
stands in one table below, with the reason; the table itself is checked, in both directions.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from importlib import metadata
from pathlib import Path

import pytest

from tests.fixtures.database import Database
from tests.fixtures.once import one_at_a_time

HERE = Path(__file__).parent
CACHE = HERE.parent.parent / ".cache" / "upstream"
VERSION = metadata.version("python-socketio")
LIMIT_S = 300.0
CHANCES = 3
"""How often tests that fail are run again, alone: some sleep for a fixed time and expect others to be done."""

pytestmark = pytest.mark.timeout(2 * LIMIT_S)

OTHER_RECEIVER = "calls a private method of the stock manager with its own dict; ours receives cluster messages"
OTHER_LOOP = "replaces the stock manager's private `_listen`; the core listens for ours"
OTHER_ACK = "expects the dict's (room, namespace, id); an acknowledgement of the cluster is asked for by a request id"
AS_PUBSUB = "a callback without a room is an error in every pub/sub manager of python-socketio"
ELSEWHERE = "a sid that is not here is another server's client for every pub/sub manager of python-socketio"

PUBSUB = {
    "test_emit_with_callback": OTHER_ACK,
    "test_handle_emit": OTHER_RECEIVER,
    "test_handle_legacy_emit": OTHER_RECEIVER,
    "test_handle_emit_binary": OTHER_RECEIVER,
    "test_handle_legacy_emit_binary": OTHER_RECEIVER,
    "test_handle_emit_list": OTHER_RECEIVER,
    "test_handle_emit_no_arguments": OTHER_RECEIVER,
    "test_handle_emit_multiple_arguments": OTHER_RECEIVER,
    "test_handle_emit_with_namespace": OTHER_RECEIVER,
    "test_handle_emit_with_room": OTHER_RECEIVER,
    "test_handle_emit_with_skip_sid": OTHER_RECEIVER,
    "test_handle_emit_with_remote_callback": OTHER_RECEIVER,
    "test_handle_emit_with_local_callback": OTHER_RECEIVER,
    "test_handle_callback": OTHER_RECEIVER,
    "test_handle_callback_bad_host_id": OTHER_RECEIVER,
    "test_handle_callback_missing_args": OTHER_RECEIVER,
    "test_handle_disconnect": OTHER_RECEIVER,
    "test_handle_enter_room": OTHER_RECEIVER,
    "test_handle_leave_room": OTHER_RECEIVER,
    "test_handle_close_room": OTHER_RECEIVER,
    "test_handle_close_room_with_namespace": OTHER_RECEIVER,
    "test_background_thread": OTHER_LOOP,
    "test_background_thread_exception": OTHER_LOOP,
}

EXCEPTIONS: dict[str, dict[str, str]] = {
    "tests/async/test_manager.py": {"test_emit_with_callback": AS_PUBSUB},
    "tests/common/test_manager.py": {
        "test_emit_with_callback": AS_PUBSUB,
        "test_enter_room_bad_namespace": ELSEWHERE,
    },
    "tests/async/test_pubsub_manager.py": PUBSUB,
    "tests/common/test_pubsub_manager.py": PUBSUB,
    "tests/async/test_admin.py": {},
    "tests/common/test_admin.py": {},
}
"""What fails, and must: by file, the names of tests and why."""


@pytest.fixture(scope="module")
def sources() -> Path:
    """The unpacked source distribution of the installed version."""
    folder = CACHE / f"python_socketio-{VERSION}"
    if not folder.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        wanted = ["--no-deps", "--no-binary", ":all:", "--dest", str(CACHE), f"python-socketio=={VERSION}"]
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", *wanted]
        download = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
        archives = list(CACHE.glob(f"python[-_]socketio-{VERSION}.tar.gz"))
        if not archives:
            pytest.skip(f"the tests of python-socketio {VERSION} cannot be downloaded: {download.stderr.strip()}")
        with tarfile.open(archives[0]) as archive:
            archive.extractall(CACHE, filter="data")
    return folder


def run(sources: Path, database: Database, folder: Path, *tests: str) -> tuple[dict[str, str], str]:
    """Run tests of python-socketio: their outcomes by name, and what was printed."""
    report = folder / "outcomes.json"
    report.unlink(missing_ok=True)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")])),
        "SIO_PG_UPSTREAM_DSN": database.dsn,
        "SIO_PG_UPSTREAM_REPORT": str(report),
    }
    plugins = ["-p", "substitute", "-p", "no:randomly", "-p", "no:cacheprovider", "-p", "no:xdist"]
    command = [sys.executable, "-m", "pytest", *plugins, "-q", "--tb=short", "--timeout=60", *tests]
    with one_at_a_time("upstream"):  # the tests of the Admin UI listen on a fixed port
        ended = subprocess.run(
            command, cwd=sources, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False
        )
    assert report.exists(), ended.stdout + ended.stderr
    outcomes: dict[str, str] = json.loads(report.read_text())
    return outcomes, ended.stdout


@pytest.mark.parametrize("path", EXCEPTIONS)
def test_python_socketio_own_tests(path: str, sources: Path, database: Database, tmp_path: Path) -> None:
    outcomes, output = run(sources, database, tmp_path, path)
    names = {name.rsplit("::", 1)[-1]: outcome for name, outcome in outcomes.items()}
    assert len(names) == len(outcomes), "two tests of one name: the table must tell them apart"

    assert len(names) >= 9, "python-socketio has moved its tests"
    failed = {name for name, outcome in names.items() if outcome != "passed"}
    excepted = set(EXCEPTIONS[path])
    unexpected = [name for name in outcomes if name.rsplit("::", 1)[-1] in failed - excepted]
    for _ in range(CHANCES):
        if unexpected:
            outcomes, output = run(sources, database, tmp_path, *(f"{path}::{name}" for name in unexpected))
            unexpected = [name for name, outcome in outcomes.items() if outcome != "passed"]
    assert not unexpected, output
    assert excepted - failed == set(), "these tests pass, or are gone: take them off the table"
