"""What docs/flask-socketio.md says about Flask-SocketIO."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date

import flask
import pytest
from flask_socketio import SocketIO  # type: ignore[import-untyped]

from socketio_postgres import PostgresManager
from tests.fixtures.database import Database
from tests.fixtures.spy import spying


@contextmanager
def manager(dsn: str, *, write_only: bool = False) -> Iterator[PostgresManager]:
    mgr = PostgresManager(dsn, write_only=write_only)
    try:
        yield mgr
    finally:
        mgr.close()


async def test_its_json_is_used_and_needs_no_context(database: Database) -> None:
    async with spying(database) as spy:
        with manager(database.dsn) as mgr:
            sio = SocketIO(flask.Flask("app"), client_manager=mgr, json=flask.json, async_mode="threading")
            await asyncio.to_thread(sio.emit, "event", date(2026, 1, 2))
            [frame] = await spy.wait_for_broadcast("event")
            await asyncio.to_thread(mgr.close)
    assert frame.message["data"]["packet"]["data"] == ["event", "Fri, 02 Jan 2026 00:00:00 GMT"]


def test_the_manager_wins_over_the_queue(database: Database) -> None:
    with manager(database.dsn) as mgr:
        queue = "postgresql://app@127.0.0.1/app"
        sio = SocketIO(flask.Flask("app"), client_manager=mgr, message_queue=queue, async_mode="threading")
        assert sio.server.manager is mgr


def test_without_an_app_nothing_is_set_up(database: Database) -> None:
    with manager(database.dsn) as mgr, pytest.raises(AttributeError):
        SocketIO(client_manager=mgr).emit("event", 1)


def test_a_write_only_manager_refuses_callbacks(database: Database) -> None:
    with manager(database.dsn, write_only=True) as mgr:
        sio = SocketIO(flask.Flask("app"), client_manager=mgr, async_mode="threading")
        with pytest.raises(RuntimeError, match="a callback needs a server"):
            sio.emit("event", 1, to="room", callback=print)
