"""A node needs no python-socketio: two of them, with sockets that are nothing but sets, do what two servers do."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.fixtures.database import Database
from tests.fixtures.program import ROOT, environment


@pytest.mark.parametrize("kind", ["async", "blocking"])
def test_two_nodes_without_python_socketio(database: Database, kind: str) -> None:
    command = [sys.executable, "-m", "tests.cluster.nodes", kind, database.dsn]
    done = subprocess.run(
        command, env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=120.0, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "received": {
            "a": [["to all", 1], ["ask", 7]],
            "b": [["to all", 1], ["to red", 2, {"x": None}], ["call", 8, 9]],
            "c": [["to all", 1], ["ask", 7]],
        },
        "rooms": {"a": ["a", "blue", "red"], "b": ["b"], "c": ["blue", "c"]},
        "answers": [[7, 7], [[8, 9]], [3]],
    }
