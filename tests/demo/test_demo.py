"""`socketio-postgres demo` as somebody uses it: it runs until Ctrl-C, and ends with all that it has started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from tests.fixtures.database import Database
from tests.fixtures.patient_demo import PATIENTLY
from tests.fixtures.program import ROOT, environment
from tests.fixtures.waiting import TIMEOUT_S

DEMO = (sys.executable, "-c", PATIENTLY, "demo")


def test_ctrl_c_ends_it(database: Database) -> None:
    process = subprocess.Popen(
        [*DEMO, "--dsn", database.dsn],
        env=environment(),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509
    )
    try:
        assert process.stdout is not None
        told = []
        for line in process.stdout:
            told.append(line)
            if "Ctrl-C ends it" in line:
                break
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=TIMEOUT_S)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    assert errors == ""
    assert sum(line.split()[-1].startswith("http://127.0.0.1:") for line in told) == 2


def test_its_reader_may_end(database: Database) -> None:
    ended = subprocess.run(
        ["/bin/bash", "-o", "pipefail", "-c", '"$@" | head -n 1', "-", *DEMO, "--check", "--dsn", database.dsn],
        env=environment({"PYTHONPATH": os.environ.get("PYTHONPATH", "")}),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=2 * TIMEOUT_S,
        check=False,
    )
    assert "Traceback" not in ended.stderr
    assert ended.returncode == 0, ended.stderr


def test_no_password_is_shown() -> None:
    ended = subprocess.run(
        [*DEMO, "--check", "--dsn", "postgresql://u:geheim@127.0.0.1:1/d"],
        env=environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=2 * TIMEOUT_S,
        check=False,
    )
    assert ended.returncode == 1
    assert "ended before it was ready" in ended.stderr
    assert "Connection refused" in ended.stderr
    assert "geheim" not in ended.stdout + ended.stderr
