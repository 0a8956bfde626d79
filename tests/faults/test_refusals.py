"""Connections are refused: by rights, limits, poolers and passwords that change while we run, and change back."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from socketio_postgres import (
    AsyncEmitter,
    AsyncEventStore,
    AsyncPostgresClient,
    CommitInDoubtError,
    DatabaseError,
    Event,
    OperationTimeoutError,
)
from socketio_postgres.health import problems
from socketio_postgres.stats import Outage
from tests.fixtures.bus import BusReader, knows_that_its_session_ended, serving
from tests.fixtures.database import Database
from tests.fixtures.pgbouncer import PgBouncer
from tests.fixtures.postgres import OwnPostgres
from tests.fixtures.proxy import Proxy
from tests.fixtures.waiting import TIMEOUT_S, eventually

ROLE = "refused"
SECRET = "s3cret-of-the-role"
ATTEMPTS_S = 1.5
"""Long enough for four attempts and more: the delays begin with a tenth of a second."""


@pytest.fixture
def role(database: Database) -> Iterator[Database]:
    """The database as a role of its own sees it, to be refused."""
    with database.connect() as admin:
        admin.execute(f"CREATE ROLE {ROLE} LOGIN PASSWORD '{SECRET}'")
        admin.execute(f'GRANT ALL ON DATABASE "{database.name}" TO {ROLE}')
        admin.execute(f"GRANT ALL ON SCHEMA public TO {ROLE}")
    yield Database(make_conninfo(database.dsn, user=ROLE, password=SECRET))
    with database.connect() as admin:
        end_sessions(admin)
        admin.execute(f"DROP OWNED BY {ROLE}")
        admin.execute(f"DROP ROLE {ROLE}")


def end_sessions(admin: psycopg.Connection) -> None:
    admin.execute(f"SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = '{ROLE}'")


@contextmanager
def altered(database: Database, refuse: str, allow: str) -> Iterator[None]:
    """Refuse the role inside the block, and end the sessions it has."""
    with database.connect() as admin:
        admin.execute(refuse)
        end_sessions(admin)
        try:
            yield
        finally:
            admin.execute(allow)


NO_LOGIN = (f"ALTER ROLE {ROLE} NOLOGIN", f"ALTER ROLE {ROLE} LOGIN")


async def test_what_is_buffered_waits(database: Database, role: Database) -> None:
    async with BusReader(database) as reader, AsyncEmitter(role.dsn) as io:
        await io.emit("n", -1)
        with altered(database, *NO_LOGIN):
            await knows_that_its_session_ended(io._bus)
            waiting = [asyncio.create_task(io.emit("n", number)) for number in range(500)]
            await eventually(lambda: _is_refused(io.stats()["publisher_outage"], "28000"), "it is refused")
            await asyncio.sleep(ATTEMPTS_S)
            outage = _present(io.stats()["publisher_outage"])
            assert (outage["kind"], outage["sqlstate"]) == ("DatabaseError", "28000")
            assert "not permitted to log in" in outage["text"]
            assert SECRET not in outage["text"]
            assert io.stats()["publisher_outage_seconds"] == pytest.approx(time.time() - outage["since"], abs=5)
            assert io.stats()["buffer_count"] == 500
        await asyncio.gather(*waiting)
        assert await reader.wait_for(501) == [["n", number] for number in range(-1, 500)]
        await eventually(lambda: io.stats()["publisher_outage"] is None, "the outage has ended")
        assert [io.stats()[key] for key in ("publish_failed", "publisher_outage_seconds")] == [0, None]


async def test_not_longer_than_their_age(database: Database, role: Database) -> None:
    async with AsyncEmitter(role.dsn, buffer_age=3) as io:
        await io.emit("first")
        with altered(database, *NO_LOGIN):
            await knows_that_its_session_ended(io._bus)
            with pytest.raises(DatabaseError) as refused:
                await io.emit("late")
            assert refused.value.sqlstate == "28000"
        await io.emit("after")


async def test_a_server_goes_on_and_says_why_once(
    database: Database, role: Database, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "socketio_postgres")
    # No heartbeat is under way when the sessions end: what became of it would be in doubt.
    server = serving(role, heartbeat_interval=30.0, heartbeat_timeout=60.0)
    async with server as one, BusReader(database) as reader:
        await one.manager.start()
        await one.sio.emit("before")
        await reader.wait_for(1)
        await one.manager.flush()  # and the server knows that it is committed
        with altered(database, *NO_LOGIN):
            await knows_that_its_session_ended(one.manager._node._bus)
            for number in range(100):
                await one.sio.emit("n", number)
            both = ("listener_outage", "publisher_outage")
            await eventually(lambda: _are_refused(one.manager.stats(), *both), "both are refused")
            await asyncio.sleep(ATTEMPTS_S)
            assert _are_refused(one.manager.stats(), *both), "and still are"
            found = " ".join(problems(one.manager.stats(), max_buffer_count=10))
            assert "DatabaseError 28000" in found
            assert ROLE not in found, "whoever asks for readiness is told no names"
        await eventually(lambda: one.manager.stats()["is_listening"], "it listens again")
        await one.manager.flush()
        await reader.wait_for(101)
        await eventually(lambda: problems(one.manager.stats()) == [], "all is well")
        assert one.manager.stats()["publish_failed"] == 0
        texts = [record.getMessage() for record in caplog.records]
        refusals = [text for text in texts if "28000" in text]
        assert len(refusals) == 2, "the publisher's and the listener's, and not one for each attempt"
        assert not any(SECRET in text for text in texts)


def _are_refused(stats: Mapping[str, Any], *keys: str) -> bool:
    return all(_is_refused(stats[key], "28000") for key in keys)


def _is_refused(outage: Outage | None, sqlstate: str) -> bool:
    return outage is not None and outage["sqlstate"] == sqlstate


def _present(outage: Outage | None) -> Outage:
    assert outage is not None
    return outage


async def test_whoever_waits_for_a_channel_waits_on(database: Database, role: Database) -> None:
    async with AsyncPostgresClient(role.dsn) as client:
        await client.listen("one")
        with altered(database, *NO_LOGIN):
            await eventually(lambda: client.stats()["listener_outage"], "it is refused")
            two = asyncio.create_task(client.listen("two"))
            await asyncio.sleep(ATTEMPTS_S)
            assert not two.done()
        await asyncio.wait_for(two, TIMEOUT_S)
        with database.connect() as connection:
            connection.execute("NOTIFY two, 'arrives'")
        assert (await client.wait_for_notification(TIMEOUT_S)).payload == "arrives"


async def test_subscriptions_go_on(database: Database, role: Database, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "socketio_postgres")
    told: list[Exception] = []
    async with AsyncEventStore(database.dsn) as writer:
        await writer.store(Event("T", "a", 0))
        with database.connect() as admin:
            admin.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {ROLE}")
            admin.execute(f"GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {ROLE}")
        options: dict[str, Any] = {"stall_warning": 0.2, "error_handler": told.append}
        async with AsyncEventStore(role.dsn, **options) as store, store.subscribe() as live:
            assert (await live.next(TIMEOUT_S)).data == 0
            await eventually(lambda: store.stats()["is_listening"], "it listens")
            with altered(database, *NO_LOGIN):
                waiting = asyncio.create_task(live.next(3 * TIMEOUT_S))
                await writer.store(Event("T", "a", 1))
                await eventually(lambda: _are_refused(store.stats(), "listener_outage", "reader_outage"), "both are")
                await asyncio.sleep(ATTEMPTS_S)
                assert _are_refused(store.stats(), "listener_outage", "reader_outage"), "and still are"
                assert (store.stats()["reader_outage_seconds"] or 0.0) >= ATTEMPTS_S / 2
                with pytest.raises(DatabaseError) as refused:
                    await store.store(Event("T", "a", "refused"))
                assert refused.value.sqlstate == "28000", "not in doubt: it was never sent"
            assert (await waiting).data == 1
            await eventually(lambda: store.stats()["is_listening"], "it listens again")
            await eventually(lambda: store.stats()["listener_outage"] is None, "it has ended")
            await eventually(lambda: store.stats()["reader_outage"] is None, "this one, too")
    refusals = [text for text in (record.getMessage() for record in caplog.records) if "28000" in text]
    assert len(refusals) == 2, "listening and reading, and not one for each attempt"
    assert [getattr(error, "sqlstate", "") for error in told].count("28000") == 2
    assert SECRET not in caplog.text


async def test_a_store_whose_commit_is_in_doubt_is_told_so(database: Database, role: Database) -> None:
    """That connections are refused afterwards does not answer what became of it; nor does closing."""
    async with AsyncEventStore(role.dsn) as store:
        await store.store(Event("T", "a", 0))
        with database.connect() as other, other.transaction():
            other.execute("LOCK TABLE events")
            storing = asyncio.create_task(store.store(Event("T", "a", 1)))
            await eventually(lambda: _waits_for_a_lock(database), "it is under way")
            with altered(database, *NO_LOGIN):
                await asyncio.sleep(ATTEMPTS_S)
                assert not storing.done(), "it is still asked for"
                await store.close()
                with pytest.raises(CommitInDoubtError, match=r"28000|closed"):
                    await storing


def _waits_for_a_lock(database: Database) -> bool:
    return bool(
        database.value(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND wait_event_type = 'Lock'", database.name
        )
    )


async def test_a_store_that_cannot_connect_in_time_has_sent_nothing(database: Database) -> None:
    """It has no connection left that it might still believe to be there."""
    with Proxy(database) as proxy:
        dsn = make_conninfo(proxy.dsn, connect_timeout=9)
        async with AsyncEventStore(dsn, answer_timeout=8, max_idle_conns=0) as store:
            await store.store(Event("T", "a", 0))
            await eventually(lambda: not proxy.links, "all are closed")
            trap = proxy.swallow_from(b"user\0", count=float("inf"))
            with pytest.raises(OperationTimeoutError, match="connect"):
                await store.store(Event("T", "a", 1))
            assert len(trap.caught) <= 2, "a second attempt is enough: there is nothing to be asked for"


async def test_a_subscription_ends_after_as_many_attempts_as_it_was_given(database: Database, role: Database) -> None:
    few: dict[str, Any] = {"max_reconnect_attempts": 2, "reconnect_interval": 0.1}
    async with AsyncEventStore(role.dsn, **few) as store, store.subscribe() as live:
        await store.store(Event("T", "a", 0))
        await live.next(TIMEOUT_S)
        await eventually(lambda: store.stats()["is_listening"], "it listens")
        with altered(database, *NO_LOGIN), pytest.raises(DatabaseError):
            await live.next(60)


CHANGES = {
    "the limit of connections": (
        f"ALTER ROLE {ROLE} CONNECTION LIMIT 0",
        f"ALTER ROLE {ROLE} CONNECTION LIMIT -1",
        "53300",
    ),
    "the right to connect": (
        'REVOKE CONNECT ON DATABASE "{name}" FROM PUBLIC, refused',
        'GRANT CONNECT ON DATABASE "{name}" TO PUBLIC, refused',
        "42501",
    ),
    "the database's name": (None, None, "3D000"),
}


@pytest.mark.parametrize("change", CHANGES)
async def test_whatever_the_reason(database: Database, role: Database, change: str) -> None:
    refuse, allow, sqlstate = CHANGES[change]
    async with AsyncPostgresClient(role.dsn) as client, AsyncEmitter(role.dsn) as io:
        await client.listen("news")
        await io.emit("first")
        if refuse is None or allow is None:
            block: Any = _renamed(database)
        else:
            block = altered(database, refuse.format(name=database.name), allow.format(name=database.name))
        with block:
            await knows_that_its_session_ended(io._bus)
            waiting = asyncio.create_task(io.emit("second"))
            await eventually(lambda: _is_refused(io.stats()["publisher_outage"], sqlstate), "publishing is refused")
            await eventually(lambda: _is_refused(client.stats()["listener_outage"], sqlstate), "listening, too")
            assert not waiting.done()
        await waiting
        await eventually(lambda: client.stats()["is_listening"], "it listens again")


@contextmanager
def _renamed(database: Database) -> Iterator[None]:
    """As if it had been dropped, and created anew."""
    other = Database(make_conninfo(database.dsn, dbname="postgres"))
    with other.connect() as admin:
        admin.execute(f'ALTER DATABASE "{database.name}" ALLOW_CONNECTIONS false')
        _rename(admin, database.name, "elsewhere")
        try:
            yield
        finally:
            _rename(admin, "elsewhere", database.name)
            admin.execute(f'ALTER DATABASE "{database.name}" ALLOW_CONNECTIONS true')


def _rename(admin: psycopg.Connection, name: str, other: str) -> None:
    """Rename a database, again until all sessions have ended: PostgreSQL itself waits for five seconds."""
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        end_sessions(admin)
        try:
            admin.execute(f'ALTER DATABASE "{name}" RENAME TO "{other}"')
        except psycopg.errors.ObjectInUse:
            if time.monotonic() > deadline:
                raise
        else:
            return


async def test_a_password_that_was_rotated(postgres: OwnPostgres, database: Database, role: Database) -> None:
    """Those who have the old one wait for the new one, which a function gives them."""
    passwords = [SECRET]
    with _asking_for_passwords(postgres):
        async with AsyncEmitter(role.dsn, password=lambda: passwords[0]) as io:
            await io.emit("first")
            with altered(database, f"ALTER ROLE {ROLE} PASSWORD 'another'", "SELECT 1"):
                await knows_that_its_session_ended(io._bus)
                waiting = asyncio.create_task(io.emit("second"))
                await eventually(lambda: _is_refused(io.stats()["publisher_outage"], "28P01"), "it is refused")
                passwords[0] = ""
                await eventually(
                    lambda: "empty string" in _present(io.stats()["publisher_outage"])["text"],
                    "a function that gives none",
                )
                assert _present(io.stats()["publisher_outage"])["kind"] == "ConnectionLostError"
                passwords[0] = "another"
                await waiting


@contextmanager
def _asking_for_passwords(postgres: OwnPostgres) -> Iterator[None]:
    hba = Path(postgres.data_dir) / "pg_hba.conf"
    before = hba.read_text()
    hba.write_text(f"host all {ROLE} all scram-sha-256\n{before}")
    try:
        postgres.database.value("SELECT pg_reload_conf()")
        yield
    finally:
        hba.write_text(before)
        postgres.database.value("SELECT pg_reload_conf()")


async def test_a_pooler_that_is_full(database: Database, pgbouncer_program: str) -> None:
    """PgBouncer refuses with a code of its own."""
    with PgBouncer(pgbouncer_program, database, "session", max_clients=1) as pooler:
        async with AsyncEmitter(pooler.dsn) as io, BusReader(database) as reader:
            await io.emit("first")
            pooler.stop()
            pooler.start()
            with psycopg.connect(pooler.dsn):
                await knows_that_its_session_ended(io._bus)
                waiting = asyncio.create_task(io.emit("second"))
                await eventually(lambda: io.stats()["publisher_outage"], "it is refused")
                assert "no more connections allowed" in _present(io.stats()["publisher_outage"])["text"]
                assert not waiting.done()
            await waiting
            assert await reader.wait_for(2) == [["first"], ["second"]]


# ------------------------------------------------------------------------------------------------ never connected


async def test_what_is_refused_from_the_start_is_told_at_once(database: Database, role: Database) -> None:
    with altered(database, *NO_LOGIN):
        async with serving(role) as one:
            with pytest.raises(DatabaseError) as refused:
                await one.manager.start()
            assert refused.value.sqlstate == "28000"
        client = AsyncPostgresClient(role.dsn)
        with pytest.raises(DatabaseError):
            await asyncio.wait_for(client.listen("news"), TIMEOUT_S)
        await client.close()
        io = AsyncEmitter(role.dsn, buffer_age=3600)
        with pytest.raises(DatabaseError):
            await asyncio.wait_for(io.emit("never"), TIMEOUT_S)
        await io.close()
        with pytest.raises(DatabaseError):
            async with AsyncEventStore(role.dsn):
                pass


async def test_logins_that_are_refused_do_not_follow_one_another_at_once(database: Database, role: Database) -> None:
    """However many messages come: a directory may lock the account, and every login costs the server a process."""
    logins: list[None] = []

    def password() -> str:
        logins.append(None)
        return SECRET

    with altered(database, *NO_LOGIN):
        io = AsyncEmitter(role.dsn, password=password)
        ends = []
        until = time.monotonic() + 2.0
        while time.monotonic() < until or len(logins) < 2:
            ends.append(asyncio.create_task(io.emit("refused")))
            await asyncio.sleep(0.005)
        assert 2 <= len(logins) <= 8, "0.1 s, 0.2 s, 0.4 s, …"
        results = await asyncio.gather(*ends, return_exceptions=True)
        assert {type(result) for result in results} == {DatabaseError}
        await io.close()


async def test_closing_does_not_wait_for_the_next_attempt(database: Database, role: Database) -> None:
    """One try of five is enough: if it waited, each would take 1.6 s at least. A busy machine rarely does so."""
    took: list[float] = []
    with altered(database, *NO_LOGIN):
        while not took or (took[-1] >= 1.0 and len(took) < 5):
            io = AsyncEmitter(role.dsn)
            for _ in range(6):  # until the pauses are long
                with pytest.raises(DatabaseError):
                    await io.emit("refused")
            began = time.monotonic()
            await io.flush()
            await io.close()
            took.append(time.monotonic() - began)
    assert min(took) < 1.0
