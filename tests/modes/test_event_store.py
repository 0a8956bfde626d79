"""A blocking event store stops nobody but the greenlet, or the thread, that waits for it."""

from __future__ import annotations

import pytest

from tests.fixtures.database import Database
from tests.fixtures.program import Program

STEPS = [
    "open",
    "store",
    "load",
    "wait for a version",
    "read",
    "wait for an event",
    "wait for a loop",
    "cancel a callback",
    "take over",
    "close",
]
LONG_STEPS = {"wait for a version", "wait for an event", "wait for a loop", "cancel a callback", "take over"}
"""Those that take half a second at least, in which there is time for some fifty beats."""


@pytest.mark.parametrize("mode", ["threading", "gevent", "gevent patched", "eventlet", "eventlet patched"])
async def test_a_heartbeat_goes_on_beside_the_store(mode: str, database: Database) -> None:
    arguments = ["-W", "ignore", "-m", "tests.modes.storekeeper", mode, database.dsn]
    with Program(arguments) as program:
        assert await program.wait(60.0) == 0, program.output
        beats = {name: int(count) for name, count in (line.rsplit(" ", 1) for line in program.output.splitlines())}
    assert list(beats) == STEPS
    assert {name: count for name, count in beats.items() if name in LONG_STEPS and count < 5} == {}
