"""A listening session that goes deaf without an error is noticed and replaced; a given-up flush hides nothing."""

from __future__ import annotations

import pytest

from socketio_postgres import AsyncEmitter, ConnectionLostError, Emitter, OperationTimeoutError
from tests.fixtures.bus import serving
from tests.fixtures.clients import PythonClient
from tests.fixtures.database import Database
from tests.fixtures.postgres import LISTENS, frozen_session, sessions, the_session
from tests.fixtures.waiting import TIMEOUT_S, eventually

STATE = "SELECT state FROM pg_stat_activity WHERE pid = %s"


async def test_a_frozen_session_is_replaced(database: Database) -> None:
    """SIGSTOP: the connection stays open and nothing answers any more."""
    server = serving(database, heartbeat_interval=2.0, heartbeat_timeout=4.0)
    async with server as one, AsyncEmitter(database.dsn) as io:
        manager = one.manager
        await manager.start()
        client = await PythonClient.connect(one.server.url)
        with frozen_session(database, LISTENS):
            await eventually(lambda: manager.stats()["listener_reconnects"], "listens again")

            async def arrives() -> bool:
                await io.emit("after", 1)  # again, because the next session is replaced as well if it is starved
                return bool(client.received("after"))

            await eventually(arrives, "it hears again", poll=0.2)
            assert set(client.received("after")) == {(1,)}
        await client.disconnect()


async def test_an_idle_session_is_left_alone(database: Database) -> None:
    async with serving(database) as one:
        manager, errors = one.manager, one.errors
        await manager.start()
        session = await the_session(database, LISTENS)
        began = "SELECT extract(epoch FROM query_start) FROM pg_stat_activity WHERE pid = %s"
        before = database.value(began, session)
        await eventually(lambda: database.value(began, session) != before, "it is probed", timeout=2 * TIMEOUT_S)
        await eventually(lambda: database.value(STATE, session) == "idle", "it has answered")
        assert sessions(database, LISTENS) == [session]
        assert manager.stats()["listener_reconnects"] == 0
        assert errors == []


def test_a_flush_that_was_given_up_hides_no_failure() -> None:
    io = Emitter("host=127.0.0.1 port=1 connect_timeout=1", buffer_age=10)
    io.emit("lost")
    with pytest.raises(OperationTimeoutError):
        io.flush(0.05)
    with pytest.raises(ConnectionLostError) as caught:
        io.flush(TIMEOUT_S)
    assert caught.value.failed_count == 1
    io.close()
