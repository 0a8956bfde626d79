"""What a readiness check calls a problem, and what not."""

from __future__ import annotations

from typing import Any

import pytest

from socketio_postgres.health import problems

WELL: dict[str, Any] = {"state": "listening", "probe_age": 1.0, "echo_age": 0.1, "buffer_count": 3}


@pytest.mark.parametrize(
    "stats",
    [
        {},  # not used yet
        {"peers": {}},  # nor this manager
        WELL,
        {**WELL, "state": "idle", "probe_age": None},  # an emitter
        {**WELL, "probe_age": None},  # not asked yet
        {**WELL, "inbox_age": 30.0},  # just so
        {**WELL, "state": "idle", "inbox_age": 86_400.0},  # an emitter that was told of a failure
        {**WELL, "echo_age": 86_400.0},  # nothing sent all day
        {**WELL, "probe_age": 30.0, "buffer_count": 5000},  # just so
    ],
    ids=str,
)
def test_well(stats: dict[str, Any]) -> None:
    assert problems(stats) == []


@pytest.mark.parametrize(
    ("stats", "words"),
    [
        ({**WELL, "state": "closed"}, "closed"),
        ({**WELL, "state": "connecting"}, "not listening"),
        ({**WELL, "probe_age": 31.0}, "not answered for 31 s"),
        ({**WELL, "buffer_count": 5001}, "5001 messages wait"),
        ({**WELL, "inbox_age": 31.0}, "taken none of the messages that wait for it, for 31 s"),
    ],
)
def test_unwell(stats: dict[str, Any], words: str) -> None:
    (problem,) = problems(stats)
    assert words in problem


def test_all_problems_are_told() -> None:
    assert len(problems({"state": "connecting", "buffer_count": 9999})) == 2


def test_bounds_are_given() -> None:
    assert problems(WELL, max_probe_age=0.5, max_buffer_count=2) != []
    assert len(problems(WELL, max_probe_age=0.5, max_buffer_count=2)) == 2


def test_the_reason_is_told_without_names() -> None:
    outage = {"kind": "DatabaseError", "sqlstate": "28000", "text": 'role "chat" is not permitted', "since": 0.0}
    lost = {"kind": "ConnectionLostError", "sqlstate": None, "text": "connect to db1", "since": 0.0}
    deaf, mute = problems(
        {
            "state": "connecting",
            "listener_outage": outage,
            "listener_outage_seconds": 12.3,
            "buffer_count": 9999,
            "publisher_outage": lost,
            "publisher_outage_seconds": 4.0,
        }
    )
    assert deaf.endswith("(DatabaseError 28000, for 12 s)")
    assert mute.endswith("(ConnectionLostError, for 4 s)")
