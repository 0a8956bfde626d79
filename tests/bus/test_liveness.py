"""A listening session that goes deaf without an error is noticed and replaced; a given-up flush hides nothing."""

from __future__ import annotations

import os
import signal

import pytest

from socketio_postgres import AsyncEmitter, ConnectionLostError, Emitter, OperationTimeoutError
from tests.fixtures.bus import serving
from tests.fixtures.clients import PythonClient
from tests.fixtures.database import Database
from tests.fixtures.waiting import eventually

LISTENERS = """
    SELECT pid FROM pg_stat_activity
    WHERE datname = current_database() AND query ~ 'LISTEN|pg_listening_channels' AND pid <> pg_backend_pid()
"""


def listener_of(database: Database) -> int:
    pid = database.value(LISTENERS)
    assert isinstance(pid, int)
    return pid


async def test_a_frozen_session_is_replaced(database: Database) -> None:
    """SIGSTOP: the connection stays open and nothing answers any more."""
    server = serving(database, heartbeat_interval=0.2, heartbeat_timeout=1.0)
    async with server as one, AsyncEmitter(database.dsn) as io:
        manager = one.manager
        await manager.start()
        client = await PythonClient.connect(one.server.url)
        frozen = listener_of(database)
        os.kill(frozen, signal.SIGSTOP)
        try:
            await eventually(lambda: manager.stats()["listener_reconnects"] == 1, "listens again", timeout=10)
            await io.emit("after", 1)
            assert await client.wait_for("after") == [(1,)]
        finally:
            os.kill(frozen, signal.SIGCONT)
        await client.disconnect()


async def test_an_idle_session_is_left_alone(database: Database) -> None:
    async with serving(database, heartbeat_interval=0.2, heartbeat_timeout=0.4) as one:
        manager, errors = one.manager, one.errors
        await manager.start()
        session = listener_of(database)

        def is_probed() -> bool:
            query = database.value("SELECT query FROM pg_stat_activity WHERE pid = %s", session)
            return "pg_listening_channels" in str(query)

        await eventually(is_probed, "probed")
        assert listener_of(database) == session
        assert manager.stats()["listener_reconnects"] == 0
        assert errors == []


def test_a_flush_that_was_given_up_hides_no_failure() -> None:
    io = Emitter("host=127.0.0.1 port=1 connect_timeout=1", buffer_age=0.3)
    io.emit("lost")
    with pytest.raises(OperationTimeoutError):
        io.flush(0.05)
    with pytest.raises(ConnectionLostError) as caught:
        io.flush(10)
    assert caught.value.failed_count == 1
    io.close()
