"""Emitting in the user's own transaction: delivered if and only if it commits, with every library."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import msgpack
import psycopg
import psycopg2.pool
import pytest
import sqlalchemy
from psycopg_pool import AsyncConnectionPool
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from socketio_postgres import (
    AsyncEmitter,
    AsyncPostgresManager,
    ClosedError,
    Emitter,
    EncodeError,
    OptionsError,
    PayloadTooLargeError,
    PostgresManager,
)
from socketio_postgres.cli import main
from tests.fixtures.bus import BusReader
from tests.fixtures.database import Database, new_database
from tests.fixtures.spy import Spy, spying
from tests.fixtures.user_transactions import (
    ASYNC,
    SYNC,
    AsyncTransaction,
    GivenUpError,
    Transaction,
    django_atomic,
    django_connection,
)
from tests.fixtures.waiting import eventually, nothing_arrives

FENCE = "fence"
DOCUMENT = (Path(__file__).parents[2] / "docs" / "emit-with-your-data.md").read_text()


@pytest.fixture
async def io(database: Database) -> AsyncIterator[AsyncEmitter]:
    emitter = AsyncEmitter(database.dsn)
    yield emitter
    await emitter.close()


@pytest.fixture(params=ASYNC)
def transaction(request: pytest.FixtureRequest) -> AsyncTransaction:
    return ASYNC[request.param]


@pytest.fixture(params=SYNC)
def blocking(request: pytest.FixtureRequest) -> Transaction:
    return SYNC[request.param]


async def arrived(reader: BusReader, io: AsyncEmitter, nsp: str = "/") -> list[list[Any]]:
    """Every packet of a namespace that was committed before now."""

    def fences() -> int:
        return len([message for message in reader.messages if message.nsp == nsp and message.packet() == [FENCE]])

    before = fences()
    await io.of(nsp).emit(FENCE)
    await eventually(lambda: fences() > before, "the fence arrives")
    packets = [message.packet() for message in reader.messages if message.nsp == nsp and message.has_packet]
    return [packet for packet in packets if packet != [FENCE]]


BINARY = bytes(range(256)) * 40


# ------------------------------------------------------------------------------------- every library and its modes


async def test_a_commit_delivers_and_a_rollback_does_not(
    database: Database, io: AsyncEmitter, transaction: AsyncTransaction
) -> None:
    text = "100 %s :name ::x '\"\\ é 日本 😀 \u0000"
    async with BusReader(database, ["/", "/shop"]) as reader:
        with contextlib.suppress(GivenUpError):
            async with transaction(database) as conn:
                await io.in_transaction(conn).emit("lost", 1)
                await io.in_transaction(conn).emit("lost", BINARY)
                await io.in_transaction(conn).emit_many([("lost", 2), ("lost", 3)])
                raise GivenUpError
        async with transaction(database) as conn:
            chain = io.in_transaction(conn)
            await chain.to("order-7").emit("paid", {"id": 7, "text": text})
            await chain.of("/shop").except_(["a", 1]).volatile.compress(False).emit("x")
            await chain.emit("large", text * 1000)
            await chain.emit_many([("many", 1), ("many", BINARY), ("many", text), ("many", 4)])
            await chain.to([]).emit("nobody")
            await chain.to("a").sockets_join(["b", "c"])
            await chain.to("a").sockets_leave("b")
            await chain.except_("a").disconnect_sockets(close=True)
            await chain.server_side_emit("servers", 1, text)
            await nothing_arrives()
            assert reader.messages == []
        assert await arrived(reader, io) == [
            ["paid", {"id": 7, "text": text}],
            ["large", text * 1000],
            *[["many", 1], ["many", BINARY], ["many", text], ["many", 4]],
            ["servers", 1, text],
        ]
        assert await arrived(reader, io, "/shop") == [["x"]]
    assert {message.uid for message in reader.messages} == {"emitter"}
    [flagged, _] = [message for message in reader.messages if message.nsp == "/shop"]
    [paid, *messages, _] = [message for message in reader.messages if message.nsp == "/"]
    assert (paid.to, paid.volatile, paid.compress) == (["order-7"], False, None)
    assert (flagged.nsp, flagged.to, flagged.except_) == ("/shop", [], ["a", "1"])
    assert (flagged.volatile, flagged.compress) == (True, False)
    assert [(m.type, m.to, m.except_, m.rooms, m.close) for m in messages[-4:]] == [
        (4, ["a"], [], ["b", "c"], False),
        (5, ["a"], [], ["b"], False),
        (6, [], ["a"], [], True),
        (9, [], [], [], False),
    ]
    assert reader.gap_infos == []
    assert reader.failures == []


async def test_the_same_from_threads(database: Database, io: AsyncEmitter, blocking: Transaction) -> None:
    text = "100 %s :name ::x '\"\\ é 日本 😀"

    def work() -> None:
        with Emitter(database.dsn) as emitter:
            with contextlib.suppress(GivenUpError), blocking(database) as conn:
                emitter.in_transaction(conn).emit("lost")
                emitter.in_transaction(conn).emit("lost", BINARY)
                raise GivenUpError
            with blocking(database) as conn:
                chain = emitter.in_transaction(conn)
                chain.to("order-7").emit("paid", {"id": 7, "text": text})
                chain.emit_many([("many", 1), ("many", BINARY), ("many", text)])
                chain.to("a").sockets_join("b")
                chain.of("/shop").server_side_emit("servers", text)

    async with BusReader(database, ["/", "/shop"]) as reader:
        await asyncio.to_thread(work)
        assert await arrived(reader, io) == [
            ["paid", {"id": 7, "text": text}],
            *[["many", 1], ["many", BINARY], ["many", text]],
        ]
        assert await arrived(reader, io, "/shop") == [["servers", text]]
    [join] = [message for message in reader.messages if message.type == 4]
    assert (join.to, join.rooms) == (["a"], ["b"])
    assert reader.gap_infos == []


async def test_managers_have_it_too(database: Database, io: AsyncEmitter) -> None:
    """With and without a server; the message comes from no server, or its own listener would drop it."""

    def work() -> None:
        manager = PostgresManager(database.dsn, write_only=True)
        with psycopg.connect(database.dsn) as conn:
            manager.in_transaction(conn).to("a").emit("blocking", (1, 2), None)
        manager.close()

    async with AsyncPostgresManager(database.dsn) as manager, BusReader(database) as reader:
        async with await psycopg.AsyncConnection.connect(database.dsn) as conn:
            await manager.in_transaction(conn).to("a").emit("asyncio", (1, 2), None)
            sql, values = manager.to("a").statement("statement", BINARY)
            await conn.execute(sql, values)
        await asyncio.to_thread(work)
        packets = await arrived(reader, io)
    assert packets == [["asyncio", [1, 2], None], ["statement", BINARY], ["blocking", [1, 2], None]]
    # The manager's own messages are heartbeats.
    assert {message.uid for message in reader.messages if message.has_packet} == {"emitter"}


async def test_sessions_of_sqlalchemy_inside_run_sync(database: Database, io: AsyncEmitter) -> None:
    """A blocking session on an asyncio driver, as in an application that is moving."""
    engine = create_async_engine(database.url.replace("postgresql://", "postgresql+asyncpg://"))
    emitter = Emitter(database.dsn)
    async with BusReader(database) as reader:
        async with AsyncSession(engine) as session, session.begin():
            await session.run_sync(lambda inner: emitter.in_transaction(inner).emit("inner", 1))
        assert await arrived(reader, io) == [["inner", 1]]
    emitter.close()
    await engine.dispose()


# ------------------------------------------------------------------------------------------------- transactions


async def test_savepoints(database: Database, io: AsyncEmitter) -> None:
    async with BusReader(database) as reader, await psycopg.AsyncConnection.connect(database.dsn) as conn:
        await io.in_transaction(conn).emit("e", 1)
        with contextlib.suppress(GivenUpError):
            async with conn.transaction():
                await io.in_transaction(conn).emit("e", 2)
                await io.in_transaction(conn).emit("e", BINARY)
                raise GivenUpError
        async with conn.transaction():
            await io.in_transaction(conn).emit("e", 3)
        await conn.commit()
        assert await arrived(reader, io) == [["e", 1], ["e", 3]]


async def test_equal_messages_arrive_as_often_as_they_were_emitted(database: Database, io: AsyncEmitter) -> None:
    async with BusReader(database) as reader, await psycopg.AsyncConnection.connect(database.dsn) as conn:
        for _ in range(20):
            await io.in_transaction(conn).to("a").emit("tick")
        await io.in_transaction(conn).to("a").emit_many([("tick",)] * 600)
        sql, values = io.to("a").statement("tick")
        await conn.execute(sql, values)
        await io.in_transaction(conn).to("a").emit_many([("tick", b"x")] * 3)
        await conn.commit()
        assert await arrived(reader, io) == [["tick"]] * 621 + [["tick", b"x"]] * 3


async def test_a_killed_session_and_a_commit_that_fails_deliver_nothing(database: Database, io: AsyncEmitter) -> None:
    with database.connect() as admin:
        admin.execute("CREATE TABLE parents (id int PRIMARY KEY)")
        admin.execute(
            "CREATE TABLE children (parent int REFERENCES parents DEFERRABLE INITIALLY DEFERRED)",
        )
        async with BusReader(database) as reader:
            killed = await psycopg.AsyncConnection.connect(database.dsn)
            await io.in_transaction(killed).emit("lost", 1)
            await io.in_transaction(killed).emit("lost", BINARY)
            admin.execute("SELECT pg_terminate_backend(%s)", [killed.info.backend_pid])
            with pytest.raises(psycopg.OperationalError):
                await killed.commit()
            await killed.close()
            async with await psycopg.AsyncConnection.connect(database.dsn) as conn:
                await conn.execute("INSERT INTO children VALUES (1)")
                await io.in_transaction(conn).emit("lost", 2)
                with pytest.raises(psycopg.errors.ForeignKeyViolation):
                    await conn.commit()
                await io.in_transaction(conn).emit("kept")
            assert await arrived(reader, io) == [["kept"]]
        assert admin.execute("SELECT count(*) FROM socket_io_attachments").fetchone() == (0,)


async def test_order_is_that_of_commits_and_calls(database: Database, io: AsyncEmitter) -> None:
    """An attachment is overtaken by nothing."""
    async with (
        BusReader(database) as reader,
        await psycopg.AsyncConnection.connect(database.dsn) as one,
        await psycopg.AsyncConnection.connect(database.dsn) as two,
    ):
        for number in range(3):
            await io.in_transaction(one).emit("one", number)
            await io.in_transaction(two).emit("two", number)
            await io.in_transaction(two).emit("two", BINARY)
        await two.commit()
        await one.commit()
        expected = [["two", each] for number in range(3) for each in (number, BINARY)]
        assert await arrived(reader, io) == expected + [["one", number] for number in range(3)]


async def test_the_users_settings_stay_as_they_are(database: Database, io: AsyncEmitter) -> None:
    """Above all `synchronous_commit`: their commit must not become volatile."""
    names = ("synchronous_commit", "search_path", "transaction_isolation", "role", "application_name", "timezone")
    asked = "SELECT " + ", ".join(f"current_setting('{name}')" for name in names)
    async with await psycopg.AsyncConnection.connect(database.dsn) as conn:
        await conn.execute("SET synchronous_commit = on")
        await conn.execute("CREATE SCHEMA mine; SET search_path = mine, public")
        await conn.commit()
        await conn.set_isolation_level(psycopg.IsolationLevel.SERIALIZABLE)
        before = await (await conn.execute(asked)).fetchone()
        every = "SELECT name, setting FROM pg_settings WHERE name <> 'transaction_deferrable' ORDER BY name"
        all_before = await (await conn.execute(every)).fetchall()
        await io.in_transaction(conn).emit("small")
        await io.in_transaction(conn).emit("binary", BINARY)
        await io.in_transaction(conn).emit_many([("many",), ("many", BINARY)])
        assert await (await conn.execute(asked)).fetchone() == before
        assert await (await conn.execute(every)).fetchall() == all_before
        assert before is not None
        assert before[0] == "on"


async def test_no_gap_is_reported_for_a_rollback(database: Database, io: AsyncEmitter) -> None:
    """A thousand of them, between messages of the same emitter that are numbered."""
    async with (
        BusReader(database, heartbeat_timeout=60.0) as reader,
        await psycopg.AsyncConnection.connect(database.dsn) as conn,
    ):
        for number in range(1000):
            await io.in_transaction(conn).emit("lost", number)
            await conn.rollback()
            if number % 100 == 0:
                await io.emit("kept", number)
                await io.in_transaction(conn).emit("kept too", number)
                await conn.commit()
        packets = await arrived(reader, io)
        stats = reader.stats
    assert packets == [[name, number] for number in range(0, 1000, 100) for name in ("kept", "kept too")]
    assert (stats["gaps"], stats["missing_messages"], stats["duplicates"]) == (0, 0, 0)
    assert reader.gap_infos == []


# -------------------------------------------------------------------------------------------------- attachments


async def test_attachments_outlive_a_long_transaction(database: Database, io: AsyncEmitter) -> None:
    """Clean-ups delete what is older than an interval, Node's also by `now() - created_at`, which is when it began."""
    megabyte = bytes(range(250)) * 4000
    async with BusReader(database) as reader, await psycopg.AsyncConnection.connect(database.dsn) as conn:
        await io.in_transaction(conn).emit("before")  # the transaction is open from now on
        await conn.execute("SELECT pg_sleep(1.5)")
        await io.in_transaction(conn, longest=300).emit("binary", megabyte)
        async with reader.paused():  # the row is not read before the clean-up
            await conn.execute("SELECT pg_sleep(1.5)")
            await conn.commit()
            core = io._bus.core
            removed = await io._bus.call(lambda inbox, token: core.expire_attachments(1.0, inbox, token))
            assert removed == 0
        assert await arrived(reader, io) == [["before"], ["binary", megabyte]]
    left = database.value("SELECT extract(epoch FROM created_at - now()) FROM socket_io_attachments")
    assert 200 < float(str(left)) < 300


async def test_the_attachment_table_need_not_be_there_nor_on_the_search_path(database: Database) -> None:
    async with (
        AsyncEmitter(database.dsn, table_name='"Our Own"') as io,
        BusReader(database, table_name='"Our Own"') as reader,
        await psycopg.AsyncConnection.connect(database.dsn) as conn,
    ):
        await conn.execute('CREATE SCHEMA other; CREATE TABLE other."Our Own" (id int); SET search_path = other')
        await io.in_transaction(conn).emit("binary", BINARY)
        await conn.commit()
        assert await arrived(reader, io) == [["binary", BINARY]]
        # Somebody drops it: the next one fails, with PostgreSQL's own error, and the one after it finds a new table.
        with database.connect() as admin:
            admin.execute('DROP TABLE public."Our Own"')
        with pytest.raises(psycopg.errors.UndefinedTable):
            await io.in_transaction(conn).emit("binary", BINARY)
        await conn.rollback()
        await io.in_transaction(conn).emit("binary", b"again")
        await conn.commit()
        assert (await arrived(reader, io))[1:] == [["binary", b"again"]]


async def test_a_signed_cluster(database: Database) -> None:
    key = "secret of all servers"
    async with (
        AsyncEmitter(database.dsn, signing_key=key) as io,
        BusReader(database, signing_key=key) as reader,
        await psycopg.AsyncConnection.connect(database.dsn) as conn,
    ):
        await io.in_transaction(conn).to("é").emit("small", "é")
        await io.in_transaction(conn).emit_many([("many", 1), ("many", BINARY)])
        sql, values = io.statement("statement", "日本" * 3000)
        await conn.execute(sql, values)
        async with AsyncEmitter(database.dsn) as stranger:
            await stranger.in_transaction(conn).emit("unsigned")
        await conn.commit()
        packets = await arrived(reader, io)
        assert reader.stats["bad_signatures"] == 1
    assert packets == [["small", "é"], ["many", 1], ["many", BINARY], ["statement", "日本" * 3000]]


# --------------------------------------------------------------------------------------------- on any other driver


@pytest.mark.parametrize("args", [("é", 1), (BINARY,), ("x" * 9000,)], ids=["small", "binary", "large"])
async def test_statements(database: Database, io: AsyncEmitter, args: tuple[object, ...]) -> None:
    async with (
        BusReader(database, ["/", "/shop"]) as reader,
        await psycopg.AsyncConnection.connect(database.dsn) as conn,
    ):
        await io.in_transaction(conn).emit("table", BINARY)  # makes the table, which a statement cannot
        await conn.commit()
        raw = await asyncpg.connect(database.url)
        async with raw.transaction():
            sql, values = io.of("/shop").to("a").statement("e", *args, paramstyle="numeric_dollar")
            await raw.fetch(sql, *values)
            sql, values = io.to([]).statement("nobody", paramstyle="numeric_dollar")
            assert await raw.fetch(sql, *values) == []
        await raw.close()
        sql, values = io.statement("e", *args)
        await conn.execute(sql, values)
        await conn.rollback()
        assert await arrived(reader, io) == [["table", BINARY]]
        assert await arrived(reader, io, "/shop") == [["e", *args]]
        assert [message.to for message in reader.messages if message.nsp == "/shop"] == [["a"], []]
    sql, values = io.statement("e", *args, paramstyle="qmark")
    assert sql.count("?") == len(values)
    assert all(value.isascii() for value in values)


async def test_frames_on_the_wire(database: Database, io: AsyncEmitter) -> None:
    """Neither `n` nor `p`, which would show a gap; `k` instead, before signature and row."""
    async with spying(database) as spy, await psycopg.AsyncConnection.connect(database.dsn) as conn:
        await io.in_transaction(conn).to("a").emit("small", 1)
        await io.in_transaction(conn).to("a").emit("binary", b"x")
        await conn.commit()
        [small], [binary] = await spy.wait_for_broadcast("small"), await spy.wait_for_broadcast("binary")
        pid = conn.info.backend_pid
    key = small.header["k"]
    assert len(key) == 8
    assert small.payload == (
        '{"type":3,"uid":"emitter","nsp":"/","source":"_sio_adapter","data":{"opts":{"rooms":["a"],"except":[],'
        f'"flags":{{}}}},"packet":{{"type":2,"nsp":"/","data":["small",1]}}}},"k":"{key}"}}'
    )
    key, row = binary.header["k"], binary.header["attachmentId"]
    assert binary.payload == (
        '{"type":3,"uid":"emitter","nsp":"/","source":"_sio_adapter","rooms":["a"],'
        f'"k":"{key}","attachmentId":"{row}"}}'
    )
    assert key != small.header["k"]
    assert small.pid == binary.pid == pid


async def test_databases_and_connections_of_other_encodings(database: Database, io: AsyncEmitter) -> None:
    """Everything that is sent is ASCII."""
    async with (
        BusReader(database) as reader,
        await psycopg.AsyncConnection.connect(database.dsn, client_encoding="latin1") as conn,
    ):
        await io.in_transaction(conn).to("日本").emit("日本", "😀")
        await io.in_transaction(conn).emit_many([("é", 1), ("日本", 2)])
        await io.in_transaction(conn).to("日本").emit("日本", b"x", "😀")
        await conn.commit()
        assert await arrived(reader, io) == [["日本", "😀"], ["é", 1], ["日本", 2], ["日本", b"x", "😀"]]


# ------------------------------------------------------------------------------------------------------ refusals


async def test_no_transaction_is_open(database: Database, io: AsyncEmitter) -> None:
    async with BusReader(database) as reader:
        async with await psycopg.AsyncConnection.connect(database.dsn, autocommit=True) as conn:
            await _refused(io, conn)
        raw = await asyncpg.connect(database.url)
        await _refused(io, raw)
        await raw.close()
        for driver in ("psycopg", "asyncpg"):
            url = database.url.replace("postgresql://", f"postgresql+{driver}://")
            engine = create_async_engine(url, isolation_level="AUTOCOMMIT")
            async with engine.begin() as alchemy:
                await _refused(io, alchemy)
            async with AsyncSession(engine) as session, session.begin():
                await _refused(io, session)
            await engine.dispose()
        assert await arrived(reader, io) == []


async def _refused(io: AsyncEmitter, conn: Any) -> None:
    chain = io.in_transaction(conn)
    for call in (chain.emit("e"), chain.emit_many([("e",)]), chain.sockets_join("a"), chain.to([]).emit("e")):
        with pytest.raises(OptionsError, match="open a transaction on it first") as refused:
            await call
        assert refused.value.option == "conn"


async def test_no_transaction_is_open_in_threads(database: Database, io: AsyncEmitter) -> None:
    def refused(emitter: Emitter, conn: Any) -> None:
        with pytest.raises(OptionsError, match="open a transaction on it first"):
            emitter.in_transaction(conn).emit("e")

    def work() -> None:
        with Emitter(database.dsn) as emitter:
            with psycopg.connect(database.dsn, autocommit=True) as conn:
                refused(emitter, conn)
            with contextlib.closing(psycopg2.connect(database.dsn)) as old:
                old.autocommit = True
                refused(emitter, old)
            for driver in ("psycopg", "psycopg2"):
                url = database.url.replace("postgresql://", f"postgresql+{driver}://")
                engine = sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT")
                with engine.begin() as alchemy:
                    refused(emitter, alchemy)
                with Session(engine) as session:
                    refused(emitter, session)
                engine.dispose()
            ours = django_connection(database)
            refused(emitter, ours)
            with django_atomic(ours):
                emitter.in_transaction(ours).emit("kept")
            refused(emitter, ours)
            ours.close()

    async with BusReader(database) as reader:
        await asyncio.to_thread(work)
        assert await arrived(reader, io) == [["kept"]]


async def test_connections_that_will_not_do(database: Database, io: AsyncEmitter) -> None:
    engine = create_async_engine(database.url.replace("postgresql://", "postgresql+psycopg://"))
    blocking = sqlalchemy.create_engine(database.url.replace("postgresql://", "postgresql+psycopg://"))
    emitter = Emitter(database.dsn)
    with psycopg.connect(database.dsn) as conn, blocking.connect() as alchemy:
        for one in (conn, conn.cursor(), alchemy, Session(alchemy), django_connection(database)):
            with pytest.raises(OptionsError, match="for blocking code: use a blocking emitter"):
                io.in_transaction(one)
    async with (
        await psycopg.AsyncConnection.connect(database.dsn) as other,
        asyncpg.create_pool(database.url, min_size=1) as pool,
        AsyncConnectionPool(database.dsn, open=False) as other_pool,
        engine.connect() as async_alchemy,
    ):
        for each in (other, async_alchemy, AsyncSession(engine)):
            with pytest.raises(OptionsError, match="for asyncio code: use an Async emitter"):
                emitter.in_transaction(each)
        pools = (pool, other_pool, engine, blocking, psycopg2.pool.SimpleConnectionPool(0, 1, database.dsn))
        for source in pools:
            with pytest.raises(OptionsError, match="give a connection of it"):
                io.in_transaction(source)
        with pytest.raises(OptionsError, match="psycopg, asyncpg, SQLAlchemy or Django, not str"):
            io.in_transaction(database.dsn)
        for longest in (0, -1, True, "60", 86_401, float("nan")):
            with pytest.raises(OptionsError, match="longest"):
                io.in_transaction(other, longest=longest)  # type: ignore[arg-type]
        with pytest.raises(OptionsError, match="paramstyle"):
            io.statement("e", paramstyle="named")
        with pytest.raises(OptionsError, match="longest"):
            io.statement("e", longest=0)
        # Bad events are refused before anything is sent, and the transaction can go on.
        chain = io.in_transaction(other)
        with pytest.raises(OptionsError, match="event"):
            await chain.emit("connect")
        with pytest.raises(EncodeError):
            await chain.emit_many([("e", 1), ("e", object())])
        with pytest.raises(PayloadTooLargeError):
            await chain.of("/" + "x" * 80).emit("e")
        async with BusReader(database) as reader:
            await chain.emit("e")
            await other.commit()
            assert await arrived(reader, io) == [["e"]]
    from django.db.backends.sqlite3.base import DatabaseWrapper  # noqa: PLC0415 - after Django is configured

    with pytest.raises(OptionsError, match="leads to sqlite"):
        emitter.in_transaction(DatabaseWrapper({"NAME": ":memory:"}, alias="lite"))
    emitter.close()
    blocking.dispose()
    await engine.dispose()


async def test_a_connection_to_another_database(postgres_dsn: str, io: AsyncEmitter) -> None:
    """Nobody listens there, and PostgreSQL would say nothing."""
    with new_database(postgres_dsn) as other:
        async with spying(other) as spy, await psycopg.AsyncConnection.connect(other.dsn) as conn:
            chain = io.in_transaction(conn)
            for call in (chain.emit("e"), chain.emit("e", BINARY), chain.emit_many([("e",), ("e",)])):
                with pytest.raises(OptionsError, match="another database") as refused:
                    await call
                assert refused.value.option == "conn"
            await conn.execute("SELECT 1")  # the transaction can go on
            await conn.commit()
            await _is_silent(spy, other)


async def _is_silent(spy: Spy, database: Database) -> None:
    spy.notify("socket.io#/", {"type": 2, "uid": "end", "nsp": "/"})
    await spy.wait_for(lambda frame: frame.header["uid"] == "end")
    assert [json.loads(frame.payload)["uid"] for frame in spy.frames] == ["end"]
    assert database.value("SELECT to_regclass('socket_io_attachments') IS NULL")


async def test_the_own_connection_is_asked_again_when_the_server_was_restarted(
    database: Database, io: AsyncEmitter
) -> None:
    async with BusReader(database) as reader, await psycopg.AsyncConnection.connect(database.dsn) as conn:
        await io.in_transaction(conn).emit("e", 1)
        _, table = await io._transactions.place()
        io._transactions._place = ("0 0", table)  # as before the restart
        await io.in_transaction(conn).emit("e", 2)
        io._transactions._place = ("0 0", table)
        await io.in_transaction(conn).emit("e", BINARY)
        await conn.commit()
        assert await arrived(reader, io) == [["e", 1], ["e", 2], ["e", BINARY]]


async def test_stored_bodies_are_messagepack(database: Database, io: AsyncEmitter) -> None:
    async with await psycopg.AsyncConnection.connect(database.dsn) as conn:
        await io.in_transaction(conn).emit("binary", b"\x00\xff")
    body = database.value("SELECT payload FROM socket_io_attachments")
    assert isinstance(body, bytes)
    assert msgpack.unpackb(body)["data"]["packet"]["data"] == ["binary", b"\x00\xff"]


@pytest.mark.parametrize("access", ["document", "write"])
async def test_the_rights_that_are_documented_suffice(
    database: Database, io: AsyncEmitter, access: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """And let nobody read an attachment."""
    role = database.name + "_app"
    async with BusReader(database) as reader, await psycopg.AsyncConnection.connect(database.dsn) as conn:
        await io.in_transaction(conn).emit("e", b"table")
        await conn.commit()
        with database.connect() as admin:
            admin.execute(f"CREATE ROLE {role}")
            try:
                if access == "write":
                    assert main(["sql", "--role", role, "--access", "write"]) == 0
                    admin.execute(capsys.readouterr().out.encode())
                else:
                    [grants] = re.findall(r"`(GRANT INSERT[^`]*?)`", DOCUMENT)
                    admin.execute(grants.replace(" app", f" {role}").encode())
                await conn.execute(f"SET ROLE {role}".encode())
                await io.in_transaction(conn).emit("e", 1)
                await io.in_transaction(conn).emit_many([("e", b"2"), ("e", b"3")])
                await conn.execute(*io.statement("e", b"4"))
                await conn.commit()
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    await conn.execute("SELECT id FROM socket_io_attachments")
                await conn.rollback()
            finally:
                admin.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")
        assert await arrived(reader, io) == [["e", b"table"], ["e", 1], ["e", b"2"], ["e", b"3"], ["e", b"4"]]


OTHER_DEFAULTS = (
    """CREATE TABLE socket_io_attachments (id bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
        created_at timestamptz DEFAULT now(), payload bytea)""",
    """CREATE SEQUENCE own START 100;
    ALTER TABLE socket_io_attachments ALTER id DROP IDENTITY;
    ALTER TABLE socket_io_attachments ALTER id SET DEFAULT nextval('own')""",
    "ALTER SEQUENCE own OWNED BY socket_io_attachments.id",
)


async def test_tables_with_another_default(database: Database, io: AsyncEmitter) -> None:
    """As somebody may have made or mended them by hand."""
    async with BusReader(database) as reader, await psycopg.AsyncConnection.connect(database.dsn) as conn:
        for number, change in enumerate(OTHER_DEFAULTS):
            await conn.execute(change.encode())
            await conn.commit()
            await io.in_transaction(conn).emit("e", number, b"x")
            await conn.execute(*io.statement("e", number, b"y"))
            await conn.commit()
        assert await arrived(reader, io) == [["e", number, body] for number in range(3) for body in (b"x", b"y")]


async def test_two_phase_commits_are_refused_by_postgresql(database: Database, io: AsyncEmitter) -> None:
    conn = await psycopg.AsyncConnection.connect(database.dsn)
    async with BusReader(database) as reader:
        await conn.tpc_begin(conn.xid(1, "a", "b"))
        await io.in_transaction(conn).emit("lost")
        with pytest.raises(psycopg.errors.FeatureNotSupported, match="PREPARE"):
            await conn.tpc_prepare()
        await conn.close()
        assert await arrived(reader, io) == []


# ------------------------------------------------------------------------------------- what users do to connections


@pytest.mark.parametrize("factory", [psycopg.AsyncRawCursor, psycopg.AsyncClientCursor])
async def test_cursors_of_the_users_own_kind(database: Database, io: AsyncEmitter, factory: Any) -> None:
    """Raw cursors take `$1` for a parameter."""
    async with BusReader(database) as reader:
        async with await psycopg.AsyncConnection.connect(database.dsn, cursor_factory=factory) as conn:
            await io.in_transaction(conn).emit("e", "100 %s $1")
            await io.in_transaction(conn).emit_many([("e", 2), ("e", BINARY)])
            await io.in_transaction(conn.cursor()).emit("e", 3)
        assert await arrived(reader, io) == [["e", "100 %s $1"], ["e", 2], ["e", BINARY], ["e", 3]]


class Proxy:
    """What tracing libraries put around a connection: it says that it is of the class of what it wraps."""

    def __init__(self, wrapped: Any) -> None:
        self._wrapped = wrapped

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return type(self._wrapped)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wrapped, name)


async def test_connections_inside_a_proxy(database: Database, io: AsyncEmitter) -> None:
    def work() -> None:
        with Emitter(database.dsn) as emitter:
            with contextlib.closing(psycopg2.connect(database.dsn)) as old, old:
                emitter.in_transaction(Proxy(old)).emit("psycopg2")
            with psycopg.connect(database.dsn) as conn:
                emitter.in_transaction(Proxy(conn)).emit("psycopg")

    async with BusReader(database) as reader:
        await asyncio.to_thread(work)
        raw = await asyncpg.connect(database.url)
        async with raw.transaction():
            await io.in_transaction(Proxy(raw)).emit("asyncpg")
        await raw.close()
        assert await arrived(reader, io) == [["psycopg2"], ["psycopg"], ["asyncpg"]]


@pytest.mark.parametrize("name", ['"a%sb"', '"100%"', '"what?"', '"it\'s %s :a $1 ""x"""'])
async def test_a_table_of_any_name(database: Database, name: str) -> None:
    """A name is never taken for a parameter."""

    def work() -> None:
        with Emitter(database.dsn, table_name=name) as emitter, contextlib.ExitStack() as stack:
            for number, blocking in enumerate(SYNC.values()):
                with blocking(database) as conn:
                    emitter.in_transaction(conn).emit("sync", number, b"x")
            with contextlib.closing(psycopg2.connect(database.dsn)) as old, old, old.cursor() as cursor:
                cursor.execute(*emitter.statement("statement", b"psycopg2"))
            conn = stack.enter_context(psycopg.connect(database.dsn))
            conn.execute(*emitter.statement("statement", b"psycopg"))
            raw, _ = emitter.statement("e", b"x", paramstyle="qmark")
            assert raw.replace(name, "").count("?") == 3

    async with AsyncEmitter(database.dsn, table_name=name) as io, BusReader(database, table_name=name) as reader:
        for number, transaction in enumerate(ASYNC.values()):
            async with transaction(database) as conn:
                await io.in_transaction(conn).emit("async", number, b"x")
        await asyncio.to_thread(work)
        packets = await arrived(reader, io)
    assert packets == [
        *(["async", number, b"x"] for number in range(len(ASYNC))),
        *(["sync", number, b"x"] for number in range(len(SYNC))),
        ["statement", b"psycopg2"],
        ["statement", b"psycopg"],
    ]


async def test_a_closed_emitter(database: Database) -> None:
    """It says so each time, whether it has asked before where its connection leads or not."""
    emitter = Emitter(database.dsn)
    async with await psycopg.AsyncConnection.connect(database.dsn) as conn:
        for is_used in (False, True):
            io = AsyncEmitter(database.dsn)
            chain = io.in_transaction(conn)
            if is_used:
                await chain.emit("e")
            await io.close()
            for call in (chain.emit, io.in_transaction(conn).emit):
                with pytest.raises(ClosedError):
                    await call("e")
    manager = AsyncPostgresManager(database.dsn, write_only=True)
    async with await psycopg.AsyncConnection.connect(database.dsn) as conn:
        await manager.in_transaction(conn).emit("e")
        await manager.close()
        with pytest.raises(ClosedError):
            await manager.in_transaction(conn).emit("e")
    with psycopg.connect(database.dsn) as blocking:
        emitter.in_transaction(blocking).emit("e")
        emitter.close()
        with pytest.raises(ClosedError):
            emitter.in_transaction(blocking).emit("e")


async def test_a_transaction_that_has_failed(database: Database, io: AsyncEmitter) -> None:
    """PostgreSQL's own error, and the savepoint before it can be used."""
    async with BusReader(database) as reader:
        async with await psycopg.AsyncConnection.connect(database.dsn) as conn:
            chain = io.in_transaction(conn)
            await chain.emit("e", 1)
            with contextlib.suppress(psycopg.errors.DivisionByZero):
                async with conn.transaction():
                    await chain.emit("e", 2)
                    with pytest.raises(psycopg.errors.DivisionByZero):
                        await conn.execute("SELECT 1 / 0")
                    for body in (3, BINARY):
                        with pytest.raises(psycopg.errors.InFailedSqlTransaction):
                            await chain.emit("e", body)
                    raise psycopg.errors.DivisionByZero
            await chain.emit("e", 4)
        with pytest.raises(psycopg.OperationalError, match="closed"):
            await chain.emit("e", 5)
        assert await arrived(reader, io) == [["e", 1], ["e", 4]]


async def test_in_a_pipeline(database: Database, io: AsyncEmitter) -> None:
    async with BusReader(database) as reader:
        async with await psycopg.AsyncConnection.connect(database.dsn, autocommit=True) as conn:
            chain = io.in_transaction(conn)
            async with conn.pipeline():
                async with conn.transaction():
                    await conn.execute("SELECT 1")
                    await chain.emit("e", 1)
                    await chain.emit_many([("e", 2), ("e", BINARY), ("e", 3)])
                with contextlib.suppress(GivenUpError):
                    async with conn.transaction():
                        await chain.emit("lost")
                        raise GivenUpError
        assert await arrived(reader, io) == [["e", 1], ["e", 2], ["e", BINARY], ["e", 3]]


async def test_a_chain_serves_many_transactions(database: Database, io: AsyncEmitter) -> None:
    async with BusReader(database) as reader, await psycopg.AsyncConnection.connect(database.dsn) as conn:
        await conn.set_read_only(True)
        chain = io.in_transaction(conn).to("a")
        for number in range(3):
            await chain.emit("e", number)
            await (conn.commit() if number != 1 else conn.rollback())
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            await chain.emit("e", b"needs a row")
        await conn.rollback()
        assert await arrived(reader, io) == [["e", 0], ["e", 2]]
