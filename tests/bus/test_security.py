"""What SECURITY.md says about roles: which can read and forge what, and what a signing key changes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from tests.fixtures.bus import serving
from tests.fixtures.clients import PythonClient
from tests.fixtures.database import Database
from tests.fixtures.waiting import TIMEOUT_S, eventually

KEY = "a secret that all servers share"


@pytest.fixture
def stranger(database: Database) -> Iterator[Database]:
    """The same database, seen by a role that may connect and has no other right, not even on schema public."""
    role = f"{database.name}_stranger"
    with database.connect() as owner:
        owner.execute(f"REVOKE ALL ON SCHEMA public FROM PUBLIC; CREATE ROLE {role} LOGIN PASSWORD 'x'")
        try:
            yield Database(make_conninfo(database.dsn, user=role, password="x"))
        finally:
            owner.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


def forge(connection: psycopg.Connection, kind: int, **data: Any) -> None:
    """Send a message as a role may that has nothing but the command NOTIFY."""
    message = {"type": kind, "uid": "emitter", "nsp": "/", "data": {"opts": {"rooms": [], "except": []}, **data}}
    connection.execute(f"NOTIFY \"socket.io#/\", '{json.dumps(message)}'")


def hears(connection: psycopg.Connection, what: str) -> str:
    """The notification that holds a text; heartbeats of servers may come before it."""
    return next(notify.payload for notify in connection.notifies(timeout=TIMEOUT_S) if what in notify.payload)


async def test_whoever_may_connect_reads_and_forges(database: Database, stranger: Database) -> None:
    async with serving(database) as server:
        await server.manager.start()
        client = await PythonClient.connect(server.url)
        with database.connect() as owner:
            owner.execute("REVOKE EXECUTE ON FUNCTION pg_notify FROM PUBLIC")  # which prevents nothing
        with stranger.connect() as connection:
            connection.execute('LISTEN "socket.io#/"')
            await server.sio.emit("secret", "for members")
            await server.manager.flush()
            assert hears(connection, "for members")
            forge(connection, 3, packet={"type": 2, "data": ["news", "forged"]})
            assert await client.wait_for("news") == [("forged",)]
            forge(connection, 6, close=True)
            await eventually(lambda: client.disconnects, "the client is thrown out")
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute("SELECT payload FROM public.socket_io_attachments")
        with database.connect() as owner:
            owner.execute(f"REVOKE CONNECT ON DATABASE {database.name} FROM PUBLIC")
        with pytest.raises(psycopg.OperationalError, match="permission denied"):
            stranger.connect()


async def test_with_a_signing_key_he_still_reads_but_is_not_obeyed(database: Database, stranger: Database) -> None:
    async with serving(database, signing_key=KEY) as one, serving(database, signing_key=KEY) as two:
        for server in (one, two):
            await server.manager.start()
        client = await PythonClient.connect(one.url)
        with stranger.connect() as connection:
            connection.execute('LISTEN "socket.io#/"')
            before = one.manager.stats()["bad_signatures"]
            forge(connection, 3, packet={"type": 2, "data": ["news", "forged"]})
            forge(connection, 6, close=True)
            await two.sio.emit("news", "genuine")
            assert await client.wait_for("news") == [("genuine",)]
            assert client.disconnects == []
            assert one.manager.stats()["bad_signatures"] == before + 2
            genuine = hears(connection, "genuine")
            # played again
            connection.execute(f"NOTIFY \"socket.io#/\", '{genuine}'")
            await eventually(lambda: one.manager.stats()["duplicates"] == 1, "the copy is recognised")
        await client.disconnect()
