"""A `with` block whose connection is refused leaves nothing open behind it."""

from __future__ import annotations

import gc
import warnings
from typing import Any

import pytest

import socketio_postgres
from socketio_postgres import ConnectionLostError

NOBODY = "host=127.0.0.1 port=1"


def left_open() -> list[str]:
    """What is said about objects that nobody closed."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        gc.collect()
    return [str(each.message) for each in told if each.category is ResourceWarning]


@pytest.fixture(autouse=True)
def _left_by_others() -> None:
    """Collect what earlier tests left, which is no concern of these."""
    left_open()


@pytest.mark.parametrize("name", ["PostgresClient", "Emitter", "EventStore", "PostgresManager"])
def test_blocking(name: str) -> None:
    block: Any = getattr(socketio_postgres, name)(NOBODY)
    with pytest.raises(ConnectionLostError), block:
        pass
    del block
    assert left_open() == []


@pytest.mark.parametrize("name", ["AsyncPostgresClient", "AsyncEmitter", "AsyncEventStore", "AsyncPostgresManager"])
async def test_asynchronous(name: str) -> None:
    block: Any = getattr(socketio_postgres, name)(NOBODY)
    with pytest.raises(ConnectionLostError):
        async with block:
            pass
    del block
    assert left_open() == []
