"""Commands that run in this process are given the time that a busy machine needs."""

from __future__ import annotations

import pytest

from socketio_postgres._cluster._sync import emitter
from socketio_postgres.cli import emit
from tests.fixtures.waiting import TIMEOUT_S


@pytest.fixture(autouse=True)
def _limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The five seconds of users are for PostgreSQL that does not answer."""
    monkeypatch.setattr(emit, "LAST_LIMIT", TIMEOUT_S)
    monkeypatch.setattr(emitter, "CLOSE_LIMIT", TIMEOUT_S)
