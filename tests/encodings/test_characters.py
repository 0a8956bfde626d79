"""Databases whose encoding lacks characters: what JSON can write in ASCII travels, the rest is a typed error."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import psycopg
import pytest

from socketio_postgres import (
    END,
    START,
    AsyncEmitter,
    AsyncEventStore,
    AsyncPostgresClient,
    DatabaseError,
    Emitter,
    Event,
    Filter,
    PostgresClient,
)
from tests.fixtures.bus import BusReader, acquainted, serving
from tests.fixtures.clients import PythonClient
from tests.fixtures.database import Database
from tests.fixtures.node import NodePeer, NodeServer
from tests.fixtures.spy import spying
from tests.fixtures.waiting import TIMEOUT_S, eventually

TEXT = '日本 é 😀 \u2028 \ufeff ﷽ \\u65e5 \\ " \x7f'
UNTRANSLATABLE = "22P05"


@pytest.fixture(params=["LATIN1", "WIN1252", "EUC_JP"])
def encoding(request: pytest.FixtureRequest) -> str:
    """One that has é and not 日, one that has € as well, and one that has 日 and not 😀."""
    return str(request.param)


async def test_any_text_reaches_clients(database: Database) -> None:
    async with serving(database) as one, serving(database) as two:
        await acquainted(one, two)
        client = await PythonClient.connect(two.url, auth={"rooms": ["部屋"]})
        await one.sio.emit(TEXT, (TEXT, {TEXT: [TEXT]}))
        await one.sio.emit("room", "日本", to="部屋")
        await one.manager.flush()
        with Emitter(database.dsn) as io:
            io.to("部屋").except_("другая").emit("room", "本日")
        assert await client.wait_for(TEXT) == [(TEXT, {TEXT: [TEXT]})]
        assert await client.wait_for("room", 2) == [("日本",), ("本日",)]
        assert one.manager.stats()["publish_attachments"] == 0
        assert one.errors == two.errors == []
        await client.disconnect()


async def test_requests_and_answers(database: Database) -> None:
    async with serving(database) as one, serving(database) as two:
        await acquainted(one, two)
        client = await PythonClient.connect(two.url, auth={"rooms": ["部屋"]}, replies={"ask": ["答え"]})
        two.manager.on_server_side("job")(lambda text: text + "!")
        assert await one.manager.to("部屋").timeout(TIMEOUT_S).emit_with_ack("ask", "質問") == ["答え"]
        assert await one.manager.server_side_emit_with_ack("job", "仕事") == ["仕事!"]
        [found] = await one.manager.in_("部屋").timeout(TIMEOUT_S).fetch_sockets()
        assert found.rooms == {client.sid, "部屋"}
        await one.manager.in_("部屋").sockets_join("新しい部屋")
        await eventually(lambda: "新しい部屋" in two.sio.rooms(client.sid), "the client is in the room")
        assert one.errors == two.errors == []
        await client.disconnect()


@pytest.mark.parametrize("key", [None, "a key long enough to be one"])
async def test_what_grows_too_long_becomes_an_attachment(database: Database, key: str | None) -> None:
    """Six bytes for each character of three: 2,500 of them fit into a notification in UTF-8 and not in ASCII."""
    texts = ["日" * count for count in (1200, 1290, 1320, 2500, 3000)]
    reader = BusReader(database, signing_key=key)
    async with reader, spying(database, ["socket.io#/"]) as spy, AsyncEmitter(database.dsn, signing_key=key) as io:
        for text in texts:
            await io.emit("hello", text)
        await io.emit("hello", "ascii")
        await io.flush()
        assert await reader.wait_for(len(texts) + 1) == [["hello", text] for text in (*texts, "ascii")]
        assert reader.failures == []
        assert reader.gap_infos == []
        frames = await spy.wait_for(lambda frame: frame.header["type"] == 3, len(texts) + 1)
        kinds = ["attachmentId" in frame.header for frame in frames]
        assert kinds == [*sorted(kinds[:-1]), False]
        assert set(kinds) == {True, False}
        assert all(frame.payload.isascii() for frame in frames)
        assert io.stats()["buffer_bytes"] == 0


@pytest.mark.parametrize("key", [None, "a key long enough to be one"])
async def test_headers_of_attachments(database: Database, key: str | None) -> None:
    rooms = [f"部屋{number}" for number in range(200)]
    reader = BusReader(database, signing_key=key)
    async with reader, AsyncEmitter(database.dsn, signing_key=key) as io:
        await io.to("部屋").emit("hello", b"\x00")
        await io.to(rooms).emit("hello", b"\x01")  # no room for so many in a header
        assert await reader.wait_for(2) == [["hello", b"\x00"], ["hello", b"\x01"]]
        assert [message.to for message in reader.messages] == [["部屋"], rooms]
        assert reader.failures == []


async def test_many_at_once(database: Database) -> None:
    """Groups hold texts of both kinds; sizes are counted in and out alike."""
    async with BusReader(database) as reader, AsyncEmitter(database.dsn, buffer_count=100) as io:
        for number in range(1000):
            await io.emit("hello", number, "日本" if number % 2 else "ascii")
        await io.flush()
        packets = await reader.wait_for(1000)
        assert packets == [["hello", number, "日本" if number % 2 else "ascii"] for number in range(1000)]
        assert reader.gap_infos == []
        assert (io.stats()["buffer_count"], io.stats()["buffer_bytes"]) == (0, 0)


async def test_what_others_send_is_converted(database: Database) -> None:
    """Of a peer that knows nothing of this: PostgreSQL converts what the encoding has."""
    has = "é" if database.value("SHOW server_encoding") != "EUC_JP" else "日本"
    event = '{"type":3,"uid":"emitter","nsp":"/","data":{"opts":{},"packet":{"type":2,"data":["tick","%s"]}}}'
    async with BusReader(database) as reader:
        with database.connect() as connection:
            connection.execute("SELECT pg_notify('socket.io#/', %s)", [event % has])
            with pytest.raises(psycopg.errors.UntranslatableCharacter):
                connection.execute("SELECT pg_notify('socket.io#/', %s)", [event % "😀"])
        assert await reader.wait_for(1) == [["tick", has]]


@pytest.mark.parametrize("kind", [AsyncPostgresClient, PostgresClient])
async def test_a_text_of_the_users_own_is_not_changed(database: Database, kind: Any) -> None:
    """No other way of writing it is known: it arrives, or it is refused."""

    async def call(method: Any, *args: object) -> Any:
        if kind is AsyncPostgresClient:
            return await method(*args)
        return await asyncio.to_thread(method, *args)

    failures: list[Exception] = []
    client = kind(database.dsn, error_handler=failures.append)
    await call(client.listen, "jobs")
    with pytest.raises(DatabaseError, match="no equivalent") as refused:
        await call(client.notify, "jobs", "😀")
    assert refused.value.sqlstate == UNTRANSLATABLE
    assert "UTF8" in (refused.value.hint or "")
    with pytest.raises(DatabaseError, match="no equivalent"):
        await call(client.notify, "😀", "text")
    with pytest.raises(DatabaseError, match="no equivalent") as refused:
        await call(client.listen, "😀")
    assert "😀" in str(refused.value)
    await call(client.notify, "jobs", "after")
    assert (await call(client.wait_for_notification, TIMEOUT_S)).payload == "after"
    assert client.stats()["listener_reconnects"] == 0
    await call(client.close)


async def test_a_namespace_that_has_no_channel_here(database: Database) -> None:
    """Its clients are served by their own server alone; nobody else notices."""
    async with serving(database, ["/", "/😀"]) as ours, AsyncEmitter(database.dsn) as io:
        client = await PythonClient.connect(ours.url)
        await eventually(lambda: ours.errors, "it is reported")
        with pytest.raises(DatabaseError, match="no equivalent"):
            await io.of("/😀").emit("hello")
        for number in range(3):
            await io.emit("tick", number)
            await client.wait_for("tick", number + 1)
            await asyncio.sleep(0.5)  # the manager asks again and again
        refused = [error for error in ours.errors if isinstance(error, DatabaseError)]
        assert [error.sqlstate for error in refused] == [UNTRANSLATABLE], "once"
        assert ours.manager.stats()["listener_reconnects"] == 0
        await client.disconnect()


@pytest.fixture
async def store(database: Database) -> AsyncIterator[AsyncEventStore]:
    async with AsyncEventStore(database.dsn) as store:
        yield store


async def test_events_hold_what_the_encoding_has(store: AsyncEventStore, encoding: str) -> None:
    text = "日本" if encoding == "EUC_JP" else "é"
    async with store.subscribe() as live:
        await store.store(Event("T", text, {text: text}, metadata={"by": text}))
        event = await live.next(TIMEOUT_S)
        assert (event.aggregate_id, event.data, event.metadata) == (text, {text: text}, {"by": text})


async def test_only_the_event_that_cannot_be_kept_is_refused(store: AsyncEventStore) -> None:
    bad = [
        Event("T", "agg", {"text": "😀"}),
        Event("T", "agg", None, metadata={"😀": 1}),
        Event("T", "😀", 1),
        Event("😀", "agg", 1),
    ]
    good = [Event("T", f"agg{number}", number) for number in range(20)]
    calls = [store.store(event) for pair in zip(good[:4], bad, strict=True) for event in pair]
    results = await asyncio.gather(*calls, *(store.store(event) for event in good[4:]), return_exceptions=True)
    failed = [result for result in results if isinstance(result, BaseException)]
    assert len(failed) == len(bad), results
    for error in failed:
        assert isinstance(error, DatabaseError)
        assert error.sqlstate == UNTRANSLATABLE
        assert error.hint
    assert sorted(event.data for event in await store.load()) == list(range(len(good)))


LACKING = {
    "type": Filter("type", ["T", "😀"]),
    "prefix": Filter("aggregate_prefix", "😀"),
    "tenant": Filter("tenant", "😀"),
    "key of metadata": Filter("metadata", {"😀": 1}),
    "data": Filter("data", {"text": "😀"}),
}


@pytest.mark.parametrize("lacking", LACKING)
async def test_a_filter_that_nothing_can_match_is_refused(store: AsyncEventStore, lacking: str) -> None:
    """By whoever reads: from the table, from memory, or from a position that is kept."""
    filters = [LACKING[lacking]]
    await store.store(Event("T", "agg", 1))
    [stored] = await store.load()
    readers: list[Callable[[], AbstractAsyncContextManager[Any]]] = [
        lambda: store.subscribe(START, filters),
        lambda: store.subscribe(stored, filters),
        lambda: store.subscribe(END, filters),
        lambda: store.durable("d", filters),
    ]
    async with store.subscribe(END) as live:
        with pytest.raises(DatabaseError):
            await store.load(filters=filters)
        for reader in readers:
            with pytest.raises(DatabaseError) as refused:
                async with reader() as subscription:
                    await asyncio.wait_for(anext(subscription), TIMEOUT_S)
            assert refused.value.sqlstate == UNTRANSLATABLE
            assert refused.value.hint
        await store.store(Event("T", "agg", 2))
        assert (await live.next(TIMEOUT_S)).data == 2, "others go on"


@pytest.mark.usefixtures("node_packages")
async def test_a_node_server_reads_what_we_write(database: Database) -> None:
    async with serving(database) as ours, NodePeer() as peer:
        node = await NodeServer.start(peer, database)
        await ours.manager.start()
        await eventually(lambda: ours.manager.server_count() == 2, "the servers know each other")
        client = await peer.connect(node.url, label="js", auth={"rooms": ["部屋"]})
        await ours.sio.emit("hello", ("日本", {TEXT: TEXT}))
        await ours.sio.emit("hello", "日" * 2500)
        await ours.sio.emit("hello", b"\x00\xff", to="部屋")
        found = await client.wait_for("hello", 3)
        # Node.js reads attachments while it goes on with later messages.
        assert found[0] == ("日本", {TEXT: TEXT})
        assert sorted(found[1:], key=repr) == [("日" * 2500,), (b"\x00\xff",)]
        assert ours.errors == []
        await node.close()
